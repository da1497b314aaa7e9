"""A directory that comes into being whole, wherever it is asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from model.checkpoint_format import CheckpointError, NewDirectory, ShardWriter
from model.safetensors_stream import ShardSet
from tests.model.random_weights import small_config


def make(target: Path) -> None:
    with NewDirectory(target) as new:
        (new.path / "file").write_text("whole", encoding="utf-8")


def test_a_link_to_an_empty_directory_is_followed(tmp_path: Path) -> None:
    """So that what is written lies on the disk that the link leads to."""
    place, link = tmp_path / "disk" / "model", tmp_path / "link"
    place.mkdir(parents=True)
    link.symlink_to(place)
    with NewDirectory(link) as new:
        assert new.path.parent == place.parent
        (new.path / "file").write_text("whole", encoding="utf-8")
    assert link.is_symlink()
    assert (place / "file").exists()
    assert [path.name for path in place.parent.iterdir()] == ["model"]


def test_a_mount_point_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "volume"
    target.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == target)
    with pytest.raises(CheckpointError, match="volume: is a mount point; name a new directory"):
        make(target)
    assert list(tmp_path.iterdir()) == [target]


def test_nothing_is_left_where_the_name_was_taken_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "out"
    new = NewDirectory(target).__enter__()
    (new.path / "file").write_text("whole", encoding="utf-8")
    (target / "other").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"):
        new.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == [target]


def test_nothing_is_left_where_tidying_up_fails_too(tmp_path: Path, monkeypatch) -> None:
    """As on a full disk, where closing a file writes what is buffered."""

    def refuse(self: ShardSet) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(ShardSet, "discard", refuse)
    tokenizer = tmp_path / "tokenizer.model"
    with (
        pytest.raises(ValueError, match="the first fault"),
        ShardWriter(tmp_path / "out", small_config(), tokenizer=tokenizer),
    ):
        raise ValueError("the first fault")
    assert not list(tmp_path.iterdir())
