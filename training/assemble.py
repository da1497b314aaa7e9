"""The network with what earlier stages have learnt."""

from __future__ import annotations

from model.config import SpeechLLMConfig
from model.speech_llm import SpeechLLM
from model.tokenizer import Tokenizer
from training.features import open_whisper
from training.loop import put, read
from training.network import fix_scale, new_model, silence_wavlm
from training.recipe import Recipe, State
from training.tokens import Encoder, symbol_ids

STAGES = ("copy", "language", "acoustic", "align", "single", "joint")
START = "start"
"""Checkpoint of a run that begins with trained weights."""
PART = {"copy": "llama", "language": "llama", "acoustic": "audio_encoder"}
"""The part of the network that a stage's names are relative to; the others' are the whole network's."""


def open_encoder(recipe: Recipe, state: State) -> tuple[Encoder, SpeechLLMConfig]:
    """The vocabulary, and the configuration that bans its template symbols from answers."""
    tokenizer = Tokenizer(state.tokenizer)
    config = recipe.model_config((tokenizer.unk_id, *symbol_ids(tokenizer)))
    return Encoder(tokenizer, config.llama), config


def first_model(recipe: Recipe, state: State, config: SpeechLLMConfig) -> SpeechLLM:
    """The network that a run begins with: first weights, or those of a trained model."""
    model = new_model(config, recipe.seed)
    if state.checkpoint(START).exists():
        put(model, read(state, START)["weights"])
    return model


def assemble(recipe: Recipe, state: State, config: SpeechLLMConfig, stages: tuple[str, ...]) -> SpeechLLM:
    """The first model, Whisper's encoder, then the checkpoints of `stages` in order; ablated parts silent."""
    model = first_model(recipe, state, config)
    model.audio_encoder.whisper.load_state_dict(open_whisper(config).state_dict())
    for stage in stages:
        weights = read(state, stage)["weights"]
        part = model.get_submodule(PART.get(stage, ""))
        names = dict(part.named_parameters())
        put(part, {name: value for name, value in weights.items() if name in names})
    if not recipe.use_wavlm:
        silence_wavlm(model)
    if not recipe.use_prompt_adapter:
        fix_scale(model)
    return model
