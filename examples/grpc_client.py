"""gRPC with grpc.aio: a deadline, a streamed answer, an upload in pieces, a cancelled call.

    python examples/grpc_client.py [CLIP [PROMPT [DEADLINE_S]]]

WAVLLM_GRPC says where the server is (127.0.0.1:50051), WAVLLM_API_KEY who asks, where there are keys. The
stubs are the server's own; elsewhere, make them of proto/wavllm/v1/speech.proto with grpc_tools.protoc.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from server.pb import speech_pb2 as pb
from server.pb.speech_pb2_grpc import SpeechChatStub

DEFAULT_CLIP = Path(__file__).parent / "clips" / "evening.flac"
CHUNK_BYTES = 64 * 1024


class Client:
    """Questions about clips. deadline_s: of each call; the server gives up when it has passed."""

    def __init__(self, channel: grpc.aio.Channel, deadline_s: float, api_key: str | None) -> None:
        self._stub = SpeechChatStub(channel)
        self._deadline_s = deadline_s
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()

    async def stream(self, clip: Path, prompt: str) -> None:
        """Print the answer as it is made."""
        request = pb.ChatRequest(audio=pb.Audio(data=clip.read_bytes()), prompt=prompt)
        call = self._stub.ChatStream(request, timeout=self._deadline_s, metadata=self._metadata)
        await _print_answer("streamed", call)

    async def upload(self, clip: Path, prompt: str) -> None:
        """Send the clip piece by piece, as a recorder would."""
        pieces = _pieces(clip, pb.ChatRequest(prompt=prompt))
        call = self._stub.ChatUpload(pieces, timeout=self._deadline_s, metadata=self._metadata)
        await _print_answer("uploaded", call)

    async def cancel(self, clip: Path, prompt: str) -> None:
        """Leave after the first event; the server frees the place at once."""
        request = pb.ChatRequest(audio=pb.Audio(data=clip.read_bytes()), prompt=prompt)
        call = self._stub.ChatStream(request, timeout=self._deadline_s, metadata=self._metadata)
        async for event in call:
            print(f"cancelled: {event.request_id} after `{event.WhichOneof('event')}`,", end=" ")
            break
        call.cancel()
        print("status", (await call.code()).name)


def _pieces(clip: Path, config: pb.ChatRequest) -> Iterator[pb.ChatUploadRequest]:
    """The messages of an upload: the request without its audio, then the audio's bytes."""
    yield pb.ChatUploadRequest(config=config)
    with clip.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield pb.ChatUploadRequest(chunk=chunk)


async def _print_answer(label: str, events: AsyncIterator[pb.ChatEvent]) -> None:
    print(f"{label}: ", end="")
    async for event in events:
        kind = event.WhichOneof("event")
        if kind == "delta":
            print(event.delta.text, end="", flush=True)
        elif kind == "done":
            done = event.done
            print(f"\n({done.finish_reason}, {done.usage.completion_tokens} tokens)")


def describe(error: grpc.aio.AioRpcError) -> str:
    """A refusal in one line, with what the server added to its status: code, field, when to try again."""
    words = [f"{error.code().name}: {error.details()}"]
    metadata: Any = error.trailing_metadata()
    packed = dict(metadata).get("grpc-status-details-bin", b"")
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status_pb2.Status.FromString(packed).details:
        if detail.Unpack(info):
            words.append(f"code {info.reason}")
        elif detail.Unpack(bad):
            words.append(f"field {bad.field_violations[0].field}")
        elif detail.Unpack(retry):
            words.append(f"try again in {retry.retry_delay.ToTimedelta().total_seconds():g} s")
    return ", ".join(words)


async def run(clip: Path, prompt: str, deadline_s: float) -> int:
    """Ask in each way. Returns the exit status."""
    target = os.environ.get("WAVLLM_GRPC", "127.0.0.1:50051")
    async with grpc.aio.insecure_channel(target) as channel:
        client = Client(channel, deadline_s, os.environ.get("WAVLLM_API_KEY"))
        try:
            await client.stream(clip, prompt)
            await client.upload(clip, prompt)
            await client.cancel(clip, prompt)
        except grpc.aio.AioRpcError as error:
            print(describe(error), file=sys.stderr)
            return 1
    return 0


def main(arguments: list[str]) -> int:
    """Run with the arguments of the command line. Returns the exit status."""
    clip = Path(arguments[0]) if arguments else DEFAULT_CLIP
    prompt = arguments[1] if len(arguments) > 1 else "What is said?"
    deadline_s = float(arguments[2]) if len(arguments) > 2 else 60.0
    return asyncio.run(run(clip, prompt, deadline_s))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
