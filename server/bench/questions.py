"""What is asked: a manifest, clips and instructions of the command line, or what there is without."""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from server.audio_decode import decode_audio
from server.audio_limits import AudioLimits
from server.bench.types import BenchError, Clip, Plan, Question
from server.errors import ServerError
from server.eval.manifest import read_manifest
from server.eval.types import EvalError, Progress

PROMPT = "What is said?"
EXAMPLES = Path(__file__).resolve().parents[2] / "tests" / "golden" / "audio"
"""Clips of a checkout; an installed package has none."""
SYNTHETIC_S = (1.0, 2.0, 4.0, 8.0)
SAMPLE_RATE = 16_000
_LIMITS = AudioLimits(max_seconds=3600.0)
_KINDS = {"wave": "wav", "oga": "ogg", "opus": "ogg", "mp4": "m4a"}


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions, no two alike, where they come from, and a remark for the operator or ""."""

    questions: tuple[Question, ...]
    source: str
    remark: str = ""

    def only(self, indices: Sequence[int]) -> Asked:
        """These alone, with a remark if that leaves any out."""
        if len(indices) == len(self.questions):
            return self
        fewer = f"the load asks {len(indices)} of {len(self.questions)} questions, and so does the reference"
        remark = f"{self.remark}; {fewer}" if self.remark else fewer
        return Asked(tuple(self.questions[index] for index in indices), self.source, remark)


def load_questions(plan: Plan, max_audio_s: float | None, on_progress: Progress) -> Asked:
    """Read and measure all clips. max_audio_s: the server's limit; only chosen clips heed it.

    Raises BenchError for files that are not there or are no audio.
    """
    if plan.manifest is not None:
        return Asked(
            _of_manifest(plan.manifest, plan.audio_root, on_progress), f"manifest {plan.manifest.name}"
        )
    prompts = plan.prompts or (PROMPT,)
    if plan.audio:
        clips = _clips(plan.audio, on_progress)
        return Asked(_all_pairs(clips, prompts), "files")
    return _default_questions(prompts, max_audio_s, on_progress)


def _of_manifest(manifest: Path, audio_root: Path | None, on_progress: Progress) -> tuple[Question, ...]:
    try:
        # Neither tasks nor references change anything here.
        rows = read_manifest(manifest, task="text", audio_root=audio_root, is_scored=False)
    except EvalError as error:
        raise BenchError(str(error)) from error
    files = list(dict.fromkeys(row.audio for row in rows))
    clips = dict(zip(files, _clips(files, on_progress), strict=True))
    distinct: dict[tuple[Path, str], Question] = {}
    for row in rows:
        question = Question(row.key, clips[row.audio], row.prompt)
        distinct.setdefault((row.audio, row.prompt), question)
    return tuple(distinct.values())


def _default_questions(prompts: Sequence[str], max_audio_s: float | None, on_progress: Progress) -> Asked:
    files = sorted(EXAMPLES.glob("*.wav")) if EXAMPLES.is_dir() else []
    clips = _clips(files, on_progress)
    fitting = [clip for clip in clips if max_audio_s is None or clip.seconds <= max_audio_s]
    if fitting:
        names = ", ".join(clip.name for clip in fitting)
        return Asked(
            _all_pairs(fitting, prompts), "examples", f"no --manifest or --audio: asking about {names}"
        )
    remark = "no --manifest or --audio: asking about synthetic tones and noise, in which nothing is said"
    clips = [synthetic_clip(seconds, seed) for seed, seconds in enumerate(SYNTHETIC_S)]
    fitting = [clip for clip in clips if max_audio_s is None or clip.seconds <= max_audio_s]
    return Asked(_all_pairs(fitting or clips[:1], prompts), "synthetic", remark)


def _all_pairs(clips: Sequence[Clip], prompts: Sequence[str]) -> tuple[Question, ...]:
    """Every clip with every instruction; a clip that is named twice is asked about once."""
    distinct = {(clip.data, prompt): (clip, prompt) for clip in clips for prompt in prompts}
    return tuple(Question(f"q{n}", clip, prompt) for n, (clip, prompt) in enumerate(distinct.values()))


def _clips(files: Sequence[Path], on_progress: Progress) -> list[Clip]:
    clips = []
    for number, file in enumerate(files, 1):
        clips.append(_clip(file))
        on_progress(number, len(files), file.name)
    return clips


def _clip(file: Path) -> Clip:
    try:
        data = file.read_bytes()
        seconds = decode_audio(data, _LIMITS).info.duration_s
    except OSError as error:
        raise BenchError(f"{file}: {error.strerror}") from error
    except ServerError as error:
        raise BenchError(f"{file}: {error.message}") from error
    suffix = file.suffix.lower().removeprefix(".") or "wav"
    return Clip(file.name, data, seconds, _KINDS.get(suffix, suffix))


def synthetic_clip(seconds: float, seed: int) -> Clip:
    """A 16-bit WAV of a wandering tone in noise, the same for the same seed."""
    generator = np.random.default_rng(seed)
    num_samples = round(seconds * SAMPLE_RATE)
    hertz = 200 + 100 * seed + 60 * np.sin(2 * np.pi * np.arange(num_samples) / SAMPLE_RATE)
    tone = 0.3 * np.sin(2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE)
    samples = tone + 0.05 * generator.standard_normal(num_samples)
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(SAMPLE_RATE)
        output.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return Clip(f"synthetic-{seed}.wav", file.getvalue(), seconds, "wav")
