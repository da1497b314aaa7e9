"""Reads the safetensors files of a directory, one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from model.safetensors_stream import DTYPE_NAMES

Shape = tuple[int, ...]

DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, the tensors and the reason."""


class TensorFiles:
    """The tensors of `stem.safetensors`, or of the shards that `stem.safetensors.index.json` lists.

    Only headers are read at first. Raises CheckpointError for a file that is missing or unreadable.
    """

    def __init__(self, directory: Path, stem: str) -> None:
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, Shape] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._handle: tuple[Path, Any] | None = None
        listed = _index(directory, stem)
        for path in sorted(set(listed.values())) or [directory / f"{stem}.safetensors"]:
            self._read_header(path)
        if listed and listed != self._files:
            wrong = min({*listed.items()} ^ {*self._files.items()})[0]
            raise CheckpointError(f"{directory}: the index and the shards disagree, first on {wrong}")

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Name to shape of every tensor."""
        return MappingProxyType(self._shapes)

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """Name to dtype of every tensor."""
        return MappingProxyType(self._dtypes)

    @property
    def num_bytes(self) -> int:
        """Size of all tensors together."""
        return sum(self.tensor_bytes(name) for name in self._shapes)

    def tensor_bytes(self, name: str) -> int:
        """Size of one tensor."""
        return self._dtypes[name].itemsize * torch.Size(self._shapes[name]).numel()

    def get(self, name: str) -> torch.Tensor:
        """Read one tensor, in its dtype on disk. It may be a view of the mapped file: do not write to it.

        Raises KeyError for an unknown name, CheckpointError if the file went bad since it was opened.
        """
        path = self._files[name]
        try:
            tensor: torch.Tensor = self._open(path).get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: {error}") from error
        return tensor

    def _open(self, path: Path) -> Any:
        """Only the last file used stays open, so that pages of the others can leave memory."""
        if self._handle is None or self._handle[0] != path:
            self._handle = None
            self._handle = (path, safe_open(path, framework="pt"))
        return self._handle[1]

    def _read_header(self, path: Path) -> None:
        try:
            file = self._open(path)
            for name in file.keys():  # noqa: SIM118  (a handle, not a dict)
                if name in self._files:
                    raise CheckpointError(f"{path}: {name} is also in {self._files[name].name}")
                view = file.get_slice(name)
                self._dtypes[name] = _dtype(path, name, view.get_dtype())
                self._shapes[name] = tuple(view.get_shape())
                self._files[name] = path
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: {error}") from error


class RenamedTensors:
    """Some tensors of a directory under other names.

    names: the new names, each with the one on disk. transform: (new name, tensor on disk) -> tensor.
    """

    def __init__(
        self,
        files: TensorFiles,
        names: Mapping[str, str],
        transform: Callable[[str, torch.Tensor], torch.Tensor],
    ) -> None:
        self._files = files
        self._names = names
        self._transform = transform

    def __iter__(self) -> Iterator[str]:
        """The new names."""
        return iter(self._names)

    @property
    def num_bytes(self) -> int:
        """Size of all of them together."""
        return sum(self._files.tensor_bytes(name) for name in self._names.values())

    def get(self, name: str) -> torch.Tensor:
        """Read the tensor of this new name; see TensorFiles.get."""
        return self._transform(name, self._files.get(self._names[name]))


def _dtype(path: Path, name: str, dtype: str) -> torch.dtype:
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: {name} is {dtype}, not one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _index(directory: Path, stem: str) -> dict[str, Path]:
    """Tensor name to shard as the index has it; empty if the whole model is in one file."""
    path = directory / f"{stem}.safetensors.index.json"
    if (directory / f"{stem}.safetensors").exists() or not path.exists():
        return {}
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = {str(name): Path(file) for name, file in weight_map.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not an index of shards ({error!r})") from error
    for file in shards.values():
        if file.name != str(file):
            raise CheckpointError(f"{path}: {file} is not the name of a file beside it")
    if not shards:
        raise CheckpointError(f"{path}: lists no tensor")
    return {name: directory / file for name, file in shards.items()}
