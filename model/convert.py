"""Published checkpoint -> model directory, tensor by tensor; nothing larger than a piece is ever in memory.

The published file keeps the rotary pairs of q and k interleaved, and so does the model directory: nothing is
permuted here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import sentencepiece
import torch

from model.checkpoint_format import (
    CheckpointError,
    Progress,
    ShardWriter,
    check_names,
    expected_tensors,
)
from model.checkpoint_names import Shape
from model.config import ConfigError, SpeechLLMConfig
from model.convert_names import is_never_used, published_name, sizes_from_shapes
from model.convert_rules import Fields
from model.convert_spec import read_spec
from model.pt_reader import LazyTensor, PtCheckpoint
from model.safetensors_stream import DTYPE_NAMES

OUTPUT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MIN_SHARD_BYTES = 64 * 2**20
MAX_SHARD_BYTES = 2 * 2**30
SHARDS_WANTED = 16


def convert_published(
    checkpoint: Path,
    tokenizer: Path,
    output: Path,
    *,
    spec: Path | None = None,
    dtype: str | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> SpeechLLMConfig:
    """Convert the published `final.pt` to the model directory `output`, which must not hold anything yet.

    tokenizer: the SentencePiece model. spec: sizes in the names of the Hugging Face configurations; None
    stands for the released model's. dtype: "float32", "bfloat16", "float16", or None to keep each tensor's.
    name: what the model calls itself. Nothing is written before all names, shapes and dtypes are checked.

    Raises CheckpointError for a bad checkpoint or output, ConfigError for a bad spec.
    """
    target = output_dtype(dtype)
    with PtCheckpoint(checkpoint) as source:
        config = _config(source.shapes, checkpoint, spec)
        config = replace(config, name=name or config.name)
        sizes = spec or "the released model's sizes (no spec is given)"
        tensors = _select(source, config, f"{checkpoint}, read with {sizes}")
        check_tokenizer(tokenizer, config)
        counter = ByteCounter(sum(tensor.num_bytes for tensor in tensors.values()), progress)
        with ShardWriter(
            output, config, tokenizer=tokenizer, shard_bytes=shard_bytes(counter.total)
        ) as writer:
            for ours, tensor in tensors.items():
                kind = target or tensor.dtype
                writer.add_pieces(ours, kind, converted(ours, tensor.pieces(), kind, counter))
    return config


def output_dtype(name: str | None) -> torch.dtype | None:
    """The dtype of this name, None for None. Raises CheckpointError for another one."""
    if name is not None and name not in OUTPUT_DTYPES:
        raise CheckpointError(f"dtype {name!r} is not one of {', '.join(OUTPUT_DTYPES)}")
    return None if name is None else OUTPUT_DTYPES[name]


def shard_bytes(total: int) -> int:
    """Size of one shard for `total` bytes of tensors."""
    return min(max(total // SHARDS_WANTED, MIN_SHARD_BYTES), MAX_SHARD_BYTES)


def check_tokenizer(tokenizer: Path, config: SpeechLLMConfig) -> None:
    """Raise CheckpointError unless `tokenizer` is a SentencePiece model with the config's vocabulary size."""
    try:
        model = tokenizer.read_bytes()
        found = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size() if model else 0
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{tokenizer}: not a SentencePiece model ({error})") from error
    if found != config.llama.vocab_size:
        raise CheckpointError(
            f"{tokenizer}: has {found} pieces, the language model's vocabulary {config.llama.vocab_size}"
        )


class ByteCounter:
    """Counts bytes read and tells `progress`."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total = total
        self._done = 0
        self._progress = progress

    def add(self, num_bytes: int, name: str) -> None:
        """`num_bytes` more of tensor `name` are read."""
        self._done += num_bytes
        if self._progress is not None:
            self._progress(self._done, self.total, name)


def converted(
    name: str, pieces: Iterator[torch.Tensor], dtype: torch.dtype, counter: ByteCounter
) -> Iterator[torch.Tensor]:
    """Flat pieces of tensor `name` as `dtype`, counted.

    Raises CheckpointError where a finite number becomes infinite.
    """
    for piece in pieces:
        result = piece.to(dtype)
        if dtype != piece.dtype and bool((result.isinf() & ~piece.isinf()).any()):
            raise CheckpointError(f"{name}: holds numbers that {dtype} cannot")
        counter.add(piece.numel() * piece.element_size(), name)
        yield result


def _config(shapes: Mapping[str, Shape], checkpoint: Path, spec: Path | None) -> SpeechLLMConfig:
    """The released sizes, or those of `spec` with what it leaves out read off the shapes."""
    if spec is None:
        return SpeechLLMConfig.released()
    try:
        read_off: Fields = sizes_from_shapes(shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error
    fields = read_spec(spec)
    for section, values in read_off.items():
        fields[section] = values | fields.get(section, {})
    try:
        return SpeechLLMConfig.from_json(fields)
    except ConfigError as error:
        raise ConfigError(f"{spec}: {error}") from error


def _select(source: PtCheckpoint, config: SpeechLLMConfig, label: str) -> dict[str, LazyTensor]:
    """Our names to the checkpoint's tensors, in the order of writing, all of them there and as expected.

    label: what errors call the checkpoint.
    """
    shapes = expected_tensors(config)
    found = {name: shape for name, shape in source.shapes.items() if not is_never_used(name)}
    check_names(found, {published_name(name): shape for name, shape in shapes.items()}, label)
    tensors = {name: source.tensors[published_name(name)] for name in shapes}
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPE_NAMES:
            raise CheckpointError(f"{label}: {published_name(name)} is {tensor.dtype}, not floating")
    return tensors
