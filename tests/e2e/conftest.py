"""One real server with the golden model for the tests that do not break it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import ServerProcess

from model.convert import convert_published

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="session")
def golden_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint, converted."""
    output = tmp_path_factory.mktemp("converted") / "golden"
    convert_published(GOLDEN / "final.pt", GOLDEN / "tokenizer.model", output, spec=GOLDEN / "spec.json")
    return output


@pytest.fixture(scope="session")
def server(golden_model: Path) -> Iterator[ServerProcess]:
    """`wavllm serve` with the golden model; shared, so leave it as you found it."""
    with ServerProcess(golden_model) as running:
        yield running
