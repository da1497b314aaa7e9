"""Seeded changes to 16 kHz waves that stand for rooms, microphones, lines and noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import soxr
from scipy.signal import butter, fftconvolve, sosfilt

Waveform = npt.NDArray[np.float32]

SAMPLE_RATE = 16_000
NOISES = ("white", "pink", "babble", "hum")
TELEPHONE_BAND_HZ = (300.0, 3400.0)
QUIETEST_RMS = 1e-5  # below this a wave is silence and noise cannot be set against it
_TELEPHONE = butter(4, TELEPHONE_BAND_HZ, btype="bandpass", fs=SAMPLE_RATE, output="sos")


def rms(wave: Waveform) -> float:
    """Root mean square of a wave [T]."""
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) if len(wave) else 0.0


def gain(wave: Waveform, decibels: float) -> Waveform:
    """The wave made louder by `decibels`, without going past full scale."""
    return _float32(np.clip(wave * 10.0 ** (decibels / 20.0), -1.0, 1.0))


def noise(kind: str, samples: int, rng: np.random.Generator) -> Waveform:
    """`samples` of noise of one of `NOISES`, at a root mean square of 1."""
    makers: dict[str, Callable[[int, np.random.Generator], npt.NDArray[np.float64]]] = {
        "white": lambda count, source: source.standard_normal(count),
        "pink": _pink,
        "babble": _babble,
        "hum": _hum,
    }
    made = _float32(makers[kind](samples, rng))
    return made / np.float32(max(rms(made), QUIETEST_RMS))


def add_noise(wave: Waveform, kind: str, snr_db: float, rng: np.random.Generator) -> Waveform:
    """The wave [T] with noise `snr_db` below its mean level; turned down where the sum would clip."""
    level = rms(wave)
    if level < QUIETEST_RMS:
        return wave
    noisy = wave + noise(kind, len(wave), rng) * np.float32(level * 10.0 ** (-snr_db / 20.0))
    return _within_scale(noisy)


def reverb(wave: Waveform, decay_seconds: float, wet: float, rng: np.random.Generator) -> Waveform:
    """The wave [T] in a room, -60 dB after `decay_seconds`; `wet` is the echo's level to the sound's."""
    count = max(int(decay_seconds * SAMPLE_RATE), 2)
    tail = rng.standard_normal(count) * np.exp(-6.9 * np.arange(count) / count)
    tail[: SAMPLE_RATE // 500] = 0.0  # nothing comes back within 2 ms
    energy = float(np.sqrt(np.sum(tail**2)))
    if energy == 0.0:
        return wave
    response = _float32(tail * (wet / energy))
    response[0] = 1.0
    return _within_scale(fftconvolve(wave, response)[: len(wave)])


def telephone(wave: Waveform) -> Waveform:
    """The wave through a telephone's band."""
    return _float32(sosfilt(_TELEPHONE, wave))


def change_speed(wave: Waveform, factor: float) -> Waveform:
    """The wave played `factor` times as fast, tempo and pitch together: [T / factor]."""
    return _float32(soxr.resample(wave, SAMPLE_RATE * factor, SAMPLE_RATE, quality="MQ"))


def clip(wave: Waveform, fraction: float) -> Waveform:
    """The wave with everything above `fraction` of its peak cut off."""
    limit = fraction * float(np.abs(wave).max(initial=0.0))
    return _float32(np.clip(wave, -limit, limit))


def augment(wave: Waveform, rng: np.random.Generator, strength: float) -> Waveform:
    """A random mix of these changes to a wave [T], fixed by `rng`'s state.

    `strength` of 0 changes nothing; 1 gives reverberation, noise down to 5 dB and the odd telephone. The
    length stays, except where the speed changes (by 8 percent at most).
    """
    if strength <= 0.0 or len(wave) == 0:
        return wave
    amount = min(strength, 1.0)
    if rng.random() < 0.3 * amount:
        wave = change_speed(wave, 1.0 + 0.08 * amount * rng.uniform(-1.0, 1.0))
    if rng.random() < 0.4 * amount:
        wave = reverb(wave, rng.uniform(0.1, 0.2 + 0.5 * amount), rng.uniform(0.1, 0.2 + 0.5 * amount), rng)
    if rng.random() < 0.6 * amount:
        wave = add_noise(wave, str(rng.choice(NOISES)), rng.uniform(25.0 - 20.0 * amount, 35.0), rng)
    if rng.random() < 0.15 * amount:
        wave = telephone(wave)
    if rng.random() < 0.1 * amount:
        wave = clip(wave, rng.uniform(1.0 - 0.6 * amount, 1.0))
    return gain(wave, amount * rng.uniform(-12.0, 6.0))


def _pink(samples: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Noise whose power falls by 3 dB an octave."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    shaped: npt.NDArray[np.float64] = np.fft.irfft(
        spectrum / np.sqrt(np.arange(len(spectrum)) + 1.0), samples
    )
    return shaped


def _babble(samples: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Noise like many people at a distance: speech's spectrum, swelling a few times a second."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    hertz = np.fft.rfftfreq(samples, 1.0 / SAMPLE_RATE)
    shape = (hertz / 200.0) / (
        1.0 + (hertz / 500.0) ** 2
    )  # highest at a few hundred Hz, then 6 dB an octave down
    steps = samples // (SAMPLE_RATE // 4) + 2
    swell = np.interp(np.linspace(0, steps - 1, samples), np.arange(steps), rng.uniform(0.4, 1.6, steps))
    shaped: npt.NDArray[np.float64] = np.fft.irfft(spectrum * shape, samples) * swell
    return shaped


def _hum(samples: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Mains hum of 50 or 60 Hz with harmonics, over a little hiss."""
    time = np.arange(samples) / SAMPLE_RATE
    base = float(rng.choice([50.0, 60.0]))
    hum = 0.05 * rng.standard_normal(samples)
    for harmonic in range(1, 7):
        hum += np.sin(2 * np.pi * (base * harmonic * time + rng.random())) * rng.uniform(0.2, 1.0) / harmonic
    return hum


def _within_scale(wave: npt.NDArray[np.floating]) -> Waveform:
    """The wave turned down where it passes full scale."""
    peak = float(np.abs(wave).max(initial=0.0))
    return _float32(wave if peak <= 1.0 else wave / peak)


def _float32(wave: npt.NDArray[np.floating]) -> Waveform:
    return np.asarray(wave, dtype=np.float32)
