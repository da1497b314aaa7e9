"""The parts of the engine process that need no process: mailboxes, the step loop, back-off, messages."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from fake_core import FakeCore

from server.engine.backoff import Backoff
from server.engine.factory import build_core, reason, safe_traceback
from server.engine.loop import HEARTBEAT_S, run_engine
from server.engine.mailbox import Mailbox, Mailboxes
from server.engine_frames import Channel, FrameReader, frame
from server.engine_wire import Abort, Replies
from server.errors import EngineError, InvalidAudio, RequestCancelled
from server.os_process import describe_exit
from server.types import (
    Accepted,
    Delta,
    EngineConfig,
    EngineStats,
    EngineTimings,
    Failed,
    Finished,
    GenerateRequest,
    SamplingParams,
    Stage,
    StageChanged,
    StepOutput,
    Usage,
)

ACCEPTED = Accepted("a", 0, 1, 0)
FINISHED = Finished("a", "stop", Usage(1, 2, 0, 0), EngineTimings(0, 0, 0))
FAILED = Failed("a", EngineError("gone"))


def request(prompt="tokens=2", request_id="a"):
    return GenerateRequest(request_id, prompt, None, b"", SamplingParams(max_tokens=8))


async def read_all(box):
    events = []
    while not box.is_drained:
        events.append(await asyncio.wait_for(box.get(), 1))
    return events


async def test_events_of_a_step_that_overtook_accepted_come_after_it():
    box = Mailbox()
    started, delta = StageChanged("a", Stage.GENERATING), Delta("a", "x", (1,))
    for event in (started, delta, FINISHED):
        box.put(event)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(box.get(), 0.01)
    box.put(ACCEPTED)
    assert await read_all(box) == [ACCEPTED, started, delta, FINISHED]


async def test_a_failure_before_accepted_is_the_only_event():
    box = Mailbox()
    for event in (StageChanged("a", Stage.QUEUED), FAILED, ACCEPTED, FINISHED):
        box.put(event)
    assert await read_all(box) == [FAILED]


async def test_nothing_comes_after_the_last_event():
    box = Mailbox()
    for event in (ACCEPTED, FINISHED, FAILED, Delta("a", "x", (1,))):
        box.put(event)
    assert await read_all(box) == [ACCEPTED, FINISHED]


async def test_deltas_that_wait_are_joined_in_order():
    box = Mailbox()
    box.put(ACCEPTED)
    for i in range(300):
        box.put(Delta("a", f"{i},", (i,)))
    box.put(FINISHED)
    accepted, delta, finished = await read_all(box)
    assert (accepted, finished) == (ACCEPTED, FINISHED)
    assert delta == Delta("a", "".join(f"{i}," for i in range(300)), tuple(range(300)))


async def test_deltas_that_are_read_at_once_stay_apart():
    box = Mailbox()
    box.put(ACCEPTED)
    assert await box.get() == ACCEPTED
    for i in range(3):
        box.put(Delta("a", "x", (i,)))
        assert await box.get() == Delta("a", "x", (i,))


async def test_mailboxes_submit_deliver_and_forget():
    boxes, submitted, aborted = Mailboxes(), [], []
    stream = boxes.stream(request(), submitted.append, aborted.append)
    first = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    assert submitted == [request()]
    assert "a" in boxes
    boxes.deliver([Delta("unknown", "x", (1,)), ACCEPTED, FINISHED])
    assert await first == ACCEPTED
    assert [event async for event in stream] == [FINISHED]
    assert (len(boxes), aborted) == (0, [])


@pytest.mark.parametrize("events", [(), (ACCEPTED,), (ACCEPTED, Delta("a", "x", (1,)))])
async def test_a_cancelled_reader_aborts_once(events):
    boxes, aborted = Mailboxes(), []

    async def read():
        async for _ in boxes.stream(request(), lambda _: None, aborted.append):
            pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0)
    boxes.deliver(events)
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert (len(boxes), aborted) == (0, ["a"])


async def test_a_closed_stream_aborts_unless_the_request_has_ended():
    boxes, aborted = Mailboxes(), []
    for events in ([ACCEPTED], [ACCEPTED, FINISHED]):
        stream = boxes.stream(request(), lambda _, events=events: boxes.deliver(events), aborted.append)
        assert await anext(stream) == ACCEPTED
        await stream.aclose()
    assert (len(boxes), aborted) == (0, ["a"])


async def test_two_live_requests_cannot_share_an_id():
    boxes, aborted = Mailboxes(), []
    first = boxes.stream(request(), lambda _: boxes.deliver([ACCEPTED]), aborted.append)
    assert await anext(first) == ACCEPTED
    (refusal,) = [event async for event in boxes.stream(request(), aborted.append, aborted.append)]
    assert isinstance(refusal.error, EngineError)
    boxes.deliver([FINISHED])
    assert [event async for event in first] == [FINISHED]
    assert aborted == []


async def test_fail_all_and_cancel_end_streams():
    boxes = Mailboxes()
    streams = [boxes.stream(request(request_id=name), lambda _: None, lambda _: None) for name in "ab"]
    tasks = [asyncio.create_task(anext(stream)) for stream in streams]
    await asyncio.sleep(0)
    boxes.cancel("a")
    boxes.fail_all(EngineError("gone"))
    first, second = [(await task).error for task in tasks]
    assert isinstance(first, RequestCancelled)
    assert isinstance(second, EngineError)
    for stream in streams:
        await stream.aclose()


def run_core(core, until):
    """Run `core` until `until(outputs)`, then stop; returns the outputs."""
    outputs, stopping = [], threading.Event()

    def send(output):
        outputs.append(output)
        if until(outputs):
            stopping.set()

    run_engine(core, send, stopping)
    return outputs


def test_an_idle_engine_sends_heartbeats_and_closes_its_core(tmp_path):
    outputs = run_core(FakeCore(EngineConfig(tmp_path)), lambda outputs: len(outputs) == 2)
    assert outputs == [StepOutput(stats=EngineStats())] * 2
    assert HEARTBEAT_S <= 0.5
    assert (tmp_path / "closed").exists()


def test_every_step_is_one_output(tmp_path):
    core = FakeCore(EngineConfig(tmp_path))
    core.submit(request("tokens=2"))
    outputs = run_core(core, lambda outputs: isinstance(outputs[-1].events[-1], Finished))
    assert [len(output.events) for output in outputs] == [2, 1, 1]
    assert outputs[-1].stats.num_steps == 3


def test_a_step_that_raises_ends_the_loop_and_quotes_nobody(tmp_path, caplog):
    core, outputs = FakeCore(EngineConfig(tmp_path)), []
    core.submit(request("raise secret"))
    with pytest.raises(EngineError, match=r"^a step raised ValueError$"):
        run_engine(core, outputs.append, threading.Event())
    assert outputs == []
    assert "ValueError at" in caplog.text
    assert "secret" not in caplog.text


def test_backoff_doubles_up_to_its_limit_and_starts_over_after_health():
    backoff = Backoff()
    assert [backoff.next_delay(1.0) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert [backoff.next_delay(61.0), backoff.next_delay(0.0)] == [0.5, 1.0]


def test_a_waveform_and_an_error_survive_the_pipe():
    ours, theirs = (Channel(end) for end in socket.socketpair())
    wave = np.arange(100_000, dtype=np.float32)
    writer = threading.Thread(
        target=ours.send, args=(GenerateRequest("a", "p", wave, b"k", SamplingParams()),)
    )
    writer.start()
    np.testing.assert_array_equal(theirs.receive().waveform, wave)
    writer.join()
    theirs.send(Replies((Failed("a", InvalidAudio("bad")),)))
    (failed,) = ours.receive().events
    assert (type(failed.error), failed.error.message, failed.error.param) == (InvalidAudio, "bad", "audio")
    theirs.close()
    with pytest.raises(EOFError):
        ours.receive()
    with pytest.raises(OSError, match="Broken pipe"):
        ours.send(Abort("a"))
    ours.close()


def test_threads_that_send_at_once_do_not_mix_their_messages():
    ours, theirs = (Channel(end) for end in socket.socketpair())
    texts = ["x" * 50_000, "y" * 20, "z" * 200_000]
    threads = [
        threading.Thread(target=lambda text=text: [ours.send(Abort(text)) for _ in range(20)])
        for text in texts
    ]
    for thread in threads:
        thread.start()
    received = [theirs.receive().request_id for _ in range(60)]
    assert sorted(received) == sorted(texts * 20)
    for thread in threads:
        thread.join()
    ours.close()
    theirs.close()


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_messages_are_whole_however_their_bytes_come(size):
    sent = [Abort("a"), Replies((ACCEPTED, FINISHED)), Abort("x" * 3000), Abort("")]
    data = b"".join(piece for message in sent for piece in frame(message))
    reader, received = FrameReader(), []
    for start in range(0, len(data), size):
        received += reader.feed(data[start : start + size])
    assert received == sent


ROUND_TRIPS = """
import pickle, sys
from server.engine_frames import frame
from server.engine_wire import *
from server.types import *

events = StageChanged("a", Stage.QUEUED), Delta("a", "x", (1,))
end = Finished("a", "stop", Usage(1, 2, 0, 0), EngineTimings(0, 0, 0))
messages = [
    GenerateRequest("a", "prompt", None, b"", SamplingParams(8)),
    Replies((Accepted("a", 0, 1, 0),)),
    StepOutput((*events, end), EngineStats(), (EncoderRun("whisper", 0.1, 1),)),
]

def blocks_after(rounds):
    for _ in range(rounds):
        for message in messages:
            assert pickle.loads(frame(message)[1]) == message
    return sys.getallocatedblocks()

print(-blocks_after(500) + blocks_after(1000))
"""


def test_messages_leave_no_memory_behind():
    """In a process of its own: what could grow here may have grown in this one already."""
    run = subprocess.run([sys.executable, "-c", ROUND_TRIPS], check=True, capture_output=True)
    assert int(run.stdout) < 100


def test_reasons_are_one_line_without_a_traceback():
    assert reason(ValueError("config.json:\n  no such field")) == "config.json: no such field"
    assert reason(RuntimeError("CUDA out of memory")) == "RuntimeError: CUDA out of memory"
    assert reason(MemoryError()) == "MemoryError"
    with pytest.raises(EngineError, match=r"^ModuleNotFoundError: No module named 'nowhere'$"):
        build_core("nowhere:build", EngineConfig(os.devnull))


def test_a_safe_traceback_has_places_but_no_message():
    try:
        raise ValueError("".join(["sec", "ret"]))
    except ValueError as error:
        text = safe_traceback(error)
    assert text.startswith("ValueError at")
    assert "test_a_safe_traceback" in text
    assert "secret" not in text


def test_exits_are_described_in_words():
    assert describe_exit(3) == "exited with status 3"
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(-250) == "was killed by signal 250"
