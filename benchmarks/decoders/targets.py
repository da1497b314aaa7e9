"""What is to be reached beside other decoders."""

from __future__ import annotations

from benchmarks.peers.targets import Target

BATCHES = (1, 8, 32)
OVER_TRANSFORMERS = {
    batch: Target(f"tokens/s at batch {batch}, over transformers' continuous batching", 1.0)
    for batch in BATCHES
}
OVER_VLLM = {batch: Target(f"tokens/s at batch {batch}, over vLLM's CPU build", 1.0) for batch in BATCHES}
OVER_LLAMACPP = {
    1: Target("tokens/s at batch 1, over llama.cpp in F32", 0.8),
    8: Target("tokens/s at batch 8, over llama.cpp in F32", 1.0),
}
