"""A model directory's decoder in the peers' formats: no LoRA, and an output layer that never picks EOS."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from benchmarks.peers.peft_model import llama_config, llama_state
from model.checkpoint_format import TOKENIZER_FILE, NewDirectory
from model.config import SpeechLLMConfig
from model.convert_llama_hf import LM_HEAD

HF_FOLDER = "decoder-hf"
GGUF_FOLDER = "decoder-gguf"
TOKENIZER = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}
Write = Callable[[Path, Path], None]
"""Writes the decoder of a model directory into a new folder."""


def quiet_state(directory: Path) -> dict[str, Tensor]:
    """The decoder's tensors in transformers' names and layout, float32.

    The output rows of the tokens that our engine suppresses are zero. Their logit is then 0, which the best
    of thousands of others always passes: greedy answers are ours, and no peer pays for a mask.
    """
    config = SpeechLLMConfig.load(directory).llama
    state = llama_state(directory, config.num_attention_heads)
    head = state[LM_HEAD].clone()
    head[list(config.suppress_token_ids)] = 0.0
    return state | {LM_HEAD: head}


def write_hf(directory: Path, folder: Path) -> None:
    """A LlamaForCausalLM folder: config.json, model.safetensors, the tokenizer."""
    config = llama_config(SpeechLLMConfig.load(directory))
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = "float32"
    config.save_pretrained(folder)
    contiguous = {name: tensor.contiguous() for name, tensor in quiet_state(directory).items()}
    save_file(contiguous, folder / "model.safetensors", {"format": "pt"})
    shutil.copyfile(directory / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER), encoding="utf-8")


def derived(directory: Path, name: str, write: Write) -> Path:
    """The folder `name` beside the model directory, written at first use."""
    folder = directory.with_name(f"{directory.name}.{name}")
    if not folder.is_dir():
        with NewDirectory(folder) as new:
            write(directory, new.path)
    return folder
