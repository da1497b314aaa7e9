"""Peak memory of `wavllm convert`: a checkpoint of random weights, converted in a child process.

    python benchmarks/convert_memory.py [--gigabytes 2] [--directory /tmp]

Prints, for each output dtype, the checkpoint's size, the child's peak resident memory (interpreter and
imports included) and the quotient, which the project promises to keep under a quarter. Making the checkpoint
takes its size in memory, in another child.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import sentencepiece
import torch

from model.checkpoint_format import expected_tensors
from model.config import LlamaConfig, LoraConfig, SpeechLLMConfig
from model.convert import convert_published
from model.convert_names import published_name

GIGABYTE = 10**9
VOCAB_SIZE = 2048
HIDDEN_SIZE = 2048
LAYER_BYTES = 4 * (4 * HIDDEN_SIZE**2 + 3 * HIDDEN_SIZE * 5504)


def main() -> int:
    """Measure both dtypes; exit status 1 if a quotient reaches a quarter."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.0, help="least size of the checkpoint")
    parser.add_argument("--directory", type=Path, default=None, help="where to make the temporary files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="convert_memory.", dir=options.directory) as made:
        work = Path(made)
        # children do all the work: what forks or spawns from a large parent inherits its peak
        _in_child(_prepare, work, options.gigabytes)
        quotients = [_in_child(_measure, work, dtype) for dtype in (None, "bfloat16")]
    return int(max(quotients) >= 0.25)


def _in_child(function: Any, *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _measure(work: Path, dtype: str | None) -> float:
    """Convert in this process and print its peak."""
    output = work / "out"
    start = time.perf_counter()
    imported = _peak_bytes()
    convert_published(
        work / "final.pt", work / "tokenizer.model", output, spec=work / "spec.json", dtype=dtype
    )
    seconds = time.perf_counter() - start
    size, peak = (work / "final.pt").stat().st_size, _peak_bytes()
    shutil.rmtree(output)
    sys.stdout.write(
        f"dtype {dtype or 'kept':9} file {size / 1e6:8.1f} MB  peak {peak / 1e6:6.1f} MB "
        f"(imports alone {imported / 1e6:.1f})  quotient {peak / size:.3f}  {seconds:.1f} s\n"
    )
    sys.stdout.flush()
    return peak / size


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _prepare(work: Path, gigabytes: float) -> None:
    """Write checkpoint, spec and tokenizer into `work`."""
    config = _config(gigabytes)
    _write_tokenizer(work)
    (work / "spec.json").write_text(json.dumps(_spec(config)), encoding="utf-8")
    state = {published_name(name): torch.empty(shape) for name, shape in expected_tensors(config).items()}
    for tensor in state.values():
        tensor.normal_()
    torch.save({"args": argparse.Namespace(arch="speechllm_model"), "model": state}, work / "final.pt")


def _config(gigabytes: float) -> SpeechLLMConfig:
    """LLaMA layers of the shapes of a small real model, as many as fill the file."""
    layers = int(gigabytes * GIGABYTE / LAYER_BYTES) + 1
    llama = LlamaConfig(HIDDEN_SIZE, layers, 16, 5504, VOCAB_SIZE)
    return replace(SpeechLLMConfig.tiny(), llama=llama, lora=LoraConfig(32))


def _spec(config: SpeechLLMConfig) -> dict[str, Any]:
    data = config.to_json()
    del data["llama"]["suppress_token_ids"]
    return {name: data[name] for name in ("whisper", "wavlm", "llama")}


def _write_tokenizer(work: Path) -> None:
    """A byte-level model of exactly VOCAB_SIZE pieces, learnt from made-up words."""
    words = (f"w{number:x}{number * 7919 % 65536:x}" for number in range(30_000))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=words,
        model_prefix=str(work / "tokenizer"),
        vocab_size=VOCAB_SIZE,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )


if __name__ == "__main__":
    sys.exit(main())
