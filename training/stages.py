"""The steps of the curriculum, each a function of a Run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from model.checkpoint import tensor_places
from model.checkpoint_format import ShardWriter, expected_tensors
from model.speech_llm import SpeechLLM
from model.tokenizer import train_tokenizer
from training.acoustic import AcousticStage
from training.assemble import STAGES, START, assemble, first_model, open_encoder
from training.corpus import make_speech
from training.dataset import Dataset
from training.features import extract_wavlm, extract_whisper
from training.language import CopyStage, LanguageStage
from training.listening import AlignStage, JointStage, ListeningStage, OneStage, SingleStage
from training.loop import Stage, put, read, train
from training.network import fix_scale
from training.recipe import SHARES, Recipe, State
from training.tokens import SYMBOLS, Encoder, vocabulary_texts

SHARD_BYTES = 15 * 2**20


@dataclass(frozen=True, slots=True)
class Run:
    """A recipe at work: where its state lies and what it runs on.

    workers: processes that speak; with a GPU also those that prepare its batches and features.
    seconds: for all stages together; None for all their steps.
    """

    recipe: Recipe
    state: State
    device: torch.device
    workers: int
    seconds: float | None = None

    @property
    def loaders(self) -> int:
        """Processes beside this one. On a CPU there is nothing to run ahead of."""
        return 0 if self.device.type == "cpu" else self.workers

    def train(self, stage: Stage) -> None:
        """Train one stage to its end."""
        seconds = None if self.seconds is None else self.seconds * SHARES[stage.name]
        train(stage, self.state, self.loaders, seconds)


def speech(run: Run) -> None:
    """Write and speak the clips."""
    make_speech(run.recipe, run.state, run.workers)


def whisper(run: Run) -> None:
    """Encode the clips with Whisper."""
    extract_whisper(run.recipe.model_config(), run.state, run.device, run.loaders)


def copy(run: Run) -> None:
    """Vocabulary, and a language model that writes down what it hears."""
    if not run.state.tokenizer.exists():
        made = train_tokenizer(run.recipe.vocab_size, vocabulary_texts(run.recipe.seed), SYMBOLS)
        run.state.tokenizer.parent.mkdir(parents=True, exist_ok=True)
        run.state.tokenizer.write_bytes(made)
    encoder, config = open_encoder(run.recipe, run.state)
    model = assemble(run.recipe, run.state, config, ()).to(run.device)
    run.train(CopyStage(model, encoder, run.recipe))


def language(run: Run) -> None:
    """The language model and all tasks of text."""
    encoder, config = open_encoder(run.recipe, run.state)
    model = assemble(run.recipe, run.state, config, ("copy",)).to(run.device)
    run.train(LanguageStage(model, encoder, run.recipe))


def acoustic(run: Run) -> None:
    """WavLM, and its features of the clips."""
    _, config = open_encoder(run.recipe, run.state)
    encoder = first_model(run.recipe, run.state, config).audio_encoder.to(run.device)
    run.train(AcousticStage(encoder, run.recipe, run.state, run.device))
    extract_wavlm(encoder, config, run.state, run.device, run.loaders)


def align(run: Run) -> None:
    """Stage 1, adapters alone. Those of a run that begins with a trained model can tell voices already."""
    hears_voices = run.state.checkpoint(START).exists()
    run.train(AlignStage(*_listening(run, ("language", "acoustic")), hears_voices))


def single(run: Run) -> None:
    """Stage 1."""
    kind = SingleStage if run.recipe.two_stages else OneStage
    stage = kind(*_listening(run, ("language", "acoustic", "align")))
    _keep_losses(stage, run, "align")
    run.train(stage)


def joint(run: Run) -> None:
    """Stage 2."""
    stage = JointStage(*_listening(run, ("language", "acoustic", "align", "single")))
    _keep_losses(stage, run, "single")
    run.train(stage)


def _listening(run: Run, before: tuple[str, ...]) -> tuple[SpeechLLM, Encoder, Recipe, Dataset]:
    encoder, config = open_encoder(run.recipe, run.state)
    model = assemble(run.recipe, run.state, config, before).to(run.device)
    return model, encoder, run.recipe, Dataset(run.state, "train", config.wavlm)


def _keep_losses(stage: ListeningStage, run: Run, before: str) -> None:
    """Two losses have weights of their own, which are no part of the network."""
    weights = read(run.state, before)["weights"]
    kept = {name: value for name, value in weights.items() if name.startswith(("align.", "voices."))}
    put(stage.trained, kept)


def export(run: Run, output: Path, *, before_joint: bool = False) -> None:
    """Write the model directory, float16 in shards of at most 15 MiB. Raises CheckpointError if it exists.

    before_joint: as stage 1 left it, with the scale at 1 for every instruction.
    """
    _, config = open_encoder(run.recipe, run.state)
    model = assemble(run.recipe, run.state, config, STAGES[:-1] if before_joint else STAGES)
    if before_joint:
        fix_scale(model)
    places = tensor_places(model)
    with ShardWriter(output, config, tokenizer=run.state.tokenizer, shard_bytes=SHARD_BYTES) as writer:
        for name in expected_tensors(config):
            writer.add(name, places[name].half().contiguous())
