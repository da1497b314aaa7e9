"""Scripts spoken by synthetic voices: shards of 16 kHz samples and a manifest line for each clip.

    state/speech/SPLIT/00012.npy     int16, the shard's clips end to end
    state/speech/SPLIT/00012.jsonl   one ClipRecord a line: text, voices, places of the lines, seed

A clip depends on (recipe seed, split, its number) alone, so shards are made in any order, by any number of
processes, and again after a crash.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.config import SAMPLE_RATE
from training.augment import augment
from training.progress import track
from training.recipe import KINDS, Recipe, State
from training.scripts import Choice, Line, Script, Split, draw_script, ordinary_script
from training.sentences import ordinary_sentences
from training.voices import Delivery, Synthesizer, Voice, train_voices

Wave = NDArray[np.float32]
PEAK = 32767
FRAME = 320
"""Samples of one encoder frame."""
MAX_TRIES = 8
GAPS = (0.12, 0.5)
"""Seconds of silence between two lines, whoever says them."""


@dataclass(frozen=True, slots=True)
class ClipRecord:
    """One clip of a manifest.

    voices: the voice of each of the script's speakers. spans: first and last sample of each line.
    offset: where the clip's samples begin in its shard. prosody: whether the voices can show an emotion.
    """

    id: str
    script: Script
    voices: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    offset: int
    num_samples: int
    prosody: bool
    seed: int

    @property
    def played_spans(self) -> tuple[tuple[int, int], ...]:
        """Where the lines are in the clip's samples, for one that augmentation made faster."""
        pace = self.num_samples / max(self.num_samples, self.spans[-1][1])
        return tuple((round(start * pace), round(stop * pace)) for start, stop in self.spans)

    def to_json(self) -> str:
        """One manifest line."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> ClipRecord:
        """Inverse of `to_json`."""
        data = json.loads(line)
        data["script"] = script_from_json(data["script"])
        data["voices"] = tuple(data["voices"])
        data["spans"] = tuple((start, stop) for start, stop in data["spans"])
        return cls(**data)


def script_from_json(data: dict[str, Any]) -> Script:
    """A Script out of the plain values that `dataclasses.asdict` made of it."""
    lines = tuple(Line(**line) for line in data["lines"])
    questions = tuple(
        Choice(choice["question"], tuple(choice["options"]), choice["correct"])
        for choice in data["questions"]
    )
    summary = None if data["summary"] is None else (data["summary"][0], data["summary"][1])
    return Script(data["kind"], lines, data["emotion"], questions, summary, data["answer"])


def delivery(emotion: str, rng: random.Random) -> Delivery:
    """How an emotion is spoken here: tempo, pitch, intonation and loudness, each with some play."""
    rate, pitch, pitch_range, volume = {
        "neutral": (1.0, 1.0, 1.0, 0.8),
        "happy": (1.12, 1.3, 1.8, 0.9),
        "sad": (0.76, 0.84, 0.35, 0.5),
        "angry": (1.2, 0.95, 1.4, 1.0),
    }[emotion]

    def play(value: float, width: float) -> float:
        return value * rng.uniform(1 - width, 1 + width)

    return Delivery(play(rate, 0.08), play(pitch, 0.06), play(pitch_range, 0.1), play(volume, 0.1))


def draw_kind(rng: random.Random, shares: Mapping[str, float] = KINDS) -> str:
    """A kind of script by its share."""
    return rng.choices(list(shares), list(shares.values()))[0]


def draw(rng: random.Random, kind: str, split: Split, sentences: Sequence[str]) -> Script:
    """A script of one kind. sentences: where ordinary ones come from."""
    if kind == "ordinary":
        return ordinary_script(rng.choice(sentences))
    return draw_script(kind, rng, split)


def choose_voices(script: Script, rng: random.Random, voices: Sequence[Voice]) -> tuple[Voice, ...]:
    """One voice for each speaker; two speakers of a script never share one, but do share an engine.

    Engines are drawn alike, however many voices they have. A marked emotion needs voices that can show it.
    """
    able = voices if script.emotion == "neutral" else [v for v in voices if v.supports_prosody]
    engine = rng.choice(sorted({voice.engine for voice in able}))
    pool = [voice for voice in able if voice.engine == engine]
    first = rng.choice(pool)
    if all(line.speaker == 0 for line in script.lines):
        return (first,)
    return first, rng.choice([voice for voice in pool if voice.speaker != first.speaker])


def speak(
    script: Script, voices: Sequence[Voice], rng: random.Random, synthesizer: Synthesizer
) -> tuple[Wave, tuple[tuple[int, int], ...]]:
    """Samples [T] at 16 kHz of a script, and where each line lies in them."""
    manner = delivery(script.emotion, rng)
    parts: list[Wave] = [silence(rng.uniform(0.02, 0.3))]
    spans = []
    for index, line in enumerate(script.lines):
        if index:
            parts.append(silence(rng.uniform(*GAPS)))
        start = sum(map(len, parts))
        parts.append(synthesizer(line.text, voices[line.speaker], manner))
        spans.append((start, start + len(parts[-1])))
    parts.append(silence(rng.uniform(0.02, 0.4)))
    return np.concatenate(parts), tuple(spans)


def silence(seconds: float) -> Wave:
    """[seconds * 16000] zeros."""
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


@dataclass(frozen=True, slots=True)
class Source:
    """What clips are drawn from: ordinary sentences, voices, and two limits."""

    sentences: Sequence[str]
    voices: Sequence[Voice]
    augmented: float
    max_samples: int

    @classmethod
    def of(cls, recipe: Recipe, split: str) -> Source:
        """Training voices for both splits: held-out voices belong to the evaluation."""
        text = ordinary_sentences("train" if split == "train" else "validation")
        return cls(text, train_voices(), recipe.augmented, recipe.window_seconds * SAMPLE_RATE)


def make_clip(
    identity: str, rng: random.Random, split: Split, synthesizer: Synthesizer, source: Source
) -> tuple[ClipRecord, Wave]:
    """Draw, speak and augment one clip that fits the window; its record has offset 0."""
    for _ in range(MAX_TRIES):
        script = draw(rng, draw_kind(rng), split, source.sentences)
        voices = choose_voices(script, rng, source.voices)
        wave, spans = speak(script, voices, rng, synthesizer)
        if len(wave) <= source.max_samples:
            break
    else:
        raise RuntimeError(f"clip {identity}: nothing short enough in {MAX_TRIES} draws")
    seed = rng.getrandbits(32)
    if rng.random() < source.augmented:
        wave = augment(wave, np.random.default_rng(seed), rng.uniform(0.2, 1.0))
    prosody = all(voice.supports_prosody for voice in voices)
    names = tuple(voice.speaker for voice in voices)
    return ClipRecord(identity, script, names, spans, 0, len(wave), prosody, seed), wave


def make_shard(number: int, recipe: Recipe, split: str, folder: Path) -> int:
    """Write shard `number` unless it is there. Returns the clips it holds."""
    manifest = folder / f"{number:05}.jsonl"
    total = recipe.num_clips if split == "train" else recipe.num_validation_clips
    ids = range(number * recipe.shard_clips, min((number + 1) * recipe.shard_clips, total))
    if manifest.exists():
        return len(ids)
    source, synthesizer = _opened(recipe, split)
    records, waves, offset = [], [], 0
    for index in ids:
        rng = random.Random(f"{recipe.seed}/{split}/{index}")
        record, wave = make_clip(
            f"{split}-{index:06}", rng, "train" if split == "train" else "test", synthesizer, source
        )
        records.append(dataclasses.replace(record, offset=offset))
        waves.append(np.round(np.clip(wave, -1, 1) * PEAK).astype(np.int16))
        offset += len(wave)
    with write_whole(folder / f"{number:05}.npy") as path, path.open("wb") as file:
        np.save(file, np.concatenate(waves))
    with write_whole(manifest) as path:
        path.write_text("".join(record.to_json() + "\n" for record in records), encoding="utf-8")
    return len(ids)


_OPEN: dict[str, tuple[Source, Synthesizer]] = {}
"""This process' engines: opening them takes seconds, and a worker makes many shards."""


def _opened(recipe: Recipe, split: str) -> tuple[Source, Synthesizer]:
    if split not in _OPEN:
        _OPEN[split] = Source.of(recipe, split), Synthesizer()
    return _OPEN[split]


class write_whole:
    """Context manager: a path to write to, renamed to `target` when the block ends well."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._partial = target.with_name(f".{target.name}.{os.getpid()}")

    def __enter__(self) -> Path:
        self._target.parent.mkdir(parents=True, exist_ok=True)
        return self._partial

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._partial.replace(self._target)
        else:
            self._partial.unlink(missing_ok=True)


def make_speech(recipe: Recipe, state: State, workers: int) -> None:
    """Synthesise what is missing of both splits, with a progress bar."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers) as pool:
        for split, total in (("train", recipe.num_clips), ("validation", recipe.num_validation_clips)):
            job = partial(make_shard, recipe=recipe, split=split, folder=state.shards("speech", split))
            shards = range(-(-total // recipe.shard_clips))
            with track(f"Speaking ({split})", total) as advance:
                for done in pool.imap_unordered(job, shards):
                    advance(done)


def read_manifest(path: Path) -> list[ClipRecord]:
    """Records of one shard."""
    return [ClipRecord.from_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_shard(folder: Path, number: int) -> Iterator[tuple[ClipRecord, Wave]]:
    """Records and samples [T] float32 of one shard."""
    samples = np.load(folder / f"{number:05}.npy", mmap_mode="r")
    for record in read_manifest(folder / f"{number:05}.jsonl"):
        clip = samples[record.offset : record.offset + record.num_samples]
        yield record, clip.astype(np.float32) / PEAK
