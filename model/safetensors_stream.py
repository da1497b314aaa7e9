"""Writes safetensors shards while the tensors arrive, holding no more than the tensor at hand.

A safetensors file starts with a JSON header that names every tensor's place, so a writer that does not know
the later tensors yet must leave room for it: the header may be padded with spaces.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch

Shape = tuple[int, ...]

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
"""The floating dtypes a checkpoint may hold, in safetensors' names."""
METADATA = {"format": "pt"}
ALIGNMENT = 8
_WIDEST_OFFSET = 10**15


class ShardFile:
    """One safetensors file being written.

    shapes: all tensors that may come, to leave room for their names in the header.
    """

    def __init__(self, path: Path, shapes: Mapping[str, Shape]) -> None:
        self.path = path
        self.num_bytes = 0
        self._header: dict[str, object] = {"__metadata__": METADATA}
        self._header_bytes = _header_room(shapes)
        self._file: BinaryIO = path.open("xb")
        self._file.seek(8 + self._header_bytes)

    @property
    def names(self) -> list[str]:
        """The tensors written so far."""
        return [name for name in self._header if name != "__metadata__"]

    def can_append(self, dtype: torch.dtype) -> bool:
        """Whether the next tensor would lie at a multiple of its item size, as readers need."""
        return self.num_bytes % dtype.itemsize == 0

    def append(self, name: str, dtype: torch.dtype, shape: Shape, pieces: Iterable[torch.Tensor]) -> None:
        """Write one tensor, given as consecutive flat pieces. Raises ValueError if they do not fill it."""
        begin = self.num_bytes
        for piece in pieces:
            self.num_bytes += self._file.write(_raw_bytes(piece.to(dtype)))
        expected = dtype.itemsize * _num_items(shape)
        if self.num_bytes - begin != expected:
            raise ValueError(f"{name}: {self.num_bytes - begin} bytes given for {expected}")
        self._header[name] = _entry(DTYPE_NAMES[dtype], shape, begin, self.num_bytes)

    def close(self) -> None:
        """Write the header and bring everything to the disk."""
        text = _compact(self._header).ljust(self._header_bytes)
        self._file.seek(0)
        self._file.write(struct.pack("<Q", self._header_bytes) + text)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Close without making the file readable."""
        self._file.close()


class ShardSet:
    """Shards of one model in `directory`, a new one whenever `shard_bytes` would be passed.

    `stem` is the file name without number and suffix: one shard becomes `stem.safetensors`, several become
    `stem-00001-of-0000N.safetensors` with `stem.safetensors.index.json`, as transformers names them.
    """

    def __init__(self, directory: Path, shapes: Mapping[str, Shape], shard_bytes: int, stem: str) -> None:
        self._directory = directory
        self._shapes = shapes
        self._shard_bytes = shard_bytes
        self._stem = stem
        self._done: list[ShardFile] = []
        self._open: ShardFile | None = None

    def append(self, name: str, dtype: torch.dtype, pieces: Iterable[torch.Tensor]) -> None:
        """Write tensor `name`; see ShardFile.append."""
        shape = self._shapes[name]
        self._shard_for(dtype, dtype.itemsize * _num_items(shape)).append(name, dtype, shape, pieces)

    def finish(self) -> None:
        """Close the last shard, give all their final names, and write the index if there are several."""
        self._close_open()
        total = len(self._done)
        if total == 1:
            self._done[0].path.rename(self._directory / f"{self._stem}.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(self._done, start=1):
            file_name = f"{self._stem}-{number:05d}-of-{total:05d}.safetensors"
            shard.path.rename(self._directory / file_name)
            weight_map |= dict.fromkeys(shard.names, file_name)
        index = {"metadata": {"total_size": sum(s.num_bytes for s in self._done)}, "weight_map": weight_map}
        path = self._directory / f"{self._stem}.safetensors.index.json"
        path.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")

    def discard(self) -> None:
        """Stop writing; what was written stays unnamed."""
        if self._open is not None:
            self._open.discard()

    def _shard_for(self, dtype: torch.dtype, num_bytes: int) -> ShardFile:
        shard = self._open
        if shard is not None and (
            shard.num_bytes + num_bytes > self._shard_bytes or not shard.can_append(dtype)
        ):
            self._close_open()
        if self._open is None:
            path = self._directory / f"{self._stem}.shard-{len(self._done)}"
            self._open = ShardFile(path, self._shapes)
        return self._open

    def _close_open(self) -> None:
        if self._open is not None:
            self._open.close()
            self._done.append(self._open)
            self._open = None


def _header_room(shapes: Mapping[str, Shape]) -> int:
    """Bytes that a header of all `shapes` can take, a multiple of the alignment."""
    header: dict[str, object] = {"__metadata__": METADATA}
    for name, shape in shapes.items():
        header[name] = _entry("BF16", shape, _WIDEST_OFFSET, _WIDEST_OFFSET)
    return -(-len(_compact(header)) // ALIGNMENT) * ALIGNMENT


def _entry(dtype: str, shape: Shape, begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def _compact(header: dict[str, object]) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def _num_items(shape: Shape) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's own bytes in row-major order, without a copy where it is contiguous already."""
    return tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data
