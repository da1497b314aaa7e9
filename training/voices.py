"""Text and a voice in, a 16 kHz waveform out, the same every time: the speech of the training data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import soxr

from training import voices_espeak, voices_flite, voices_neural
from training.voice_types import Delivery, Engine, EngineMissingError, Sex, Voice, Waveform

__all__ = [
    "SAMPLE_RATE",
    "Delivery",
    "EngineMissingError",
    "Sex",
    "Synthesizer",
    "Voice",
    "held_out_voices",
    "train_voices",
]

SAMPLE_RATE = 16_000
SPEECH_RMS = 0.06  # of full scale, about -24 dB, at volume 1
PEAK = 0.99
FRAME = 160  # 10 ms
EDGE_FRAMES = 4  # of silence kept at either end
SILENCE_BELOW = 0.01  # of the loudest frame's amplitude: -40 dB

_ENGINES: dict[str, Callable[[], Engine]] = {
    "espeak": voices_espeak.EspeakEngine,
    "hibari": voices_neural.HibariEngine,
    "piper": voices_neural.PiperEngine,
    "flite": voices_flite.FliteEngine,
}
_HELD_OUT: dict[str, Callable[[], list[Voice]]] = {
    "espeak": voices_espeak.held_out_voices,
    "piper": voices_neural.held_out_voices,
    "flite": voices_flite.held_out_voices,
}


def train_voices() -> list[Voice]:
    """The voices a model may be trained on."""
    return voices_espeak.train_voices() + voices_neural.train_voices()


def held_out_voices(engine: str) -> list[Voice]:
    """The test voices of an engine ("espeak", "piper" or "flite"), none of which is in training."""
    if engine not in _HELD_OUT:
        raise ValueError(f"no voices of {engine!r} are held out; known: {', '.join(_HELD_OUT)}")
    return _HELD_OUT[engine]()


class Synthesizer:
    """Speaks text with any voice, opening each engine when first used; make one per process."""

    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}

    def __call__(self, text: str, voice: Voice, delivery: Delivery | None = None) -> Waveform:
        """The waveform [T] at 16 kHz, its edges trimmed to at most 60 ms of silence.

        Raises ValueError where the voice has nothing to say (a text of punctuation only).
        """
        how = delivery or Delivery()
        compensated = replace(how, rate=how.rate / voice.shift)
        wave, sample_rate = self._engine(voice.engine).speak(text, voice.name, compensated)
        if sample_rate * voice.shift != SAMPLE_RATE and len(wave):
            wave = soxr.resample(wave, sample_rate * voice.shift, SAMPLE_RATE, quality="MQ")
        return _level(_trim(wave, text), how.volume)

    def _engine(self, name: str) -> Engine:
        if name not in self._engines:
            if name not in _ENGINES:
                raise ValueError(f"no engine {name!r}; known: {', '.join(_ENGINES)}")
            self._engines[name] = _ENGINES[name]()
        return self._engines[name]


def _frame_rms(wave: Waveform) -> Waveform:
    """Root mean square of each whole 10 ms frame [T // 160]."""
    frames = wave[: len(wave) // FRAME * FRAME].reshape(-1, FRAME)
    return np.sqrt(np.mean(frames**2, axis=1, dtype=np.float32))


def _trim(wave: Waveform, text: str) -> Waveform:
    """The wave from its first to its last audible frame, with 40 ms around it where there are."""
    levels = _frame_rms(wave)
    audible = np.flatnonzero(levels > SILENCE_BELOW * levels.max(initial=0.0))
    if audible.size == 0:
        raise ValueError(f"nothing to hear in {text!r}")
    first = max(int(audible[0]) - EDGE_FRAMES, 0) * FRAME
    last = (int(audible[-1]) + 1 + EDGE_FRAMES) * FRAME
    return wave[first:last]


def _level(wave: Waveform, volume: float) -> Waveform:
    """The wave at the common loudness times `volume`, turned down where it would clip."""
    levels = _frame_rms(wave)
    speech = levels[levels > 0.1 * levels.max()]
    gain = SPEECH_RMS * volume / float(np.sqrt(np.mean(speech**2)))
    loudest = float(np.abs(wave).max()) * gain
    return np.ascontiguousarray(wave * np.float32(gain * min(1.0, PEAK / loudest)), dtype=np.float32)
