"""A container's limit bounds the memory that the KV cache is cut from."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from server.engine.memory import VERSIONS, ControlGroup, free_bytes

GROUPS = pytest.mark.parametrize("group", VERSIONS, ids=["v2", "v1"])


def write(root: Path, group: ControlGroup, limit: str, used: int, cached: int = 0) -> None:
    inactive, active = group.cache
    statistics = f"anon 77\n{inactive} {cached}\n{active} 100\nfile 999999\n"
    for name, text in ((group.limit, limit), (group.used, f"{used}\n"), (group.statistics, statistics)):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text, encoding="ascii")


@GROUPS
def test_what_the_limit_leaves(tmp_path: Path, group: ControlGroup) -> None:
    write(tmp_path, group, "5000\n", 1200)
    assert free_bytes(tmp_path) == 3900
    write(tmp_path, group, "5000\n", 6000)
    assert free_bytes(tmp_path) == 0


@GROUPS
def test_cached_files_do_not_count(tmp_path: Path, group: ControlGroup) -> None:
    write(tmp_path, group, "5000\n", 4900, cached=3000)
    assert free_bytes(tmp_path) == 3200


@GROUPS
@pytest.mark.parametrize("limit", ["max\n", "9223372036854771712\n"])
def test_no_limit_is_the_machine(tmp_path: Path, group: ControlGroup, limit: str) -> None:
    machine = psutil.virtual_memory().total
    assert 0 < free_bytes(Path("/nonexistent")) <= machine
    write(tmp_path, group, limit, 1)
    assert 1e6 < free_bytes(tmp_path) <= machine
