"""flite's voices, held out: diphone and clustergen synthesis, which training never hears."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import soundfile

from training.voice_types import Delivery, EngineMissingError, Voice, Waveform

NAMES = ("slt", "rms", "awb", "kal", "kal16")
TIMEOUT_SECONDS = 60


def held_out_voices() -> list[Voice]:
    """All of flite's general voices; kal and kal16 are one speaker at two sample rates."""
    return [Voice("flite", name) for name in NAMES]


class FliteEngine:
    """Speaks with the command flite (Debian's package of that name)."""

    def __init__(self) -> None:
        command = shutil.which("flite")
        if command is None:
            raise EngineMissingError("flite voices need the command flite (Debian package flite)")
        self._command = command

    def speak(self, text: str, name: str, delivery: Delivery) -> tuple[Waveform, int]:
        """See `Engine.speak`; pitch and pitch range are ignored, as the voices disagree about them."""
        if name not in NAMES:
            raise ValueError(f"flite has no voice {name!r}")
        stretch = f"duration_stretch={1.0 / delivery.rate:.4f}"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "speech.wav"  # flite seeks in its output, so a pipe will not do
            arguments = [self._command, "-voice", name, "--setf", stretch, "-t", text, "-o", str(path)]
            subprocess.run(arguments, check=True, capture_output=True, timeout=TIMEOUT_SECONDS)
            wave, sample_rate = soundfile.read(path, dtype="float32")
        return wave, int(sample_rate)
