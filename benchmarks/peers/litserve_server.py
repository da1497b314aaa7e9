"""FastAPI and LitServe around the script, with LitServe's batching and streaming: a server of its own.

    python -m benchmarks.peers.litserve_server --model DIR --port 8001

`POST /predict` takes {"audio": base64, "prompt": text, "max_tokens": number} and streams a line of JSON for
each token: {"token_id": number, "text": what it adds}. Needs litserve (`make bench-env`).
"""

# Without `from __future__ import annotations`: LitServe compares annotations with classes.
import argparse
import base64
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import litserve
from fastapi import Request

from benchmarks.peers.questions import LIMITS
from benchmarks.peers.script import OnStep, Script, Spoken
from server.audio_decode import decode_audio


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, decoded."""

    spoken: Spoken
    num_tokens: int


class SpeechApi(litserve.LitAPI):  # type: ignore[misc]  # not looked into
    """The script behind LitServe: waiting requests are answered as one padded batch, step by step."""

    def __init__(self, model: Path, max_batch: int, wait_s: float) -> None:
        super().__init__(max_batch_size=max_batch, batch_timeout=wait_s, stream=True)
        self._model = model

    def setup(self, device: str) -> None:
        """Load the weights, in LitServe's worker process, and answer once."""
        self._script = Script(self._model)
        self._thread = ThreadPoolExecutor(1, "generate")

    def decode_request(self, request: Request, **kwargs: Any) -> Asked:
        """Audio file to samples. The annotation asks LitServe for the request's JSON, which is what comes."""
        audio = decode_audio(base64.b64decode(request["audio"]), LIMITS)
        return Asked(Spoken(audio.waveform, request["prompt"]), request["max_tokens"])

    def predict(self, x: Sequence[Asked], **kwargs: Any) -> Iterator[list[int]]:
        """Each step's tokens, one a request."""
        prepared = self._script.prepare([asked.spoken for asked in x])
        longest = max(asked.num_tokens for asked in x)
        steps: queue.SimpleQueue[list[int] | None] = queue.SimpleQueue()
        work = self._thread.submit(self._generate, prepared, longest, steps.put)
        work.add_done_callback(lambda _: steps.put(None))
        yield from iter(steps.get, None)
        work.result()

    def encode_response(self, output: Iterator[list[int]], **kwargs: Any) -> Any:
        """Yields each step's lines, one a request. FastAPI would make a schema of a closer annotation."""
        said: list[list[int]] = []
        for tokens in output:
            said = said or [[] for _ in tokens]
            yield [self._line(ids, token) for ids, token in zip(said, tokens, strict=True)]

    def _generate(self, prepared: Any, num_tokens: int, on_step: OnStep) -> None:
        self._script.batch(prepared, num_tokens, on_step)

    def _line(self, ids: list[int], token: int) -> dict[str, Any]:
        """Adds `token` to the ids of one answer."""
        decode = self._script.tokenizer.decode
        before = decode(ids)
        ids.append(token)
        return {"token_id": token, "text": decode(ids)[len(before) :]}


def main() -> None:
    """Serve until SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--wait-ms", type=float, default=50.0, help="for a batch to fill")
    options = parser.parse_args()
    api = SpeechApi(options.model, options.max_batch, options.wait_ms / 1e3)
    server = litserve.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=1, timeout=False, fast_queue=True
    )
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
