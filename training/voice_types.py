"""What the speech engines of the training data share: a voice, a delivery and an engine's interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Waveform = npt.NDArray[np.float32]
Sex = Literal["female", "male"]

PROSODY_ENGINES = frozenset({"espeak", "hibari"})
SINGLE_SEX: dict[str, Sex] = {
    "hibari/heart": "female",
    "hibari/heart+baritone": "male",
    "piper/joe": "male",
    "flite/slt": "female",
    "flite/rms": "male",
    "flite/awb": "male",
    "flite/kal": "male",
    "flite/kal16": "male",
}
FEMALE_VARIANTS = frozenset(
    {"f1", "f2", "f3", "f4", "f5", "Alicia", "Andrea", "Annie", "anika", "belinda", "linda", "steph"}
)
UNCLEAR_VARIANTS = frozenset({"caleb", "shelby", "zac"})  # listed as male, with a child's or a woman's pitch


class EngineMissingError(RuntimeError):
    """A speech engine is not installed; the message names the package to install."""


@dataclass(frozen=True, slots=True)
class Voice:
    """One voice of one engine.

    `shift` resamples the output: above 1 moves pitch and formants up together, which makes another apparent
    speaker of the same voice; the tempo is compensated.
    """

    engine: str  # "espeak", "hibari", "piper" or "flite"
    name: str  # the engine's own name, for example "en-us+f2"
    shift: float = 1.0

    @property
    def speaker(self) -> str:
        """Who is speaking, whatever the accent: espeak's accents of one variant share a vocal tract."""
        base = self.name.partition("+")[2] if self.engine == "espeak" else self.name
        return f"{self.engine}/{base}" + ("" if self.shift == 1.0 else f"*{self.shift:g}")

    @property
    def accent(self) -> str:
        """The accent's language tag, for example "en-us" or "en-gb-scotland"."""
        return self.name.partition("+")[0] if self.engine == "espeak" else "en-us"

    @property
    def sex(self) -> Sex | None:
        """The speaker's apparent sex; None where a changed pitch leaves it unclear."""
        if self.engine == "espeak":
            variant = self.name.partition("+")[2]
            if variant in UNCLEAR_VARIANTS:
                return None
            return "female" if variant in FEMALE_VARIANTS else "male"
        known = SINGLE_SEX.get(f"{self.engine}/{self.name}")
        moved_across = (known == "female" and self.shift < 0.92) or (known == "male" and self.shift > 1.1)
        return None if moved_across else known

    @property
    def supports_prosody(self) -> bool:
        """Whether a delivery's pitch and pitch range take effect (rate and volume always do)."""
        return self.engine in PROSODY_ENGINES


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a sentence is spoken; every number is relative to the voice's normal and 1 leaves it alone."""

    rate: float = 1.0  # tempo; 2 is twice as fast
    pitch: float = 1.0  # mean fundamental frequency
    pitch_range: float = 1.0  # intonation: 0.2 is monotone, 2 is lively
    volume: float = 1.0  # amplitude


class Engine(Protocol):
    """A speech engine, open for use."""

    def speak(self, text: str, name: str, delivery: Delivery) -> tuple[Waveform, int]:
        """The waveform [T] in -1..1 and its sample rate in Hz; the volume is the caller's business."""
        ...
