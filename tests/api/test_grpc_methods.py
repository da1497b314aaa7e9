"""The four methods of SpeechChat, answered over a real channel."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from fakes import AUDIO_TOKENS, MODEL_NAME, PROMPT_TOKENS, FakeDecoder, FakeEngine, wav_clip
from grpc_harness import Harness, request, serving, upload

from server.pb import speech_pb2 as pb

TEXT = "Hello, wörld!"


async def events(call) -> list[pb.ChatEvent]:
    return [event async for event in call]


def text_of(stream: list[pb.ChatEvent]) -> str:
    return "".join(event.delta.text for event in stream)


def kinds(stream: list[pb.ChatEvent]) -> list[str]:
    return [event.WhichOneof("event") for event in stream]


async def test_chat_answers_with_every_field() -> None:
    async with serving() as server:
        answer = await server.stub.Chat(request(request_id="mine", generation={"return_token_ids": True}))
    assert (answer.request_id, answer.text, answer.finish_reason) == ("mine", TEXT, "stop")
    assert list(answer.token_ids) == [100, 101, 102, 103]
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (PROMPT_TOKENS + AUDIO_TOKENS, 4)
    assert usage.total_tokens == usage.prompt_tokens + 4
    assert (usage.prompt_tokens_details.audio_tokens, usage.prompt_tokens_details.cached_tokens) == (7, 0)
    assert (answer.audio.duration_s, answer.audio.sample_rate, answer.audio.channels) == (0.5, 16000, 1)
    assert (answer.timings.queue_ms, answer.timings.encode_ms) == (0.5, 0.25)
    assert 0 < answer.timings.ttft_ms <= answer.timings.total_ms
    assert answer.timings.decode_ms > 0


async def test_token_ids_come_only_when_asked_for() -> None:
    async with serving() as server:
        answer = await server.stub.Chat(request())
        stream = await events(server.stub.ChatStream(request()))
    assert not answer.token_ids
    assert all(not event.delta.token_ids for event in stream)


async def test_stream_is_accepted_deltas_done() -> None:
    async with serving() as server:
        stream = await events(server.stub.ChatStream(request(request_id="mine")))
    assert kinds(stream) == ["accepted", "delta", "delta", "delta", "delta", "done"]
    assert {event.request_id for event in stream} == {"mine"}
    assert stream[0].accepted.queue_position == 0
    assert text_of(stream) == TEXT
    done = stream[-1].done
    assert (done.finish_reason, done.usage.total_tokens, done.audio.sample_rate) == ("stop", 22, 16000)
    assert done.timings.total_ms >= done.timings.ttft_ms > 0


async def test_a_delta_without_text_is_sent_only_for_its_tokens() -> None:
    engine = FakeEngine(pieces=("", "a", "", "b"))
    async with serving(engine) as server:
        plain = await events(server.stub.ChatStream(request()))
        with_ids = await events(server.stub.ChatStream(request(generation={"return_token_ids": True})))
    assert [event.delta.text for event in plain[1:-1]] == ["a", "b"]
    assert [(event.delta.text, list(event.delta.token_ids)) for event in with_ids[1:-1]] == [
        ("", [100]),
        ("a", [101]),
        ("", [102]),
        ("b", [103]),
    ]


async def test_deltas_arrive_while_the_answer_is_made() -> None:
    gate = asyncio.Event()
    async with serving(FakeEngine(gates={1: gate})) as server:
        stream = aiter(server.stub.ChatStream(request()))
        assert kinds([await anext(stream), await anext(stream)]) == ["accepted", "delta"]
        gate.set()
        assert kinds(await events(stream)) == ["delta", "delta", "delta", "done"]


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
async def test_upload_cut_anywhere_gives_the_same_answer(size: int) -> None:
    clip = wav_clip(0.1)
    engine = FakeEngine()
    async with serving(engine) as server:
        whole = await server.stub.Chat(request(audio=pb.Audio(data=clip)))
        stream = await events(server.stub.ChatUpload(upload(clip, size, request_id="mine")))
    assert kinds(stream)[0] == "accepted"
    assert kinds(stream)[-1] == "done"
    assert {event.request_id for event in stream} == {"mine"}
    assert text_of(stream) == whole.text
    assert stream[-1].done.usage == whole.usage
    assert engine.requests[0].audio_key == engine.requests[1].audio_key


async def test_generation_reaches_the_engine() -> None:
    engine = FakeEngine()
    sampling = {
        "max_tokens": 3,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "seed": -(2**63),
        "stop": ["x", "yy"],
    }
    async with serving(engine) as server:
        answer = await server.stub.Chat(
            request(prompt="  как дела? ", system="", model=MODEL_NAME, generation=sampling)
        )
    got = engine.requests[0]
    assert (got.prompt, got.system) == ("  как дела? ", "")
    assert got.sampling.temperature == 0.7  # a double on the wire: exactly REST's number
    assert {name: getattr(got.sampling, name) for name in sampling} == {**sampling, "stop": ("x", "yy")}
    assert answer.finish_reason == "length"


async def test_unset_fields_take_the_defaults() -> None:
    engine = FakeEngine()
    async with serving(engine) as server:
        await server.stub.Chat(request(prompt=""))
        await server.stub.Chat(request(generation={"temperature": 0.0, "top_k": 0}))
    for got in engine.requests:
        assert got.system is None
        assert got.sampling.max_tokens == 256
        assert (got.sampling.temperature, got.sampling.top_p, got.sampling.top_k) == (0.0, 1.0, 0)
        assert (got.sampling.seed, got.sampling.stop) == (None, ())


async def test_model_info_shows_the_limits() -> None:
    async with serving(max_new_tokens=99, max_prompt_chars=77, max_upload_mb=2) as server:
        info = await server.stub.GetModelInfo(pb.GetModelInfoRequest())
    assert (info.id, info.max_audio_seconds, info.max_context_tokens) == (MODEL_NAME, 60.0, 2048)
    assert (info.max_new_tokens, info.max_prompt_chars, info.max_upload_bytes) == (99, 77, 2 << 20)
    assert info.min_audio_seconds == 0.1
    assert {"wav", "flac", "mp3"} <= set(info.formats)
    assert {"chat", "stream", "upload"} <= set(info.capabilities)
    assert not info.random_weights
    assert not info.HasField("merged_prompt")


async def header_ids(server: Harness, message: pb.ChatRequest, **options) -> tuple[str, str]:
    """The request's id in the initial metadata and in the answer."""
    call = server.stub.Chat(message, **options)
    answer = await call
    return str(dict(await call.initial_metadata())["x-request-id"]), answer.request_id


async def test_request_ids_are_echoed_or_made() -> None:
    async with serving() as server:
        own = await header_ids(server, request(request_id="field"), metadata=(("x-request-id", "header"),))
        header = await header_ids(server, request(), metadata=(("x-request-id", "header"),))
        made = await header_ids(server, request())
        unusable = await header_ids(server, request(), metadata=(("x-request-id", "x" * 129),))
        stream = server.stub.ChatStream(request(request_id="mine"))
        assert dict(await stream.initial_metadata())["x-request-id"] == "mine"
        await events(stream)
    assert own == ("field", "field")
    assert header == ("header", "header")
    assert made[0] == made[1]
    assert unusable[0] == unusable[1]
    assert made[0].startswith("chatcmpl-")
    assert unusable[0].startswith("chatcmpl-")


async def test_a_burst_of_calls_is_taken_whole() -> None:
    """Messages of unknown size take turns; none is refused for what it might have been."""
    async with serving(FakeEngine(step_s=0.01), max_inflight_mb=64) as server:
        answers = await asyncio.gather(*(server.stub.Chat(request(request_id=str(i))) for i in range(100)))
    assert [answer.request_id for answer in answers] == [str(i) for i in range(100)]
    assert {answer.text for answer in answers} == {TEXT}


async def test_bytes_held_are_those_of_the_message() -> None:
    decoder = FakeDecoder()
    async with serving(decoder=decoder) as server:
        decoder.gate = asyncio.Event()
        call = server.stub.Chat(request(audio=pb.Audio(data=wav_clip(1.0))))
        while not server.service.ledger.num_bytes or server.service.ledger.num_bytes > 1 << 20:
            await asyncio.sleep(0.001)
        assert server.service.ledger.num_bytes == len(wav_clip(1.0))
        decoder.gate.set()
        await call


async def test_an_unknown_method_is_unimplemented() -> None:
    async with serving() as server:
        missing = server.channel.unary_unary("/wavllm.v1.SpeechChat/Sing")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await missing(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
