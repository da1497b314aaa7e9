"""`wavllm convert` and `wavllm export`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import typer

from model.checkpoint_format import CheckpointError
from model.config import ConfigError
from model.convert import convert_published
from model.peft_io import convert_peft, export_peft
from server.cli_errors import CommandError
from server.cli_progress import Report, progress_bar


def from_published(
    source: Path,
    output: Path,
    *,
    tokenizer: Path,
    spec: Path | None,
    dtype: str | None,
    name: str | None,
) -> None:
    """final.pt -> model directory. Raises CommandError."""
    with _reporting(f"Converting {source.name}") as report:
        config = convert_published(
            source, tokenizer, output, spec=spec, dtype=dtype, name=name, progress=report
        )
    typer.echo(f"{output}: {config.name}, ready for `wavllm serve --model {output}`")


def from_adapter(
    source: Path, output: Path, *, base_model: Path, speech_from: Path | None, dtype: str | None
) -> None:
    """PEFT adapter and LLaMA -> model directory. Raises CommandError."""
    with _reporting(f"Converting {source.name}") as report:
        config = convert_peft(
            base_model, source, output, speech_from=speech_from, dtype=dtype, progress=report
        )
    typer.echo(f"{output}: {config.name}, ready for `wavllm serve --model {output}`")


def to_adapter(model: Path, output: Path) -> None:
    """Model directory -> PEFT adapter. Raises CommandError."""
    with _reporting(f"Exporting {model.name}") as report:
        export_peft(model, output, progress=report)
    typer.echo(f"{output}: PEFT adapter; the speech parts are in {output / 'speech'}")


@contextlib.contextmanager
def _reporting(title: str) -> Iterator[Report]:
    """A progress bar; failures become one line."""
    try:
        with progress_bar(title) as report:
            yield report
    except (CheckpointError, ConfigError, OSError) as error:
        raise CommandError(str(error)) from error
