"""Loaded by schemathesis: clips, which no JSON Schema describes, and what a form can carry.

The clips are plain ASCII, so that they can be texts: schemathesis 4.32 fails on bytes in negative forms.
"""

from __future__ import annotations

import base64
import io
import json
import wave
from typing import Any

import schemathesis
from hypothesis import strategies as st

FORM = "multipart/form-data"
TEXTS = {"prompt", "system", "model", "stop", "user", "stream_include_usage", "chunking_strategy", "language"}


def ascii_clip(num_bytes: int) -> str:
    """An 8-bit WAV file at 8 kHz; num_bytes must not hold a byte over 127."""
    file = io.BytesIO()
    with wave.open(file, "wb") as clip:
        clip.setnchannels(1)
        clip.setsampwidth(1)
        clip.setframerate(8000)
        clip.writeframes(bytes(index % 100 for index in range(num_bytes)))
    return file.getvalue().decode("ascii")


CLIPS = [ascii_clip(2048), ascii_clip(4096)]

schemathesis.openapi.format("binary", st.sampled_from(CLIPS))
schemathesis.openapi.format(
    "byte", st.sampled_from([base64.b64encode(clip.encode()).decode() for clip in CLIPS])
)


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Leave out options of a stream that is not asked for, which are refused though no schema says so; and of
    forms, which carry text alone, cases that are meant to be wrong but whose text is right.
    """
    if not isinstance(case.body, dict):
        return True
    if case.body.get("stream_options") is not None and case.body.get("stream") not in (True, "true"):
        return False
    return case.media_type != FORM or all(reads_as_meant(name, value) for name, value in case.body.items())


def reads_as_meant(name: str, value: object) -> bool:
    """Whether the field's text stands for this value and no other."""
    if name.endswith("[]"):
        return isinstance(value, list) and value != [] and all(isinstance(item, str) for item in value)
    if name in TEXTS:
        return isinstance(value, str)
    if isinstance(value, list):
        return False
    return not (isinstance(value, str) and name != "file" and is_json(value))


def is_json(text: str) -> bool:
    """Whether the text is a number, true, false, null or the like."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
