"""The model directory: `config.json`, `tokenizer.model` and safetensors shards.

    with ShardWriter(directory, config, tokenizer=path) as writer:
        for name in expected_tensors(config):
            writer.add(name, tensor)

    tensors = open_tensors(directory)
    tensors.get("llama.norm.weight")

The directory appears whole or not at all. Reading is strict: names and shapes are exactly those of
`expected_tensors(config)`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from model.checkpoint_names import Shape, expected_tensors
from model.config import SpeechLLMConfig
from model.safetensors_files import CheckpointError, TensorFiles
from model.safetensors_stream import DTYPE_NAMES, ShardSet

__all__ = [
    "DEFAULT_SHARD_BYTES",
    "TOKENIZER_FILE",
    "WEIGHTS_STEM",
    "CheckpointError",
    "NewDirectory",
    "Progress",
    "ShardWriter",
    "TensorFiles",
    "check_names",
    "expected_tensors",
    "open_tensors",
]

TOKENIZER_FILE = "tokenizer.model"
Progress = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in all, name of the tensor)."""
WEIGHTS_STEM = "model"
DEFAULT_SHARD_BYTES = 2 * 2**30
MAX_NAMED = 5
"""Names spelled out in an error; the rest is counted."""


def check_names(
    found: Mapping[str, Shape], expected: Mapping[str, Shape], source: str | os.PathLike[str]
) -> None:
    """Raise CheckpointError unless `found` has exactly the names and shapes of `expected`.

    source: what the message calls the place of the tensors, usually a path.
    """
    complaints = [
        *_listed("missing", [name for name in expected if name not in found]),
        *_listed("unexpected", [name for name in found if name not in expected]),
        *_listed(
            "of the wrong shape",
            [
                f"{name} is {list(found[name])}, not {list(shape)}"
                for name, shape in expected.items()
                if name in found and tuple(found[name]) != shape
            ],
        ),
    ]
    if complaints:
        raise CheckpointError(f"{os.fspath(source)}: " + "; ".join(complaints))


def _listed(what: str, items: list[str]) -> list[str]:
    """One complaint about `items`, or none: the count, the first few, an ellipsis."""
    if not items:
        return []
    more = ", ..." if len(items) > MAX_NAMED else ""
    return [f"{len(items)} {what}: {', '.join(items[:MAX_NAMED])}{more}"]


def open_tensors(directory: Path) -> TensorFiles:
    """The tensors of a model directory, read when asked for.

    Raises CheckpointError that names missing, unexpected and misshapen tensors or the unreadable file, and
    ConfigError for a bad `config.json`.
    """
    expected = expected_tensors(SpeechLLMConfig.load(directory))
    tensors = TensorFiles(directory, WEIGHTS_STEM)
    check_names(tensors.shapes, expected, directory)
    return tensors


class NewDirectory:
    """A directory that comes into being whole: filled under another name beside its place, then renamed.

    A context manager; `path` is where to write meanwhile. An error inside removes it again; a kill leaves a
    hidden `.NAME.*.partial`. Raises CheckpointError if `target` already holds something.
    """

    def __init__(self, target: Path) -> None:
        self.target = Path(os.path.realpath(target))
        self.path = self.target
        if os.path.ismount(self.target):
            raise CheckpointError(f"{target}: is a mount point; name a new directory inside it")
        if self.target.exists() and not self.target.is_dir():
            raise CheckpointError(f"{target}: exists and is not a directory")
        if self.target.is_dir() and any(self.target.iterdir()):
            raise CheckpointError(f"{target}: exists and is not empty")

    def __enter__(self) -> Self:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(prefix=f".{self.target.name}.", suffix=".partial", dir=self.target.parent)
        self.path = Path(made)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        try:
            self.path.chmod(0o755)  # mkdtemp makes it private
            self.path.rename(self.target)
        except OSError:
            shutil.rmtree(self.path, ignore_errors=True)
            raise


class ShardWriter:
    """Writes a model directory tensor by tensor; holds one tensor at a time.

    A context manager: leaving it normally checks that every expected tensor came and renames the directory
    into place; leaving it by an error removes what was written.
    tokenizer: the SentencePiece model that goes beside the weights. shard_bytes: size at which a new shard
    is begun.
    """

    def __init__(
        self,
        directory: Path,
        config: SpeechLLMConfig,
        *,
        tokenizer: Path,
        shard_bytes: int = DEFAULT_SHARD_BYTES,
    ) -> None:
        self._new = NewDirectory(directory)
        self._config = config
        self._tokenizer = tokenizer
        self._shard_bytes = shard_bytes
        self._expected = expected_tensors(config)
        self._written: set[str] = set()
        self._shards: ShardSet | None = None

    def __enter__(self) -> Self:
        self._new.__enter__()
        self._shards = ShardSet(self._new.path, self._expected, self._shard_bytes, WEIGHTS_STEM)
        return self

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor in its own dtype. Raises CheckpointError if it is unknown, twice or misshapen."""
        if name in self._expected and tuple(tensor.shape) != self._expected[name]:
            raise CheckpointError(f"{name} is {list(tensor.shape)}, not {list(self._expected[name])}")
        self.add_pieces(name, tensor.dtype, (tensor,))

    def add_pieces(self, name: str, dtype: torch.dtype, pieces: Iterable[torch.Tensor]) -> None:
        """Write one tensor, given as consecutive flat pieces [any] of its row-major values, as `dtype`."""
        if self._shards is None:
            raise RuntimeError("ShardWriter is used outside its with block")
        if name not in self._expected or name in self._written:
            what = "written twice" if name in self._written else "not a tensor of this model"
            raise CheckpointError(f"{name}: {what}")
        if dtype not in DTYPE_NAMES:
            raise CheckpointError(f"{name}: {dtype} is not a floating dtype that a model directory holds")
        self._shards.append(name, dtype, pieces)
        self._written.add(name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException as failure:
            self._abandon(failure)
            raise
        if error is not None:
            self._abandon(error)
        else:
            self._new.__exit__(None, None, None)

    def _finish(self) -> None:
        assert self._shards is not None
        missing = [name for name in self._expected if name not in self._written]
        if missing:
            raise CheckpointError(f"{self._new.target}: " + "".join(_listed("missing", missing)))
        self._shards.finish()
        shutil.copyfile(self._tokenizer, self._new.path / TOKENIZER_FILE)
        self._config.save(self._new.path)

    def _abandon(self, error: BaseException) -> None:
        assert self._shards is not None
        with contextlib.suppress(OSError):  # it writes what is buffered: on a full disk it fails again
            self._shards.discard()
        self._new.__exit__(type(error), error, error.__traceback__)
