"""Both engines over a small real core: in a thread of this process, and in a real child process."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import uvloop
from fake_core import FACTORY, HEAVY, request

from model.tiny import make_tiny
from server.engine.local import LocalEngine
from server.engine_process import EngineProcess
from server.errors import EngineError, InvalidRequest, NotReady, RequestCancelled
from server.types import (
    Accepted,
    Delta,
    EngineConfig,
    EngineState,
    EngineStats,
    Failed,
    Finished,
    Stage,
    StageChanged,
)

ROOT = Path(__file__).parents[2]
ENGINES = [LocalEngine, EngineProcess]


async def answer(engine, prompt, request_id="a", waveform=None):
    async with asyncio.timeout(10):
        return [event async for event in engine.generate(request(prompt, request_id, waveform))]


async def until(condition, timeout_s=5.0):
    """Wait for `condition()`; a test's own polling."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def aborted(directory):
    path = directory / "aborted"
    return path.read_text().split() if path.exists() else []


@pytest.fixture(params=ENGINES)
async def engine(request, tmp_path):
    engine = request.param(EngineConfig(tmp_path), factory=FACTORY)
    await engine.start()
    yield engine
    await engine.stop()


async def test_a_request_is_accepted_streamed_and_finished(engine):
    first, started, *deltas, last = await answer(engine, "tokens=3")
    assert (first, started) == (Accepted("a", 0, 1, 0), StageChanged("a", Stage.GENERATING))
    assert all(isinstance(delta, Delta) for delta in deltas)
    assert "".join(delta.text for delta in deltas) == "1 2 3 "
    assert [token for delta in deltas for token in delta.token_ids] == [1, 2, 3]
    assert isinstance(last, Finished)
    assert last.usage.completion_tokens == 3


# LocalEngine submits in the event loop's own thread, where nothing can overtake.
@pytest.mark.parametrize("engine", [EngineProcess], indirect=True)
async def test_accepted_comes_first_even_if_a_step_is_faster(engine):
    events = await answer(engine, "tokens=2 late-accept")
    assert [type(event) for event in events] == [Accepted, StageChanged, Delta, Finished]


async def test_a_waveform_arrives_whole_however_often(engine):
    waves = [np.ones(1_920_000, dtype=np.float32), np.ones(16_000, dtype=np.float32)]  # 7.7 MB, 64 kB
    for wave in waves * 2:
        events = await answer(engine, "samples", waveform=wave)
        heard = "".join(event.text for event in events if isinstance(event, Delta))
        assert heard == f"{wave.size} float32 {wave.size}.0"


async def test_a_refusal_is_the_only_event(engine):
    (failed,) = await answer(engine, "refuse")
    assert isinstance(failed.error, InvalidRequest)
    assert (failed.error.message, failed.error.param) == ("no", "prompt")


async def test_health_stats_and_encoder_runs(engine):
    await answer(engine, "tokens=3")
    health = engine.health()
    assert (health.state, health.detail) == (EngineState.READY, "")
    assert health.heartbeat_age_s < 1
    assert engine.stats() == EngineStats(num_steps=4)
    assert [run.encoder for run in engine.take_encoder_runs()] == ["whisper"] * 4
    assert engine.take_encoder_runs() == ()
    assert engine.info.name == "fake"


async def test_an_idle_engine_stays_fresh(engine):
    await asyncio.sleep(0.8)
    assert engine.health().heartbeat_age_s < 0.5


async def test_closing_the_stream_aborts(engine, tmp_path):
    async with contextlib.aclosing(engine.generate(request("wait"))) as events:
        async for event in events:
            if isinstance(event, Delta):
                break
    await until(lambda: aborted(tmp_path) == ["a"])
    await until(lambda: engine.stats().num_requests_running == 0)


async def test_cancelling_before_accepted_aborts(tmp_path):
    engine = EngineProcess(EngineConfig(tmp_path), factory=FACTORY)
    await engine.start()
    task = asyncio.create_task(answer(engine, "wait late-accept"))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: aborted(tmp_path) == ["a"])
    assert len(await answer(engine, "tokens=1", "b")) == 4
    await engine.stop()


async def test_abort_ends_the_stream_and_the_work(engine, tmp_path):
    task = asyncio.create_task(answer(engine, "wait"))
    await until(lambda: engine.stats().num_requests_running == 1)
    await engine.abort("a")
    await engine.abort("nobody")
    *_, last = await task
    assert isinstance(last, Failed)
    assert isinstance(last.error, RequestCancelled)
    await until(lambda: aborted(tmp_path) == ["a"])


async def test_a_slow_reader_gets_joined_deltas(engine):
    async with contextlib.aclosing(engine.generate(request("tokens=200"))) as events:
        assert isinstance(await anext(events), Accepted)
        await until(lambda: engine.stats().num_steps == 201)
        rest = [event async for event in events]
    assert [type(event) for event in rest] == [StageChanged, Delta, Finished]
    assert rest[1].token_ids == tuple(range(1, 201))


async def test_a_thousand_requests_end_exactly_once(engine):
    answers = await asyncio.gather(*(answer(engine, f"tokens={i % 7}", f"r{i}") for i in range(1000)))
    for i, events in enumerate(answers):
        ends = [event for event in events if isinstance(event, Finished | Failed)]
        assert ends == events[-1:]
        assert {event.request_id for event in events} == {f"r{i}"}
        assert ends[0].usage.completion_tokens == i % 7


async def test_an_abort_storm_leaves_nothing_behind(engine):
    tasks = [asyncio.create_task(answer(engine, "wait", f"r{i}")) for i in range(1000)]
    await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(await answer(engine, "tokens=1", "after")) == 4
    await until(lambda: engine.stats().num_requests_running == 0)


@pytest.mark.parametrize("make", ENGINES)
async def test_before_the_load_and_after_stop_requests_are_refused(make, tmp_path):
    engine = make(EngineConfig(tmp_path), factory=FACTORY)
    with pytest.raises(NotReady):
        _ = engine.info
    (failed,) = await answer(engine, "tokens=1")
    assert isinstance(failed.error, NotReady)
    await engine.start()
    task = asyncio.create_task(answer(engine, "wait"))
    await until(lambda: engine.stats().num_requests_running == 1)
    began = time.monotonic()
    await asyncio.gather(engine.stop(), engine.stop())
    await engine.stop()
    assert time.monotonic() - began < 1.5
    for failed in ((await task)[-1], *await answer(engine, "tokens=1")):
        assert isinstance(failed.error, NotReady)
        assert failed.error.retry_after_s > 0
    assert (engine.health().state, engine.stats()) == (EngineState.STOPPED, EngineStats())
    assert (tmp_path / "closed").exists()


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("bad-directory", "[Errno 2] No such file or directory: '/nonexistent/config.json'"),
        ("value-error", "config.json: llama.vocab_size: missing"),
        ("runtime-error", "RuntimeError: CUDA out of memory"),
    ],
)
async def test_a_failed_load_is_told_in_one_line(make, how, message, tmp_path, capfd):
    engine = make(EngineConfig(tmp_path, served_name=how), factory=FACTORY)
    with pytest.raises(EngineError) as failed:
        await engine.start()
    assert failed.value.message == message
    assert (engine.health().state, engine.health().detail) == (EngineState.FAILED, message)
    await asyncio.sleep(0.7)
    assert (tmp_path / "builds").read_text() == "x"
    await engine.stop()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("make", ENGINES)
async def test_loading_is_reported(make, tmp_path):
    seen = []
    engine = make(EngineConfig(tmp_path), factory=FACTORY, on_progress=lambda *step: seen.append(step))
    await engine.start()
    await engine.stop()
    assert seen == [(1, 2, "half"), (2, 2, "all")]


async def test_the_local_engine_fails_its_requests_when_a_step_raises(tmp_path, caplog):
    engine = LocalEngine(EngineConfig(tmp_path), factory=FACTORY)
    await engine.start()
    *_, failed = await answer(engine, "raise secret")
    assert isinstance(failed.error, EngineError)
    await until(lambda: engine.health().state is EngineState.FAILED)
    assert engine.health().detail == "a step raised ValueError"
    (refused,) = await answer(engine, "tokens=1")
    assert isinstance(refused.error, NotReady)
    await engine.stop()
    assert "secret" not in caplog.text


async def test_one_submission_that_raises_fails_alone(tmp_path, capfd):
    engine = EngineProcess(EngineConfig(tmp_path), factory=FACTORY)
    await engine.start()
    (failed,) = await answer(engine, "submit-raises secret")
    assert isinstance(failed.error, EngineError)
    assert len(await answer(engine, "tokens=1")) == 4
    await engine.stop()
    logged = capfd.readouterr().err
    assert "KeyError" in logged
    assert "secret" not in logged


async def test_the_child_logs_in_the_shape_it_is_told(tmp_path, capfd):
    engine = EngineProcess(EngineConfig(tmp_path), factory=FACTORY, log=("json", "info"))
    await engine.start()
    await answer(engine, "submit-raises secret")
    await engine.stop()
    (line,) = capfd.readouterr().err.splitlines()
    assert json.loads(line)["logger"] == "server.engine_child"


async def test_garbage_collections_in_the_child_spare_what_was_loaded(tmp_path):
    engine = EngineProcess(EngineConfig(tmp_path), factory=FACTORY)
    await engine.start()
    (num_frozen,) = [event.text for event in await answer(engine, "frozen") if isinstance(event, Delta)]
    await engine.stop()
    assert int(num_frozen) > 1000


async def test_the_child_loads_no_front_end(tmp_path):
    engine = EngineProcess(EngineConfig(tmp_path), factory=FACTORY)
    await engine.start()
    events = await answer(engine, "modules")
    await engine.stop()
    assert [event.text for event in events if isinstance(event, Delta)] == [""]


def test_the_real_core_loads_no_front_end():
    program = "import sys, server.engine_child, server.engine.build; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT, check=True)
    modules = done.stdout.decode().split()
    assert "torch" in modules
    assert set(HEAVY[:4]).isdisjoint(modules)


def test_it_runs_on_uvloop(tmp_path):
    async def run():
        engine = EngineProcess(EngineConfig(tmp_path), factory=FACTORY)
        await engine.start()
        await answer(engine, "tokens=1")
        os.kill(engine.child_pid, signal.SIGKILL)
        await until(lambda: engine.health().state is EngineState.FAILED)
        await until(lambda: engine.health().state is EngineState.READY)
        events = await answer(engine, "tokens=1")
        await engine.stop()
        return events

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert isinstance(runner.run(run())[-1], Finished)


@pytest.mark.parametrize("make", ENGINES)
async def test_a_real_model_answers(make, tmp_path):
    make_tiny(tmp_path / "model")
    steps = []
    config = EngineConfig(tmp_path / "model", device="cpu", max_batch_size=2, num_threads=1)
    engine = make(config, on_progress=lambda *step: steps.append(step))
    await engine.start()
    wave = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    events = await answer(engine, "What was said?", waveform=wave)
    runs = engine.take_encoder_runs()
    await engine.stop()
    assert isinstance(events[0], Accepted)
    assert isinstance(events[-1], Finished)
    assert events[0].audio_tokens > 0
    assert {run.encoder for run in runs} == {"whisper", "wavlm"}
    assert steps[-1][0] == steps[-1][1]
