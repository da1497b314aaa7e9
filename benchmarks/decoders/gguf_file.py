"""A model directory's decoder as llama.cpp reads it: GGUF, F32 and F16. Needs gguf (`make bench-env`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from sentencepiece import SentencePieceProcessor

from benchmarks.decoders.weights import quiet_state
from model.checkpoint_format import TOKENIZER_FILE
from model.config import LlamaConfig, SpeechLLMConfig
from model.convert_llama_hf import is_rotary, to_interleaved

DTYPES: dict[str, npt.DTypeLike] = {"F32": np.float32, "F16": np.float16}
FILE_TYPES = {"F32": gguf.LlamaFileType.ALL_F32, "F16": gguf.LlamaFileType.MOSTLY_F16}


def gguf_path(folder: Path, dtype: str) -> Path:
    """Where `write_gguf` puts the file of DTYPES."""
    return folder / f"{dtype}.gguf"


def write_gguf(directory: Path, folder: Path) -> None:
    """A file for each of DTYPES."""
    for dtype in DTYPES:
        _write(directory, gguf_path(folder, dtype), dtype)


def _write(directory: Path, path: Path, dtype: str) -> None:
    config = SpeechLLMConfig.load(directory).llama
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    writer.add_file_type(FILE_TYPES[dtype])
    _add_sizes(writer, config)
    _add_vocabulary(writer, SentencePieceProcessor(model_file=str(directory / TOKENIZER_FILE)))
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    _add_tensors(writer, directory, config, DTYPES[dtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: Any, config: LlamaConfig) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_attention_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_vocabulary(writer: Any, pieces: SentencePieceProcessor) -> None:
    ids = range(pieces.vocab_size())
    writer.add_tokenizer_model("llama")
    writer.add_token_list([pieces.id_to_piece(token).encode() for token in ids])
    writer.add_token_scores([pieces.get_score(token) for token in ids])
    writer.add_token_types([_kind(pieces, token) for token in ids])


def _kind(pieces: SentencePieceProcessor, token: int) -> gguf.TokenType:
    if pieces.is_unknown(token):
        return gguf.TokenType.UNKNOWN
    if pieces.is_control(token):
        return gguf.TokenType.CONTROL
    return gguf.TokenType.BYTE if pieces.is_byte(token) else gguf.TokenType.NORMAL


def _add_tensors(writer: Any, directory: Path, config: LlamaConfig, dtype: npt.DTypeLike) -> None:
    """Matrices in `dtype`, norms in float32 as llama.cpp wants them. q and k keep Meta's rotary layout."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in quiet_state(directory).items():
        ours = to_interleaved(tensor, config.num_attention_heads) if is_rotary(name) else tensor
        array = ours.numpy().astype(dtype if ours.ndim > 1 else np.float32)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), array)
