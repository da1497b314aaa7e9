"""What happens when the engine's process dies, hangs or cannot load, and when its parent dies."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from fake_core import FACTORY, request

from server.engine_child import BOOT
from server.engine_frames import frame
from server.engine_link import EngineLink
from server.engine_process import EngineProcess
from server.engine_wire import Build
from server.errors import EngineError, NotReady
from server.types import (
    Delta,
    EngineConfig,
    EngineState,
    EngineStats,
    Failed,
    Finished,
)

ROOT = Path(__file__).parents[2]


async def answer(engine, prompt, request_id="a", waveform=None):
    return [event async for event in engine.generate(request(prompt, request_id, waveform))]


async def until(condition, timeout_s=10.0):
    """Wait for `condition()`; a test's own polling."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def answered_again(engine):
    await until(lambda: engine.health().state is EngineState.READY)
    assert isinstance((await answer(engine, "tokens=2", "again"))[-1], Finished)


def is_gone(pid):
    """True if no such process runs; one that nobody has reaped yet counts as gone."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextlib.asynccontextmanager
async def started(tmp_path, how=None, **options):
    engine = EngineProcess(EngineConfig(tmp_path, served_name=how), factory=FACTORY, **options)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.stop()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_killed_child_fails_its_requests_and_is_started_again(tmp_path, number):
    async with started(tmp_path) as engine:
        tasks = [asyncio.create_task(answer(engine, "wait", f"r{i}")) for i in range(20)]
        await until(lambda: engine.stats().num_requests_running == 20)
        pid, began = engine.child_pid, time.monotonic()
        os.kill(pid, number)
        for events in await asyncio.gather(*tasks):
            assert isinstance(events[-1], Failed)
            assert isinstance(events[-1].error, EngineError)
            assert "retry" in events[-1].error.message
            assert any(isinstance(event, Delta) for event in events)
        assert time.monotonic() - began < 1
        health = engine.health()
        assert health.state is EngineState.FAILED
        assert health.detail == f"the engine process was killed by {number.name}"
        assert engine.stats() == EngineStats()
        (refused,) = await answer(engine, "tokens=1")
        assert isinstance(refused.error, NotReady)
        assert refused.error.retry_after_s >= 1
        await answered_again(engine)
        assert engine.child_pid != pid
        assert engine.info.name == "fake"


async def test_a_clip_that_the_dead_child_knew_is_sent_to_the_next_one(tmp_path):
    wave = np.ones(16_000, dtype=np.float32)
    async with started(tmp_path) as engine:
        first = await answer(engine, "samples", "a", wave)
        os.kill(engine.child_pid, signal.SIGKILL)
        await until(lambda: engine.health().state is EngineState.FAILED)
        await answered_again(engine)
        assert await answer(engine, "samples", "a", wave) == first


@pytest.mark.parametrize("prompt", ["exit", "raise secret"])
async def test_a_request_that_breaks_the_engine_does_not_break_the_next_one(tmp_path, prompt, capfd):
    async with started(tmp_path) as engine:
        events = await answer(engine, prompt)
        assert isinstance(events[-1].error, EngineError)
        await until(lambda: engine.health().state is EngineState.FAILED)
        await answered_again(engine)
    assert "secret" not in capfd.readouterr().err


async def test_a_hung_step_is_killed_and_the_engine_started_again(tmp_path):
    async with started(tmp_path, heartbeat_timeout_s=0.6) as engine:
        pid, began = engine.child_pid, time.monotonic()
        events = await answer(engine, "hang")
        assert isinstance(events[-1].error, EngineError)
        assert 0.4 < time.monotonic() - began < 1.6
        assert engine.health().detail == "the engine gave no sign of life for 0.6 s"
        await until(lambda: is_gone(pid))
        await answered_again(engine)


async def test_requests_that_keep_coming_do_not_hide_a_hang(tmp_path):
    """Another thread of the child takes them, so what it answers is no sign of life."""
    async with started(tmp_path, heartbeat_timeout_s=0.6) as engine:
        began = time.monotonic()
        waiting = [asyncio.create_task(answer(engine, "hang", "first"))]
        while not waiting[0].done() and time.monotonic() - began < 5:
            await asyncio.sleep(0.2)
            waiting.append(asyncio.create_task(answer(engine, "tokens=1", f"later-{len(waiting)}")))
        assert time.monotonic() - began < 1.6
        ends = await asyncio.gather(*waiting)
        assert all(isinstance(events[-1].error, (EngineError, NotReady)) for events in ends)
        await answered_again(engine)


async def test_a_message_that_cannot_be_sent_ends_the_child(tmp_path, monkeypatch, caplog):
    """Without it the child would look well, and no request would ever reach it."""
    async with started(tmp_path) as engine:
        pid = engine.child_pid
        monkeypatch.setattr("server.engine_link.frame", lambda _: (_ for _ in ()).throw(MemoryError()))
        events = await answer(engine, "tokens=1")
        assert isinstance(events[-1].error, EngineError)
        monkeypatch.undo()
        assert "a message could not be sent to the engine: MemoryError" in caplog.text
        await until(lambda: is_gone(pid))
        await answered_again(engine)


async def test_a_message_that_cannot_be_taken_leaves_the_pipe_open(tmp_path, monkeypatch, caplog):
    faults, deliver = [ValueError("secret")], EngineProcess._deliver

    def fail_once(engine, output):
        if faults:
            raise faults.pop()
        deliver(engine, output)

    async with started(tmp_path) as engine:
        pid = engine.child_pid
        monkeypatch.setattr(EngineProcess, "_deliver", fail_once)
        await until(lambda: not faults)  # the next heartbeat
        assert isinstance((await answer(engine, "tokens=2"))[-1], Finished)
        assert engine.child_pid == pid
    assert "a message of the engine was not taken: ValueError" in caplog.text
    assert "secret" not in caplog.text


async def test_a_child_that_cannot_be_killed_is_left_behind(tmp_path, monkeypatch):
    """As a stuck driver makes it: without a bound the server's ports would stay open for ever."""
    monkeypatch.setattr("server.engine_link.EXIT_GRACE_S", 0.2)
    monkeypatch.setattr("server.engine_process.EXIT_GRACE_S", 0.2)
    async with started(tmp_path) as engine:
        pid = engine.child_pid
        os.kill(pid, signal.SIGSTOP)
        with monkeypatch.context() as patched:
            patched.setattr(EngineLink, "kill", lambda _: None)
            await asyncio.wait_for(engine.stop(), 2)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: is_gone(pid))


async def test_a_stop_while_the_child_is_being_started_ends_it(tmp_path, monkeypatch):
    pids = []
    open_link = EngineLink.open

    async def open_slowly(on_message):
        link = await open_link(on_message)
        pids.append(link.pid)
        await asyncio.sleep(0.2)
        return link

    monkeypatch.setattr(EngineLink, "open", open_slowly)
    engine = EngineProcess(EngineConfig(tmp_path), factory=FACTORY)
    starting = asyncio.create_task(engine.start())
    await until(lambda: pids)
    await engine.stop()
    with pytest.raises(EngineError, match="the engine was stopped"):
        await asyncio.wait_for(starting, 1)
    await until(lambda: is_gone(pids[0]))
    assert len(pids) == 1


async def test_a_stopped_child_counts_as_hung(tmp_path):
    async with started(tmp_path, heartbeat_timeout_s=0.6) as engine:
        pid = engine.child_pid
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: engine.health().heartbeat_age_s > 0.4)
        await until(lambda: engine.health().state is EngineState.FAILED, 2)
        assert is_gone(pid) or engine.child_pid == pid
        await answered_again(engine)
        assert is_gone(pid)


async def test_how_long_an_engine_is_lost_counts_from_its_end_to_the_next_ready(tmp_path):
    """Over restarts that fail, and while one hangs as it loads, where there is no heartbeat."""
    async with started(tmp_path, how="second-fails-third-hangs") as engine:
        assert engine.health().lost_s == 0
        began = time.monotonic()
        os.kill(engine.child_pid, signal.SIGKILL)
        await until(lambda: (tmp_path / "builds").read_text() == "xxx")
        health = engine.health()
        assert health.state is EngineState.STARTING
        await asyncio.sleep(0.2)
        assert health.lost_s + 0.2 <= engine.health().lost_s <= time.monotonic() - began
        assert time.monotonic() - began - engine.health().lost_s < 0.3
        os.kill(engine.child_pid, signal.SIGKILL)
        await answered_again(engine)
        assert engine.health().lost_s == 0


async def test_a_hung_child_that_cannot_be_killed_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("server.engine_process.KILLED_S", 0.2)
    async with started(tmp_path, heartbeat_timeout_s=0.6) as engine:
        pid = engine.child_pid
        with monkeypatch.context() as patched:
            patched.setattr(EngineLink, "kill", lambda _: None)
            await answer(engine, "hang")
            await answered_again(engine)
            assert not is_gone(pid)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: is_gone(pid))
        assert isinstance((await answer(engine, "tokens=2", "after"))[-1], Finished)


async def test_a_busy_event_loop_is_no_hang(tmp_path):
    async with started(tmp_path, heartbeat_timeout_s=0.6) as engine:
        pid = engine.child_pid
        time.sleep(1.0)  # blocks the loop on purpose
        await asyncio.sleep(0.1)
        assert engine.health().state is EngineState.READY
        assert engine.child_pid == pid


async def test_a_server_that_was_suspended_is_no_hang(tmp_path):
    """All of it stands still. Then the child has a long step to end before it can say anything."""
    async with started(tmp_path, heartbeat_timeout_s=2.0) as engine:
        pid = engine.child_pid
        os.kill(pid, signal.SIGSTOP)
        time.sleep(2.5)  # the supervisor stands still too
        asyncio.get_running_loop().call_later(1.5, os.kill, pid, signal.SIGCONT)
        await asyncio.sleep(2.0)
        assert engine.health().state is EngineState.READY
        assert engine.child_pid == pid


async def test_a_load_that_fails_at_the_second_start_is_tried_again(tmp_path):
    async with started(tmp_path, how="second-fails") as engine:
        os.kill(engine.child_pid, signal.SIGKILL)
        await until(lambda: engine.health().detail == "not this time")
        await answered_again(engine)
        assert (tmp_path / "builds").read_text() == "xxx"


async def test_a_first_load_that_dies_is_told_and_not_repeated(tmp_path):
    engine = EngineProcess(EngineConfig(tmp_path, served_name="dies"), factory=FACTORY)
    with pytest.raises(EngineError, match="process was killed by SIGKILL"):
        await engine.start()
    await asyncio.sleep(0.7)
    assert (engine.health().state, engine.child_pid) == (EngineState.FAILED, None)
    assert (tmp_path / "builds").read_text() == "x"
    await engine.stop()


async def test_a_long_load_is_no_hang_and_stop_ends_it(tmp_path):
    options = {"factory": FACTORY, "heartbeat_timeout_s": 0.2}
    engine = EngineProcess(EngineConfig(tmp_path, served_name="slow-load"), **options)
    start = asyncio.create_task(engine.start())
    await until(lambda: (tmp_path / "builds").exists())
    await asyncio.sleep(0.6)
    pid = engine.child_pid
    assert engine.health().state is EngineState.STARTING
    assert not is_gone(pid)
    began = time.monotonic()
    await engine.stop()
    assert time.monotonic() - began < 1
    assert is_gone(pid)
    with pytest.raises(EngineError):
        await start


async def test_stop_kills_a_child_that_does_not_exit(tmp_path):
    async with started(tmp_path) as engine:
        task = asyncio.create_task(answer(engine, "hang"))
        await asyncio.sleep(0.2)
        pid, began = engine.child_pid, time.monotonic()
        await engine.stop()
        assert 1.5 < time.monotonic() - began < 3
        assert is_gone(pid)
        assert isinstance((await task)[-1].error, NotReady)


async def test_stop_during_the_back_off_is_prompt(tmp_path):
    async with started(tmp_path) as engine:
        os.kill(engine.child_pid, signal.SIGKILL)
        await until(lambda: engine.health().state is EngineState.FAILED)
        began = time.monotonic()
        await engine.stop()
        assert time.monotonic() - began < 0.3
        await asyncio.sleep(0.7)
        assert (engine.health().state, engine.child_pid) == (EngineState.STOPPED, None)


async def test_the_child_ignores_stop_signals(tmp_path):
    async with started(tmp_path) as engine:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(engine.child_pid, number)
        await asyncio.sleep(0.2)
        assert isinstance((await answer(engine, "tokens=1"))[-1], Finished)


async def test_a_signal_at_the_start_does_not_kill_the_child(tmp_path):
    engine = EngineProcess(EngineConfig(tmp_path), factory=FACTORY)
    start = asyncio.create_task(engine.start())
    await until(lambda: engine.child_pid is not None)
    os.kill(engine.child_pid, signal.SIGINT)
    await start
    await engine.stop()


async def test_nothing_is_left_over(tmp_path):
    me = psutil.Process()

    def held():
        return me.num_fds(), me.num_threads(), [child.pid for child in me.children(recursive=True)]

    before = held()
    for _ in range(2):
        async with started(tmp_path) as engine:
            await answer(engine, "tokens=1")
            os.kill(engine.child_pid, signal.SIGKILL)
            await until(lambda engine=engine: engine.health().state is EngineState.FAILED)
            await answered_again(engine)
    await until(lambda: held() == before, 1)  # the link's last act is to report the end


PARENT = """
    import asyncio, sys
    from pathlib import Path
    from server.engine_process import EngineProcess
    from server.types import EngineConfig

    async def main(directory, how):
        engine = EngineProcess(EngineConfig(Path(directory), served_name=how), factory="fake_core:build_core")
        start = asyncio.create_task(engine.start())
        while engine.child_pid is None:
            await asyncio.sleep(0.01)
        if how == "":
            await start
        print(engine.child_pid, flush=True)
        await asyncio.sleep(60)

    asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("how", ["", "slow-load"])
def test_the_child_is_gone_within_a_second_of_its_parents_death(tmp_path, how):
    command = [sys.executable, "-c", textwrap.dedent(PARENT), str(tmp_path), how]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        child = int(parent.stdout.readline())
        assert not is_gone(child)
        parent.kill()
        began = time.monotonic()
        while not is_gone(child) and time.monotonic() - began < 5:
            time.sleep(0.01)
        assert time.monotonic() - began < 1


def test_the_kernel_ends_an_orphan_that_watches_no_pipe():
    orphan = "from server.os_process import die_with_parent as d; d(int(sys.argv[1])); time.sleep(60)"
    program = f"""
        import os, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import sys, time; {orphan}", str(os.getpid())])
        time.sleep(0.5)
        print(child.pid, child.poll(), flush=True)
        os.kill(os.getpid(), 9)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False
    )
    pid, status = done.stdout.split()
    assert status == b"None"
    time.sleep(0.5)
    assert is_gone(int(pid))


def test_a_child_whose_parent_died_before_it_could_ask_exits_at_once():
    program = "from server.os_process import die_with_parent as d; d(1 << 22); print('alive')"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT, check=True)
    assert done.stdout == b""


def test_the_child_exits_when_its_pipe_closes(tmp_path):
    ours, theirs = socket.socketpair()
    ours.sendall(b"".join(frame(Build(FACTORY, EngineConfig(tmp_path)))))
    command = [sys.executable, "-c", BOOT, str(os.getpid()), str(theirs.fileno()), *sys.path]
    with theirs:
        child = subprocess.Popen(command, pass_fds=(theirs.fileno(),))
    assert ours.recv(1)
    ours.close()
    assert child.wait(timeout=1) == 0
