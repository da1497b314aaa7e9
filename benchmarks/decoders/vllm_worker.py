"""vLLM's offline engine over a pipe. Runs in vLLM's own environment.

    python -m benchmarks.decoders.vllm_worker FOLDER TOKENS BATCH

TOKENS: of a prompt and its answer.
"""

from __future__ import annotations

import sys

import torch
import vllm
from vllm import LLM, SamplingParams

from benchmarks.decoders.piped import Prompts, own_stdout, serve


def main() -> None:
    """Load, then serve."""
    pipe = own_stdout()
    folder, tokens, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    engine = LLM(
        folder,
        dtype="float32",
        max_model_len=tokens,
        max_num_seqs=batch,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
    )

    def decode(prompts: Prompts, num_tokens: int) -> list[list[int]]:
        greedy = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = engine.generate(asked, greedy, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    serve(decode, pipe, {"vllm": vllm.__version__, "torch": torch.__version__})


if __name__ == "__main__":
    main()
