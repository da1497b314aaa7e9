"""The service over a scripted engine: outcomes, deadlines, cancellation in every stage, life cycle."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
from fakes import AUDIO_TOKENS, PROMPT_TOKENS, FakeDecoder, FakeEngine, eventually, make_service, wav_clip
from http_harness import check_law, counted

from server.errors import (
    AuthenticationError,
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineError,
    InvalidAudio,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    RateLimited,
    ServerError,
    UnsupportedAudio,
)
from server.service import ChatCommand, SpeechService
from server.types import EngineState, ModelInfo, Stage

CLIP = wav_clip()


async def ready(
    engine: FakeEngine | None = None, decoder: FakeDecoder | None = None, **settings
) -> SpeechService:
    service = make_service(engine, decoder, **settings)
    await service.start()
    return service


async def open_chat(service: SpeechService, **fields):
    with service.reserve(num_bytes=len(CLIP), api_key=None, transport="http") as reservation:
        return await service.chat(reservation, ChatCommand(**{"prompt": "Hi", "audio": CLIP, **fields}))


async def answer(service: SpeechService, **fields) -> str:
    stream = await open_chat(service, **fields)
    async with stream:
        return "".join([delta.text async for delta in stream])


async def test_an_answer_with_its_numbers():
    engine = FakeEngine()
    service = await ready(engine)
    stream = await open_chat(service, max_tokens=7, temperature=0.5, top_k=3, seed=1, stop=("x",), system="S")
    assert "".join([delta.text async for delta in stream]) == "Hello, wörld!"
    assert stream.finished.usage.completion_tokens == 4
    assert (stream.audio.sample_rate, stream.audio.duration_s) == (16000, 0.5)
    timings = stream.timings
    assert 0 < timings.decode_ms < timings.ttft_ms <= timings.total_ms
    request = engine.requests[-1]
    assert (request.prompt, request.system, request.waveform.shape) == ("Hi", "S", (8000,))
    assert (request.sampling.max_tokens, request.sampling.temperature, request.sampling.top_k) == (7, 0.5, 3)
    assert (request.sampling.seed, request.sampling.stop) == (1, ("x",))
    assert request.queue_deadline < request.deadline
    assert engine.aborted == []
    assert counted(service)["audio_seconds{success}"] == 0.5
    check_law(service)


async def test_text_without_audio_reaches_the_engine_without_a_waveform():
    engine = FakeEngine()
    service = await ready(engine)
    assert await answer(service, audio=None) == "Hello, wörld!"
    assert engine.requests[-1].waveform is None


async def test_max_tokens_defaults_to_256_or_the_cap():
    engine = FakeEngine()
    await answer(await ready(engine))
    await answer(await ready(engine, max_new_tokens=100))
    assert [request.sampling.max_tokens for request in engine.requests] == [256, 100]


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"model": "other"}, ModelNotFound, "model"),
        ({"prompt": "x" * 4001}, InvalidRequest, "prompt"),
        ({"prompt": "\ud800"}, InvalidRequest, "prompt"),
        ({"system": "x" * 4001}, InvalidRequest, "system"),
        ({"temperature": -0.1}, InvalidRequest, "temperature"),
        ({"temperature": 2.1}, InvalidRequest, "temperature"),
        ({"temperature": float("nan")}, InvalidRequest, "temperature"),
        ({"top_p": 0.0}, InvalidRequest, "top_p"),
        ({"top_p": 1.1}, InvalidRequest, "top_p"),
        ({"top_p": float("nan")}, InvalidRequest, "top_p"),
        ({"top_k": -1}, InvalidRequest, "top_k"),
        ({"seed": 2**63}, InvalidRequest, "seed"),
        ({"max_tokens": 0}, InvalidRequest, "max_tokens"),
        ({"max_tokens": 513}, InvalidRequest, "max_tokens"),
        ({"stop": ("",)}, InvalidRequest, "stop"),
        ({"stop": tuple("abcde")}, InvalidRequest, "stop"),
        ({"timeout_s": 0.0}, InvalidRequest, "timeout_s"),
        ({"timeout_s": float("inf")}, InvalidRequest, "timeout_s"),
        ({"audio": b""}, InvalidAudio, "audio"),
        ({"audio": b"nonsense"}, UnsupportedAudio, "audio"),
        ({"audio": wav_clip(0.05)}, InvalidAudio, "audio"),
        ({"audio": wav_clip(61)}, InvalidAudio, "audio"),
        ({"audio": bytes(25 * 2**20 + 1)}, PayloadTooLarge, "audio"),
    ],
)
async def test_a_bad_field_is_refused_by_name_and_never_reaches_the_engine(fields, kind, param):
    engine = FakeEngine()
    service = await ready(engine)
    with pytest.raises(kind) as caught:
        await open_chat(service, **fields)
    assert type(caught.value) is kind
    assert caught.value.param == param
    assert engine.requests == []
    assert counted(service)[f"requests_failed{{{kind.code}}}"] == 1
    check_law(service)
    assert service.ledger.num_open == 0


async def test_bounds_themselves_are_taken():
    service = await ready()
    bounds = {"temperature": 2.0, "top_p": 1.0, "seed": -(2**63), "max_tokens": 512, "stop": tuple("abcd")}
    await answer(service, prompt="x" * 4000, model="fake-wavllm", **bounds)
    await answer(service, prompt="")


async def test_a_merged_deployment_answers_its_instruction_alone():
    model = ModelInfo("m", 2048, 60.0, 512, 1, "float32", "cpu", merged_prompt="Transcribe.")
    service = await ready(FakeEngine(model=model))
    assert await answer(service, prompt="Transcribe.")
    with pytest.raises(InvalidRequest):
        await open_chat(service, prompt="Translate.")


async def test_refusals_of_the_engine_pass_through():
    service = await ready(FakeEngine(refuse=ContextLengthExceeded("no room", param="prompt")))
    with pytest.raises(ContextLengthExceeded):
        await open_chat(service)
    assert counted(service)["requests_failed{context_length_exceeded}"] == 1
    check_law(service)


async def test_a_failure_in_the_middle_ends_the_stream_with_it():
    service = await ready(FakeEngine(error=EngineError("broken"), fail_after=2))
    stream = await open_chat(service)
    assert [(await anext(stream)).text for _ in range(2)] == ["Hello", ", "]
    with pytest.raises(EngineError):
        await anext(stream)
    with pytest.raises(EngineError):
        await anext(stream)
    assert counted(service)["requests_failed{engine_error}"] == 1
    check_law(service)


class BrokenEngine(FakeEngine):
    """Breaks in ways that no engine should."""

    async def _script(self, request):
        async for event in super()._script(request):
            yield event
            if len(self.requests) == 1:
                return
            if type(event).__name__ == "Delta":
                raise ZeroDivisionError


async def test_an_engine_that_stops_or_throws_is_an_engine_error():
    service = await ready(BrokenEngine())
    for _ in range(2):
        with pytest.raises(EngineError):
            await answer(service)
    assert counted(service)["requests_failed{engine_error}"] == 2
    check_law(service)


async def test_keys_rates_and_sizes_are_checked_before_a_slot():
    service = await ready(api_key=("good",), rate_limit=1.0)
    with pytest.raises(AuthenticationError):
        service.reserve(num_bytes=1, api_key="bad", transport="http")
    service.reserve(num_bytes=1, api_key="good", transport="http")
    with pytest.raises(RateLimited):
        service.reserve(num_bytes=1, api_key="good", transport="http")
    assert counted(service)["requests_rejected{invalid_api_key}"] == 1
    assert counted(service)["requests_rejected{rate_limited}"] == 1
    assert counted(service)["requests_accepted"] == 1
    check_law(service)


async def test_a_body_over_the_cap_gets_no_slot():
    service = await ready()
    with pytest.raises(PayloadTooLarge):
        service.reserve(num_bytes=service.settings.max_body_bytes + 1, api_key=None, transport="http")
    assert counted(service) == {"requests_rejected{payload_too_large}": 1}


async def test_a_refusal_costs_well_under_ten_milliseconds_and_no_decoding():
    decoder = FakeDecoder()
    service = await ready(decoder=decoder, max_queued_requests=1)
    num_decoded = decoder.num_decoded
    service.reserve(num_bytes=1, api_key=None, transport="http")
    start = time.perf_counter()
    for _ in range(100):
        with pytest.raises(Overloaded):
            service.reserve(num_bytes=1, api_key=None, transport="http")
    assert (time.perf_counter() - start) / 100 < 0.001
    assert decoder.num_decoded == num_decoded


async def test_a_started_request_leaves_the_queue_at_its_first_stage():
    gates = {"start": asyncio.Event(), 0: asyncio.Event()}
    service = await ready(FakeEngine(gates=gates))
    stream = await open_chat(service)
    load = service.load()
    assert (load.num_requests_waiting, load.num_requests_running) == (1, 0)
    assert (load.queue_audio_seconds, load.inflight_bytes) == (0.5, 0)
    gates["start"].set()
    await eventually(lambda: service.load().num_requests_running == 1)
    assert service.load().queue_audio_seconds == 0
    gates[0].set()
    async with stream:
        async for _ in stream:
            pass
    assert service.load().num_requests_running == 0


async def test_bytes_are_the_waveforms_between_decoding_and_the_engine():
    gates = {"accept": asyncio.Event()}
    service = await ready(FakeEngine(gates=gates))
    task = asyncio.create_task(open_chat(service))
    await eventually(lambda: service.ledger.num_bytes == 8000 * 4)
    gates["accept"].set()
    stream = await task
    assert service.ledger.num_bytes == 0
    await stream.aclose()


async def test_too_many_seconds_of_audio_are_refused():
    service = await ready(FakeEngine(gates={"start": asyncio.Event()}), max_queued_audio_seconds=0.9)
    stream = await open_chat(service)
    with pytest.raises(Overloaded):
        await open_chat(service)
    await stream.aclose()
    assert counted(service)["requests_failed{overloaded}"] == 1
    check_law(service)


POINTS = [
    ("accept", Stage.QUEUED),
    ("start", Stage.QUEUED),
    ("encode", Stage.ENCODING),
    ("prefill", Stage.PREFILLING),
    (0, Stage.GENERATING),
    (2, Stage.GENERATING),
]


@pytest.mark.parametrize(("point", "stage"), POINTS)
async def test_leaving_in_any_stage_aborts_and_frees_at_once(point, stage):
    engine = FakeEngine(gates={point: asyncio.Event()})
    service = await ready(engine)

    async def client():
        stream = await open_chat(service)
        async with stream:
            async for _ in stream:
                pass

    task = asyncio.create_task(client())
    await eventually(lambda: bool(engine.live))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert service.ledger.num_open == 0
    assert engine.live == set()
    assert len(engine.aborted) == 1
    assert counted(service)[f"requests_cancelled{{{stage.value}}}"] == 1
    check_law(service)


async def test_leaving_while_decoding():
    decoder = FakeDecoder()
    service = await ready(decoder=decoder)
    decoder.gate = asyncio.Event()
    task = asyncio.create_task(open_chat(service))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert counted(service)["requests_cancelled{decoding}"] == 1
    check_law(service)


async def test_leaving_while_receiving():
    service = await ready()
    with pytest.raises(asyncio.CancelledError), service.reserve(num_bytes=1, api_key=None, transport="http"):
        raise asyncio.CancelledError
    assert counted(service)["requests_cancelled{receiving}"] == 1
    check_law(service)


async def test_an_error_in_the_block_after_the_hand_over_aborts_too():
    engine = FakeEngine(gates={0: asyncio.Event()})
    service = await ready(engine)

    async def handler():
        with service.reserve(num_bytes=1, api_key=None, transport="http") as reservation:
            await service.chat(reservation, ChatCommand("Hi", CLIP))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await handler()
    await eventually(lambda: len(engine.aborted) == 1)
    assert counted(service)["requests_failed{internal_error}"] == 1
    check_law(service)


@pytest.mark.parametrize("point", ["accept", "start", 1])
async def test_a_stuck_engine_cannot_outlast_the_deadline(point):
    engine = FakeEngine(gates={point: asyncio.Event()})
    service = await ready(engine)
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await answer(service, timeout_s=0.1)
    assert 0.09 < time.monotonic() - start < 0.5
    assert engine.live == set()
    await eventually(lambda: engine.abort_calls == [engine.requests[0].request_id])
    assert counted(service)["requests_failed{deadline_exceeded}"] == 1
    check_law(service)


async def test_the_deadline_holds_without_a_reader_and_while_decoding():
    service = await ready(FakeEngine(gates={1: asyncio.Event()}))
    stream = await open_chat(service, timeout_s=0.05)
    await eventually(lambda: service.ledger.num_open == 0)
    await stream.aclose()
    decoder = FakeDecoder()
    service = await ready(decoder=decoder)
    decoder.gate = asyncio.Event()
    with pytest.raises(DeadlineExceeded):
        await open_chat(service, timeout_s=0.05)
    check_law(service)


class UnabortableEngine(FakeEngine):
    """An engine that hangs even when told to stop."""

    async def abort(self, request_id):
        await asyncio.Event().wait()


async def test_an_engine_that_hangs_in_abort_holds_nobody(monkeypatch):
    monkeypatch.setattr("server.chat_stream.ABORT_TIMEOUT_S", 0.05)
    service = await ready(UnabortableEngine(gates={1: asyncio.Event()}))
    stream = await open_chat(service, timeout_s=0.05)
    with pytest.raises(DeadlineExceeded):
        async for _ in stream:
            pass
    assert service.ledger.num_open == 0
    await asyncio.wait_for(stream.aclose(), 1)
    check_law(service)


async def test_the_clients_timeout_never_extends_the_servers():
    engine = FakeEngine()
    service = await ready(engine, request_timeout=5.0)
    await answer(service, timeout_s=1000.0)
    assert engine.requests[-1].deadline < time.monotonic() + 5.0


async def test_a_wait_that_would_outlast_the_deadline_is_refused_at_once():
    engine = FakeEngine(step_s=0.1)
    service = await ready(engine)
    running = await open_chat(service)
    engine.gates = {"start": asyncio.Event()}
    waiting = [await open_chat(service) for _ in range(5)]
    async for _ in running:  # while others wait, so that it tells how fast a queue drains
        pass
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await open_chat(service, timeout_s=0.5)
    assert time.monotonic() - start < 0.2
    for stream in waiting:
        await stream.aclose()
    engine.gates, engine.step_s = {}, 0.0
    assert await answer(service, timeout_s=0.2) == "Hello, wörld!", "nobody waits for itself"
    check_law(service)


async def test_a_slow_upload_is_no_queue():
    """Answers come beside it, some time apart. The engine is idle, so a short deadline can be kept."""
    service = await ready()
    with service.reserve(num_bytes=10, api_key=None, transport="test"):
        for _ in range(3):
            await asyncio.sleep(0.2)
            await answer(service)
        assert await answer(service, timeout_s=0.15) == "Hello, wörld!"
    together = [answer(service, timeout_s=0.5) for _ in range(8)]
    assert await asyncio.gather(*together) == ["Hello, wörld!"] * 8
    check_law(service)


async def test_one_answer_feeds_every_metric_of_its_time_and_tokens():
    service = await ready(FakeEngine(step_s=0.01))
    await answer(service)
    text = service.metrics.render().decode()
    told = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line[0] != "#"}

    def histogram(name):
        return told[f"wavllm_{name}_count"], told[f"wavllm_{name}_sum"]

    first, whole = histogram("time_to_first_token_seconds"), histogram("e2e_request_latency_seconds")
    assert (first[0], whole[0]) == (1, 1)
    assert 0 < first[1] < whole[1]
    gaps = histogram("inter_token_latency_seconds")
    assert gaps[0] == 3
    assert 0.02 < gaps[1] < whole[1]
    assert histogram("request_queue_time_seconds") == (1, 0.0005), "what the engine said"
    count, factor = histogram("real_time_factor")
    assert count == 1
    assert factor == pytest.approx(whole[1] / 0.5)
    assert told["wavllm_prompt_tokens_total"] == PROMPT_TOKENS + AUDIO_TOKENS
    assert told["wavllm_generation_tokens_total"] == 4


async def test_a_prompt_that_nobody_read_is_not_counted():
    service = await ready(FakeEngine(gates={"encode": asyncio.Event()}))
    with pytest.raises(DeadlineExceeded):
        await answer(service, timeout_s=0.05)
    assert "wavllm_prompt_tokens_total 0.0" in service.metrics.render().decode()


async def test_a_slow_reader_loses_nothing():
    service = await ready()
    stream = await open_chat(service)
    await eventually(lambda: service.ledger.num_open == 0)
    assert "".join([delta.text async for delta in stream]) == "Hello, wörld!"
    assert counted(service)["request_success{stop}"] == 1


async def test_closing_before_the_first_read_aborts():
    engine = FakeEngine(gates={"start": asyncio.Event()})
    service = await ready(engine)
    stream = await open_chat(service)
    await stream.aclose()
    assert service.ledger.num_open == 0
    assert len(engine.aborted) == 1
    assert counted(service)["requests_cancelled{queued}"] == 1
    check_law(service)


async def test_closing_after_the_end_counts_nothing_more():
    service = await ready()
    stream = await open_chat(service)
    async with stream:
        async for _ in stream:
            pass
    await stream.aclose()
    assert counted(service)["request_success{stop}"] == 1
    check_law(service)


async def test_loading_refuses_and_reports():
    gate = asyncio.Event()
    service = make_service(FakeEngine(load_gate=gate))
    loading = asyncio.create_task(service.start())
    await asyncio.sleep(0)
    readiness = service.readiness()
    assert (readiness.ready, readiness.live, readiness.state) == (False, True, "starting")
    with pytest.raises(NotReady) as caught:
        service.reserve(num_bytes=1, api_key=None, transport="http")
    assert caught.value.retry_after_s >= 1
    with pytest.raises(NotReady):
        service.models()
    gate.set()
    await loading
    assert service.readiness().ready
    assert service.models()[0].id == "fake-wavllm"


async def test_draining_takes_requests_closing_does_not():
    service = await ready()
    service.drain()
    assert not service.readiness().ready
    assert service.readiness().live
    assert await answer(service)
    service.close()
    with pytest.raises(NotReady):
        service.reserve(num_bytes=1, api_key=None, transport="http")
    assert service.readiness().state == "draining"
    await asyncio.wait_for(service.wait_idle(), 1)


async def test_stopping_ends_what_is_left_with_a_clean_error():
    decoder = FakeDecoder()
    service = await ready(FakeEngine(gates={1: asyncio.Event()}), decoder)
    streaming = await open_chat(service)
    decoder.gate = asyncio.Event()
    decoding = asyncio.create_task(open_chat(service))
    receiving = service.reserve(num_bytes=1, api_key=None, transport="http")
    await asyncio.sleep(0.01)
    await service.stop()
    with pytest.raises(NotReady):
        await decoding
    with pytest.raises(NotReady):
        async for _ in streaming:
            pass
    with pytest.raises(NotReady):
        async with receiving.before_deadline():
            await asyncio.sleep(5)
    receiving.fail(NotReady("late"))
    assert counted(service)["requests_failed{not_ready}"] == 3
    assert service.readiness().state == "stopped"
    assert not decoder.running
    check_law(service)


async def test_a_dead_engine_fails_readiness_and_refuses():
    engine = FakeEngine()
    service = await ready(engine)
    engine.state = EngineState.FAILED
    readiness = service.readiness()
    assert (readiness.ready, readiness.live, readiness.state) == (False, True, "failed")
    with pytest.raises(NotReady):
        service.reserve(num_bytes=1, api_key=None, transport="http")
    engine.state = EngineState.READY
    engine.heartbeat_age_s = 120.0
    assert not service.readiness().live
    assert not service.readiness().ready


@pytest.mark.parametrize(("load_s", "limit_s"), [(1.0, 600.0), (100.0, 1000.0)])
async def test_an_engine_that_stays_lost_is_not_alive(monkeypatch, load_s, limit_s):
    """It is loaded again and again, or that hangs: from some time on only a new process can help."""
    clock = 0.0
    monkeypatch.setattr("server.service.time", SimpleNamespace(monotonic=lambda: clock, time=time.time))
    engine = FakeEngine(load_gate=asyncio.Event())
    service = make_service(engine)
    start = asyncio.create_task(service.start())
    await asyncio.sleep(0)
    clock = load_s
    engine.load_gate.set()
    await start
    for state in (EngineState.FAILED, EngineState.STARTING):
        engine.state = state
        engine.lost_s = limit_s - 1
        assert service.readiness().live
        engine.lost_s = limit_s
        assert not service.readiness().live
    await service.stop()


async def test_a_full_queue_fails_neither_probe():
    service = await ready(max_queued_requests=1)
    service.reserve(num_bytes=1, api_key=None, transport="http")
    assert service.readiness().ready
    assert service.readiness().live


async def test_a_model_that_cannot_load_says_so():
    service = make_service(FakeEngine(load_error=EngineError("no such file")))
    with pytest.raises(ServerError, match="no such file"):
        await service.start()
    await service.stop()
