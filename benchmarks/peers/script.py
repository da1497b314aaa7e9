"""What a user writes without a server: transformers' `generate` and a PEFT LoRA, alone or in padded batches.

transformers has no WavLLM, so clips are encoded and instructions are weighed by `model/`, anew for every
question, as a script does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from benchmarks.peers.peft_model import ScaledLora, open_peft
from model.checkpoint import load_model
from model.prompt import Prompt, build_prompt

OnStep = Callable[[list[int]], None]
"""Called with the next token of every row, as soon as it is known."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """A question as the script takes it. waveform: [T] float32, 16 kHz mono."""

    waveform: npt.NDArray[np.float32]
    prompt: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `generate` needs of a question. embeddings: [n, D], the whole prompt. scale: [D]."""

    embeddings: Tensor
    scale: Tensor


class Script:
    """A model directory's weights in transformers and peft, on the CPU in float32.

    Raises ValueError for a model whose answers may end early: no two sides would do the same work.
    """

    def __init__(self, directory: Path) -> None:
        self._ours, self.tokenizer = load_model(directory, torch.device("cpu"), torch.float32)
        self._config = self._ours.config.llama
        if self._config.eos_token_id not in self._config.suppress_token_ids:
            raise ValueError(f"{directory}: answers may end early; suppress EOS (see benchmarks/sizes.py)")
        self._peft = open_peft(directory)
        self._lora = ScaledLora(self._peft, self._config.num_attention_heads)

    def prepare(self, questions: Sequence[Spoken]) -> list[Prepared]:
        """Encode the clips in one batch, then read each instruction."""
        clips = self._ours.encode_audio([torch.from_numpy(question.waveform) for question in questions])
        prompts = [self._prompt(question.prompt) for question in questions]
        return [self._join(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]

    def one(self, prepared: Prepared, num_tokens: int, on_step: OnStep) -> None:
        """Answer one question; its scale is folded into B."""
        self._lora.fold(prepared.scale)
        self._generate([prepared], num_tokens, on_step)

    def batch(self, prepared: Sequence[Prepared], num_tokens: int, on_step: OnStep) -> None:
        """Answer questions as one padded batch, each row with its own scale."""
        with self._lora.per_row(torch.stack([one.scale for one in prepared])):
            self._generate(prepared, num_tokens, on_step)

    @torch.inference_mode()
    def _generate(self, prepared: Sequence[Prepared], num_tokens: int, on_step: OnStep) -> None:
        embeddings, mask = pad_left([one.embeddings for one in prepared])
        self._peft.generate(
            inputs_embeds=embeddings,
            attention_mask=mask,
            max_new_tokens=num_tokens,
            do_sample=False,
            use_cache=True,
            streamer=StepStreamer(on_step),
            suppress_tokens=list(self._config.suppress_token_ids),
            bos_token_id=self._config.bos_token_id,
            eos_token_id=self._config.eos_token_id,
            pad_token_id=self._config.eos_token_id,
        )

    def _prompt(self, instruction: str) -> Prompt:
        return build_prompt(self.tokenizer, self._config.bos_token_id, instruction, None, audio=True)

    def _join(self, clip: Tensor, prompt: Prompt) -> Prepared:
        """clip: [n, D] audio embeddings."""
        left, right = (
            self._ours.embed_tokens(torch.tensor(ids)) for ids in (prompt.left_ids, prompt.right_ids)
        )
        return Prepared(torch.cat([left, clip, right]), self._ours.prompt_scale(prompt.adapter_ids))


class StepStreamer(BaseStreamer):
    """Hands on every step's tokens. `generate` first shows the prompt's ids, of which there are none here."""

    def __init__(self, on_step: OnStep) -> None:
        self._on_step = on_step
        self._saw_prompt = False

    def put(self, value: Tensor) -> None:
        """value: [B] ids of one step."""
        if self._saw_prompt:
            self._on_step(value.tolist())
        self._saw_prompt = True

    def end(self) -> None:
        """Nothing is held back."""


def pad_left(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[n_i, D] -> zeros and rows [B, n, D], and a mask [B, n] int64 that is 0 on the zeros."""
    width = max(len(row) for row in rows)
    padded = torch.stack([F.pad(row, (0, 0, width - len(row), 0)) for row in rows])
    mask = torch.stack([F.pad(torch.ones(len(row), dtype=torch.long), (width - len(row), 0)) for row in rows])
    return padded, mask
