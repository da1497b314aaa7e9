"""What is to be reached, in the issue's words."""

from __future__ import annotations

from benchmarks.peers.targets import Target

WHISPER_FLOOR = Target("Whisper encoder's time, over its operations at its products' rate", 1.3, False)
WAVLM_FLOOR = Target("WavLM encoder's time, over its operations at its products' rate", 1.3, False)
WHISPER_STOCK = Target("Whisper encoder's time, over transformers' on the same clip", 1.0, False)
WAVLM_STOCK = Target("WavLM encoder's time, over transformers' on the same clip", 1.0, False)
PREFILL_FLOOR = Target("prefill's time, over its operations at its products' rate", 1.5, False)
DECODE_FLOOR = Target("a decode step's time at batch 1, over its weights' products back to back", 1.25, False)

FLOORS = {
    "whisper": WHISPER_FLOOR,
    "wavlm": WAVLM_FLOOR,
    "prefill": PREFILL_FLOOR,
    "decode 1": DECODE_FLOOR,
}
STOCKS = {"whisper": WHISPER_STOCK, "wavlm": WAVLM_STOCK}
"""By stage."""
