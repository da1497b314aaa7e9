"""A run that begins with a trained model: the same answers, a new LoRA, and two stages less to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint import tensor_places
from model.checkpoint_format import CheckpointError, ShardWriter, expected_tensors
from model.config import SpeechLLMConfig
from model.speech_llm import SpeechLLM
from tests.model.random_weights import small_config
from training import stages
from training.assemble import assemble
from training.batch import Item, pack
from training.begin import begin
from training.network import answer_logits, new_model
from training.recipe import Recipe, State
from training.tokens import Segment

SEGMENT = Segment("asr", (1, 5, 9, 40), (7, 30, 8, 2), (5,))


class SmallRecipe(Recipe):
    def model_config(self, suppress: tuple[int, ...] = (0,)) -> SpeechLLMConfig:
        return small_config()


def constant_scale(model: SpeechLLM) -> Tensor:
    """A LoRA that counts, at one scale for all instructions."""
    scale = torch.rand(model.config.llama.hidden_size) * 3
    with torch.no_grad():
        for block in model.llama.blocks:
            for linear in (block.attention.qkv, block.attention.o):
                torch.nn.init.normal_(linear.lora_B, std=0.2)
        model.prompt_adapter.fc2.weight.zero_()
        model.prompt_adapter.fc2.bias.copy_(scale)
    return scale


@pytest.fixture
def saved(tmp_path: Path, directory: Path) -> tuple[Path, SpeechLLM, Tensor]:
    model = new_model(small_config(), 5)
    scale = constant_scale(model)
    places = tensor_places(model)
    with ShardWriter(tmp_path / "model", small_config(), tokenizer=directory / "tokenizer.model") as writer:
        for name in expected_tensors(small_config()):
            writer.add(name, places[name].contiguous())
    return tmp_path / "model", model, scale


def logits(model: SpeechLLM, scale: Tensor | None) -> Tensor:
    rows = None if scale is None else scale[None]
    with torch.no_grad():
        return answer_logits(model, pack([Item((), 0, (SEGMENT,))]), None, rows)


def test_a_run_begins_with_the_weights_and_their_lora(
    saved: tuple[Path, SpeechLLM, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, model, scale = saved
    recipe, state = SmallRecipe(), State(tmp_path / "run")
    begin(source, recipe, state)
    monkeypatch.setattr("training.assemble.open_whisper", lambda config: model.audio_encoder.whisper)
    begun = assemble(recipe, state, small_config(), ("copy",))
    torch.testing.assert_close(logits(begun, None), logits(model, scale), rtol=1e-4, atol=1e-5)
    assert (logits(begun, None) - logits(model, None)).abs().max() > 0.01
    ones = torch.ones_like(scale)
    torch.testing.assert_close(logits(begun, ones), logits(begun, None))  # the new LoRA is silent
    assert begun.prompt_adapter.fc2.weight.abs().max() > 0  # and so new is the adapter
    torch.testing.assert_close(
        begun.audio_encoder.fusion.weight, model.audio_encoder.fusion.weight, rtol=0, atol=0
    )


def test_what_it_has_learnt_is_not_taught_again(
    saved: tuple[Path, SpeechLLM, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, model, _ = saved
    run = stages.Run(SmallRecipe(), State(tmp_path / "run"), torch.device("cpu"), 1)
    begin(source, run.recipe, run.state)
    monkeypatch.setattr("training.assemble.open_whisper", lambda config: model.audio_encoder.whisper)
    before = run.state.checkpoint("copy").read_bytes()
    stages.copy(run)
    assert run.state.checkpoint("copy").read_bytes() == before


def test_a_run_that_has_begun_stays(saved: tuple[Path, SpeechLLM, Tensor], tmp_path: Path) -> None:
    state = State(tmp_path / "run")
    begin(saved[0], SmallRecipe(), state)
    with pytest.raises(FileExistsError, match="has begun"):
        begin(saved[0], SmallRecipe(), state)


def test_other_sizes_are_refused(saved: tuple[Path, SpeechLLM, Tensor], tmp_path: Path) -> None:
    state = State(tmp_path / "run")
    with pytest.raises(CheckpointError, match="not those of the recipe"):
        begin(saved[0], Recipe(), state)
    assert not state.root.exists()
