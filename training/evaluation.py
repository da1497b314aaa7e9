"""Test clips of held-out voices, sentences and phrasings, as manifests for `wavllm eval`.

    python -m training.evaluation DIRECTORY     DIRECTORY/<set>.tsv and DIRECTORY/<set>/*.flac

Nothing in them was trained on: voices of engines or variants kept apart, sentences and scenes of the test
split, spoken questions in a held-out wording.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import soundfile
import typer

from model.config import SAMPLE_RATE
from training.corpus import choose_voices, draw, speak
from training.phrasings import Part
from training.progress import track
from training.scripts import EMOTIONS, Script
from training.sentences import ordinary_sentences
from training.tasks import make_example, tasks_for
from training.voices import Synthesizer, Voice, held_out_voices

MAX_SECONDS = 10.0
HEADER = ("id", "audio", "prompt", "tgt_text", "task")
PUBLISHED = {
    "asr": "asr", "en2de": "en2de", "sv": "sv", "emotion": "emo", "sqa": "SQA", "content": "content",
    "sqqa": "SQQA", "summary": "summary", "ii": "ii", "cot": "cot", "text": "text",
    "refusal": "refusal",
}  # fmt: skip
"""Our tasks' names in manifests, which say how they are scored; published ones where those fit.

The published II-task and CoT-task give the last part as the reference; ours give all parts, as free text.
"""

Speakers = Literal["piper", "espeak", "flite"]


@dataclass(frozen=True, slots=True)
class TestSet:
    """One manifest. kinds: of scripts, taken in turn. phrasings: whether the instructions are held out too.

    like: draw the clips of another set, so that only the instructions differ.
    """

    name: str
    kinds: tuple[str, ...]
    speakers: Speakers
    task: str
    count: int = 150
    phrasings: Part = "train"
    like: str | None = None


SETS = (
    TestSet("asr-everyday-neural", ("everyday",), "piper", "asr"),
    TestSet("asr-everyday-espeak", ("everyday",), "espeak", "asr"),
    TestSet("asr-ordinary-flite", ("ordinary",), "flite", "asr"),
    TestSet("asr-held-out-phrasings", ("everyday",), "piper", "asr", 150, "held_out", "asr-everyday-neural"),
    TestSet("en2de-neural", ("everyday",), "piper", "en2de", like="asr-everyday-neural"),
    TestSet("en2de-espeak", ("everyday",), "espeak", "en2de", like="asr-everyday-espeak"),
    TestSet("sv-espeak", ("dialogue",), "espeak", "sv"),
    TestSet("emotion-espeak", ("everyday",), "espeak", "emotion"),
    TestSet("sqqa-neural", ("question",), "piper", "sqqa"),
    TestSet("sqqa-espeak", ("question",), "espeak", "sqqa"),
    TestSet("content-espeak", ("dialogue", "story"), "espeak", "content"),
    TestSet("sqa-espeak", ("dialogue", "story"), "espeak", "sqa", like="content-espeak"),
    TestSet("sqa-neural", ("story",), "piper", "sqa"),
    TestSet("summary-espeak", ("dialogue", "story"), "espeak", "summary", like="content-espeak"),
    TestSet("cot-neural", ("everyday",), "piper", "cot", like="asr-everyday-neural"),
    TestSet("cot-espeak", ("everyday",), "espeak", "cot", like="asr-everyday-espeak"),
    TestSet("ii-espeak", ("dialogue", "story", "everyday"), "espeak", "ii"),
    TestSet("odd-prompts", ("everyday",), "espeak", "refusal", 200, "held_out"),
)


def make_set(test: TestSet, folder: Path, synthesizer: Synthesizer) -> None:
    """Write one set's clips and manifest, unless it is there."""
    manifest = folder / f"{test.name}.tsv"
    if manifest.exists():
        return
    (folder / test.name).mkdir(parents=True, exist_ok=True)
    rows = []
    with track(test.name, test.count) as advance:
        for index in range(test.count):
            rows.append(make_row(test, index, folder, synthesizer))
            advance(1, "")
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
        writer.writerows([HEADER, *rows])


def make_row(test: TestSet, index: int, folder: Path, synthesizer: Synthesizer) -> Sequence[str]:
    """Speak one clip and word one instruction about it."""
    rng = random.Random(f"{test.like or test.name}/{index}")
    voices = held_out_voices(test.speakers)
    while True:
        script = _script(test, test.kinds[index % len(test.kinds)], rng)
        spoken = choose_voices(script, rng, _different(script, voices))
        wave, _ = speak(script, spoken, rng, synthesizer)
        if len(wave) <= MAX_SECONDS * SAMPLE_RATE and test.task in tasks_for(script):
            break
    example = make_example(test.task, script, random.Random(f"{test.name}/{index}/prompt"), test.phrasings)
    wanted = script.emotion if test.task == "emotion" else example.answer
    name = f"{test.name}-{index:03}"
    audio = f"{test.name}/{name}.flac"
    soundfile.write(folder / audio, np.clip(wave, -1, 1), SAMPLE_RATE)
    return name, audio, example.instruction, wanted, PUBLISHED[test.task]


def _script(test: TestSet, kind: str, rng: random.Random) -> Script:
    """A script of the test split, neutral but where the emotion is asked for."""
    script = draw(rng, kind, "test", ordinary_sentences("test"))
    return replace(script, emotion=rng.choice(EMOTIONS) if test.task == "emotion" else "neutral")


def _different(script: Script, voices: Sequence[Voice]) -> Sequence[Voice]:
    """flite's kal and kal16 are one person."""
    return [voice for voice in voices if voice.name != "kal"] if script.speakers > 1 else voices


def main(
    directory: Annotated[Path, typer.Argument(help="Where manifests and clips go.")],
    only: Annotated[str, typer.Option(help="Make the sets whose name begins so.")] = "",
) -> None:
    """Speak the test sets."""
    synthesizer = Synthesizer()
    for test in SETS:
        if test.name.startswith(only):
            make_set(test, directory, synthesizer)


if __name__ == "__main__":
    typer.run(main)
