"""Reads what `torch.save` wrote without `torch.load`: no code in the file runs, and no tensor is read early.

A checkpoint is a zip of uncompressed entries: `NAME/data.pkl` describes the objects, `NAME/data/KEY` holds
one storage each. The pickle goes through a machine that runs nothing; a tensor's bytes are read from their
place in the file when somebody asks, so memory holds one piece at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO, Self

import torch

from model.convert_pickle import MAX_BYTES, Opaque, PickleError, Symbol, read_pickle
from model.convert_zip import StoredZip
from model.safetensors_files import CheckpointError

MAX_DIMENSIONS = 64
PIECE_BYTES = 4 * 2**20
"""Bytes of a contiguous tensor that are read at once."""
STORAGE_DTYPES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
WRAPPERS = frozenset(
    ("torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state", "torch Size")
)
"""Callables whose first argument is all that matters of them."""
ORDERED_DICT = "collections OrderedDict"
KNOWN = WRAPPERS | {REBUILD_TENSOR, ORDERED_DICT}


@dataclass(frozen=True, slots=True)
class _Storage:
    """Items of one dtype that lie one after the other from byte `start` of the file."""

    file: BinaryIO
    dtype: torch.dtype
    start: int
    num_items: int

    def read(self, first: int, count: int) -> torch.Tensor:
        """Items [count] from item `first` on. Raises CheckpointError if the file has become shorter."""
        if count == 0:
            return torch.empty(0, dtype=self.dtype)
        buffer = bytearray(count * self.dtype.itemsize)
        self.file.seek(self.start + first * self.dtype.itemsize)
        if self.file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
            raise CheckpointError("the checkpoint ends within a tensor")
        return torch.frombuffer(buffer, dtype=self.dtype)


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor in the file: `shape` and `stride` over a storage, from item `offset` of it on."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype on disk."""
        return self.storage.dtype

    @property
    def num_items(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()

    @property
    def num_bytes(self) -> int:
        """Size as a contiguous tensor."""
        return self.num_items * self.dtype.itemsize

    @property
    def span(self) -> int:
        """Items of the storage from the first to the last element; 0 if there is no element."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in row-major order without gaps."""
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and step != expected:
                return False
            expected *= size
        return True

    def read(self) -> torch.Tensor:
        """The whole tensor, `shape`. Raises CheckpointError if the file has become shorter."""
        items = self.storage.read(self.offset, self.span)
        return items.as_strided(self.shape, self.stride)

    def pieces(self) -> Iterator[torch.Tensor]:
        """Consecutive flat pieces of the row-major elements; of PIECE_BYTES if the tensor is contiguous."""
        if not self.is_contiguous:
            yield self.read().reshape(-1)
            return
        step = PIECE_BYTES // self.dtype.itemsize
        for first in range(0, self.num_items, step):
            yield self.storage.read(self.offset + first, min(step, self.num_items - first))


class PtCheckpoint:
    """The state dict of a checkpoint that `torch.save` wrote; a context manager that closes the file.

    Taken from the key "model" if the file holds a dict with one, else the file's own dict. `tensors` maps
    names to LazyTensor. Raises CheckpointError for anything that is not such a file, including one whose
    tensors reach outside of their storages.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from error
        try:
            found = _state_dict(_Archive(self._file).load())
        except (CheckpointError, PickleError) as error:
            self._file.close()
            raise CheckpointError(f"{path}: {error}") from error
        except BaseException:
            self._file.close()
            raise
        self.tensors: Mapping[str, LazyTensor] = MappingProxyType(found)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; its tensors can no longer be read."""
        self._file.close()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every tensor."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}


def _state_dict(value: Any) -> dict[str, LazyTensor]:
    """The flat dict of tensors within what the pickle describes."""
    found = value.get("model", value) if isinstance(value, dict) else value
    if not isinstance(found, dict) or not found:
        raise CheckpointError("holds no state dict, neither under 'model' nor by itself")
    for name, tensor in found.items():
        if not isinstance(tensor, LazyTensor):
            what = tensor.name.replace(" ", ".") if isinstance(tensor, Opaque) else type(tensor).__name__
            raise CheckpointError(f"{name!r} in the state dict is no tensor but {what}")
    return found


class _Archive:
    """The entries that torch.save makes: a pickle, a byte order, and a storage per key."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._zip = StoredZip(file)
        roots = [name[: -len("data.pkl")] for name in self._zip.names if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise CheckpointError(f"not a file of torch.save: {len(roots)} entries are called data.pkl")
        self._root = roots[0]

    def load(self) -> Any:
        """What the pickle describes, with LazyTensor in place of tensors."""
        order = self._root + "byteorder"
        if order in self._zip.names and self._zip.read(order, MAX_BYTES) != b"little":
            raise CheckpointError("its numbers are not little-endian")
        pickle = self._zip.read(self._root + "data.pkl", MAX_BYTES)
        return read_pickle(pickle, KNOWN, _rebuild, self._storage)

    def _storage(self, persistent_id: Any) -> _Storage | Opaque:
        """What ("storage", type, key, location, number of items) stands for."""
        match persistent_id:
            case ("storage", Symbol(kind), str(key), _, int(num_items)) if kind in STORAGE_DTYPES:
                dtype = STORAGE_DTYPES[kind]
            case ("storage", Symbol(kind), *_):
                return Opaque(kind)
            case _:
                raise CheckpointError("a persistent id that is no storage")
        if not 0 <= num_items < 2**62:
            raise CheckpointError("a storage with an impossible number of items")
        name = f"{self._root}data/{key}"
        if name not in self._zip.names:
            raise CheckpointError(f"entry {name} is missing")
        if num_items * dtype.itemsize != self._zip.size(name):
            raise CheckpointError(
                f"entry {name} has {self._zip.size(name)} bytes, not {num_items} items of {dtype}"
            )
        return _Storage(self._file, dtype, self._zip.start(name), num_items)


def _rebuild(name: str, arguments: tuple[Any, ...]) -> Any:
    """What one of the KNOWN callables stands for."""
    if name == ORDERED_DICT:
        return {}
    if name in WRAPPERS:
        return arguments[0] if arguments else ()
    match arguments:
        case (_Storage() as storage, int(offset), tuple(shape), tuple(stride), *_):
            return _tensor(storage, offset, shape, stride)
        case (Opaque() as storage, *_):
            return storage
    raise CheckpointError("a tensor that is not described as one")


def _tensor(
    storage: _Storage, offset: int, shape: tuple[Any, ...], stride: tuple[Any, ...]
) -> LazyTensor | Opaque:
    """A tensor whose elements all lie in its storage; one that repeats them is none of a model's."""
    if len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"a tensor of {len(shape)} dimensions")
    numbers = (offset, *shape, *stride)
    if len(shape) != len(stride) or not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
        raise CheckpointError("a tensor with an impossible shape, stride or offset")
    tensor = LazyTensor(storage, offset, shape, stride)
    if offset + tensor.span > storage.num_items:
        raise CheckpointError(f"a tensor of shape {list(shape)} reaches outside of its storage")
    if tensor.num_items > storage.num_items:  # a few bytes could stand for terabytes
        return Opaque("expanded tensor")
    return tensor
