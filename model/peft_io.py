"""The LoRA as a PEFT adapter for a Hugging Face LLaMA, out of a model directory and back into one.

    OUTPUT/adapter_config.json, adapter_model.safetensors   what peft reads
    OUTPUT/speech/                                          what peft does not know of: configuration,
                                                            tokenizer, encoders, branches, fusion, adapter,
                                                            and a probe of the base model

The prompt adapter's scale has no place in PEFT, where the LoRA acts with scale 1.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from model.checkpoint_format import (
    DEFAULT_SHARD_BYTES,
    TOKENIZER_FILE,
    WEIGHTS_STEM,
    CheckpointError,
    NewDirectory,
    Progress,
    ShardWriter,
    TensorFiles,
    check_names,
    open_tensors,
)
from model.checkpoint_names import lora_tensors, speech_tensors
from model.config import CONFIG_FILE, SpeechLLMConfig
from model.convert import ByteCounter, check_tokenizer, converted, output_dtype, shard_bytes
from model.convert_adapter import (
    ADAPTER_CONFIG,
    ADAPTER_STEM,
    adapter_config,
    adapter_shapes,
    open_adapter,
    peft_name,
    to_peft,
)
from model.convert_llama_hf import check_same_model, open_hf_llama
from model.convert_probe import check_probe, write_probe
from model.safetensors_files import RenamedTensors
from model.safetensors_stream import ShardSet

SPEECH_DIRECTORY = "speech"
MAX_ADAPTER_BYTES = 2**62
"""The adapter is one file, whatever its size."""


def export_peft(model_dir: Path, output: Path, progress: Progress | None = None) -> None:
    """Write the LoRA of `model_dir` as a PEFT adapter into `output`, the speech parts beside it.

    Raises CheckpointError or ConfigError for a bad model directory or an `output` that holds something.
    """
    config = SpeechLLMConfig.load(model_dir)
    tensors = open_tensors(model_dir)
    names = (*lora_tensors(config.llama, config.lora), *speech_tensors(config))
    counter = ByteCounter(sum(tensors.tensor_bytes(name) for name in names), progress)
    with NewDirectory(output) as new:
        _export_adapter(config, tensors, new.path, counter)
        speech = new.path / SPEECH_DIRECTORY
        speech.mkdir()
        _export_speech(config, tensors, speech, counter)
        write_probe(config.llama, tensors, speech)
        shutil.copyfile(model_dir / TOKENIZER_FILE, speech / TOKENIZER_FILE)


def _export_adapter(
    config: SpeechLLMConfig, tensors: TensorFiles, directory: Path, counter: ByteCounter
) -> None:
    shards = ShardSet(directory, adapter_shapes(config.llama, config.lora), MAX_ADAPTER_BYTES, ADAPTER_STEM)
    for name in lora_tensors(config.llama, config.lora):
        tensor = to_peft(name, tensors.get(name), config.llama)
        _append(shards, peft_name(name), tensor, counter)
    shards.finish()
    text = json.dumps(adapter_config(config.lora), indent=2)
    (directory / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")


def _export_speech(
    config: SpeechLLMConfig, tensors: TensorFiles, directory: Path, counter: ByteCounter
) -> None:
    shapes = speech_tensors(config)
    shards = ShardSet(directory, shapes, DEFAULT_SHARD_BYTES, WEIGHTS_STEM)
    for name in shapes:
        _append(shards, name, tensors.get(name), counter)
    shards.finish()
    config.save(directory)


def _append(shards: ShardSet, name: str, tensor: torch.Tensor, counter: ByteCounter) -> None:
    shards.append(name, tensor.dtype, (tensor,))
    counter.add(tensor.nbytes, name)


def convert_peft(
    base_model: Path,
    peft: Path,
    output: Path,
    *,
    speech_from: Path | None = None,
    dtype: str | None = None,
    progress: Progress | None = None,
) -> SpeechLLMConfig:
    """Build the model directory `output` from a Hugging Face LLaMA directory and a PEFT adapter.

    The speech parts come from `speech_from`, a model directory, or else from the adapter's own `speech/`.
    Their configuration also says the norm's epsilon and the length of the position table, with which they
    were trained; the base model's sizes and rope_theta must agree with it, and its weights with the probe
    that an exported adapter has of them. dtype: as in `convert_published`.

    Raises CheckpointError or ConfigError that names what is missing, unexpected or not supported.
    """
    target = output_dtype(dtype)
    llama, base = open_hf_llama(base_model)
    lora, adapter = open_adapter(peft, llama)
    home = _speech_home(peft, speech_from)
    config, speech = _open_speech(home)
    check_same_model(llama, config.llama, base_model)
    check_probe(llama, base, base_model, peft / SPEECH_DIRECTORY)
    check_tokenizer(home / TOKENIZER_FILE, config)
    config = replace(config, lora=lora)
    _write(config, (speech, base, adapter), home / TOKENIZER_FILE, output, target, progress)
    return config


def _write(
    config: SpeechLLMConfig,
    sources: tuple[RenamedTensors, ...],
    tokenizer: Path,
    output: Path,
    dtype: torch.dtype | None,
    progress: Progress | None,
) -> None:
    counter = ByteCounter(sum(source.num_bytes for source in sources), progress)
    size = shard_bytes(counter.total)
    with ShardWriter(output, config, tokenizer=tokenizer, shard_bytes=size) as writer:
        for source in sources:
            for name in source:
                tensor = source.get(name)
                kind = dtype or tensor.dtype
                writer.add_pieces(name, kind, converted(name, iter((tensor,)), kind, counter))


def _speech_home(peft: Path, speech_from: Path | None) -> Path:
    """The directory with the speech parts. Raises CheckpointError if neither place has any."""
    if speech_from is not None:
        return speech_from
    if not (peft / SPEECH_DIRECTORY / CONFIG_FILE).exists():
        raise CheckpointError(
            f"{peft}: has no {SPEECH_DIRECTORY}/ directory with the encoders and the prompt adapter; "
            "name a model directory to take them from (--speech-from)"
        )
    return peft / SPEECH_DIRECTORY


def _open_speech(directory: Path) -> tuple[SpeechLLMConfig, RenamedTensors]:
    """The speech parts of a model directory or of an exported `speech/`."""
    config = SpeechLLMConfig.load(directory)
    expected = speech_tensors(config)
    files = TensorFiles(directory, WEIGHTS_STEM)
    found = {name: shape for name, shape in files.shapes.items() if not name.startswith("llama.")}
    check_names(found, expected, directory)
    return config, RenamedTensors(files, {name: name for name in expected}, lambda _, tensor: tensor)
