"""transformers' continuous batching over a pipe.

    python -m benchmarks.decoders.transformers_worker FOLDER N BATCH

N: tokens that the largest batch needs in the cache, which transformers sizes by itself on a GPU alone.
"""

from __future__ import annotations

import logging
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.decoders.piped import Prompts, own_stdout, serve

PAGE_TOKENS = 32
NO_TOKEN = -1
"""Stands for EOS: every answer has all its tokens."""


def main() -> None:
    """Load, then serve."""
    pipe = own_stdout()
    # generate_batch warns at every call that its manager is kept.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    folder, num_cached, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    batching = ContinuousBatchingConfig(
        page_size=PAGE_TOKENS,
        num_blocks=2 * num_cached // PAGE_TOKENS,
        max_batch_tokens=num_cached,
        max_requests_per_batch=batch,
    )

    def decode(prompts: Prompts, num_tokens: int) -> list[list[int]]:
        greedy = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=num_tokens, do_sample=False, eos_token_id=NO_TOKEN, pad_token_id=0
        )
        outputs = model.generate_batch(prompts, greedy, batching, persistent_manager=True)
        return [list(output.generated_tokens) for output in outputs.values()]

    serve(decode, pipe, {"transformers": transformers.__version__, "torch": torch.__version__})


if __name__ == "__main__":
    main()
