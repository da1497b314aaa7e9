"""espeak-ng in this process, through its shared library: many formant voices, full control of prosody.

The library keeps the state of its oscillators and noise between utterances, so the same text would sound a
little different each time. Loading it anew for every utterance (4 ms) makes the output a function of the
input alone.
"""

from __future__ import annotations

import _ctypes
import ctypes
import math
import threading

import numpy as np

from training.voice_types import Delivery, EngineMissingError, Voice, Waveform

ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-029")  # "en" is British
HELD_OUT_ACCENTS = ("en-gb-x-gbcwmd", "en-us-nyc")
# Variants too close to another (iven3 to iven, aunty to the held-out f4) are left out, as are the robots.
VARIANTS = (
    *("f1", "f2", "f3", "f5", "Alicia", "Andrea", "Annie", "anika", "linda"),
    *("m1", "m2", "m3", "m4", "m7", "m8", "Alex", "Andy", "Denis", "Diogo", "Gene", "Hugo"),
    *("Jacky", "Lee", "Marco", "Mario", "Michael", "Mike", "Nguyen", "Reed", "adam", "antonio"),
    *(
        "boris",
        "caleb",
        "david",
        "ed",
        "edward",
        "gustave",
        "ian",
        "iven",
        "john",
        "klatt",
        "klatt2",
        "klatt4",
    ),
    *("marcelo", "max", "norbert", "pablo", "pedro", "rob", "robert", "sandro", "shelby"),
    *("travis", "victor", "zac"),
)
HELD_OUT_VARIANTS = ("f4", "belinda", "steph", "m6", "paul", "quincy")

WORDS_PER_MINUTE = 165  # espeak's tempo at rate 1; its default of 175 is brisk
SLOWEST_WPM, FASTEST_WPM = 80, 450
HEADROOM_VOLUME = 60  # of 100, espeak's default; the loud variants clip there
SYNCHRONOUS_OUTPUT = 2
DO_NOT_EXIT = 0x8000
UTF8 = 1
BY_CHARACTER = 1
RATE, VOLUME, PITCH, RANGE = 1, 2, 3, 4  # espeak_PARAMETER

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_one_at_a_time = threading.Lock()  # the library is full of globals


def train_voices() -> list[Voice]:
    """Every training variant in every training accent."""
    return [Voice("espeak", f"{accent}+{variant}") for variant in VARIANTS for accent in ACCENTS]


def held_out_voices() -> list[Voice]:
    """Variants training never hears, in all accents, two of which it never hears either."""
    accents = ACCENTS + HELD_OUT_ACCENTS
    return [Voice("espeak", f"{accent}+{variant}") for variant in HELD_OUT_VARIANTS for accent in accents]


class EspeakEngine:
    """Speaks with espeak-ng; needs the package espeakng-loader, which carries library and data."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise EngineMissingError("espeak voices need the package espeakng-loader") from error
        self._library_path: str = espeakng_loader.get_library_path()
        self._data_path: bytes = espeakng_loader.get_data_path().encode()

    def speak(self, text: str, name: str, delivery: Delivery) -> tuple[Waveform, int]:
        """See `Engine.speak`; `name` is an accent and a variant, as in "en-us+f2"."""
        with _one_at_a_time:
            library = ctypes.CDLL(self._library_path)
            try:
                return self._speak_with(library, text, name, delivery)
            finally:
                library.espeak_Terminate()
                _ctypes.dlclose(library._handle)  # forgets the state; see the module's text

    def _speak_with(
        self, library: ctypes.CDLL, text: str, name: str, delivery: Delivery
    ) -> tuple[Waveform, int]:
        sample_rate = int(library.espeak_Initialize(SYNCHRONOUS_OUTPUT, 0, self._data_path, DO_NOT_EXIT))
        if sample_rate <= 0:
            raise EngineMissingError("espeak-ng did not start; reinstall the package espeakng-loader")
        if library.espeak_SetVoiceByName(name.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {name!r}")
        for parameter, value in _parameters(delivery).items():
            library.espeak_SetParameter(parameter, value, 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        pieces: list[bytes] = []

        def collect(samples: int | None, count: int, events: int | None) -> int:
            if samples and count > 0:
                pieces.append(ctypes.string_at(samples, 2 * count))
            return 0

        callback = _Callback(collect)
        library.espeak_SetSynthCallback(callback)
        encoded = text.encode()
        size = ctypes.c_size_t(len(encoded) + 1)
        if library.espeak_Synth(encoded, size, 0, BY_CHARACTER, 0, UTF8, None, None) != 0:
            raise RuntimeError(f"espeak-ng could not speak {text!r}")
        samples = np.frombuffer(b"".join(pieces), dtype="<i2")
        return samples.astype(np.float32) / 32768.0, sample_rate


def _parameters(delivery: Delivery) -> dict[int, int]:
    """espeak's settings; its pitch is a scale of 0..100 around 50 on which 65 steps are an octave."""
    wpm = round(WORDS_PER_MINUTE * delivery.rate)
    pitch = round(50 + 65 * math.log2(delivery.pitch))
    return {
        RATE: min(max(wpm, SLOWEST_WPM), FASTEST_WPM),
        VOLUME: HEADROOM_VOLUME,
        PITCH: min(max(pitch, 0), 100),
        RANGE: min(max(round(50 * delivery.pitch_range), 0), 100),
    }
