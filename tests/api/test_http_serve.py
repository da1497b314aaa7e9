"""The life of a server process: ports first, loading, ready, draining, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from http_harness import CHAT, error_of, json_body

ROOT = Path(__file__).resolve().parents[2]


class Process:
    """A server over the fakes, and its log lines."""

    def __init__(self, **environment: str) -> None:
        settings = {
            "WAVLLM_HOST": "127.0.0.1",
            "WAVLLM_HTTP_PORT": "0",
            "WAVLLM_GRPC_PORT": "0",
            "WAVLLM_METRICS_PORT": "0",
            "WAVLLM_DRAIN_DELAY": "0.3",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        }
        self.popen = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "serve_fakes.py")],
            env=os.environ | settings | environment,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.popen.stderr:
            self._queue.put(line)

    def wait_for(self, message: str, **fields: object) -> dict:
        """The next log line with this message and these fields."""
        while True:
            line = self._queue.get(timeout=20)
            self.lines.append(line)
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if record["message"] == message and fields.items() <= record.items():
                    return record

    def http(self) -> str:
        """Base URL, once the port is open."""
        return f"http://127.0.0.1:{self.wait_for('listening', transport='http')['port']}"

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.popen.send_signal(number)

    def exit_code(self, timeout_s: float = 10) -> int:
        return self.popen.wait(timeout_s)

    def output(self) -> str:
        """All of standard error, after the exit."""
        self._reader.join(5)
        while not self._queue.empty():
            self.lines.append(self._queue.get())
        return "".join(self.lines)


@contextlib.contextmanager
def process(**environment: str) -> Iterator[Process]:
    started = Process(**environment)
    try:
        yield started
    finally:
        if started.popen.poll() is None:
            started.popen.kill()
        started.popen.wait(5)
        started._reader.join(5)
        started.popen.stderr.close()


def in_background(call):
    """Start the call in a thread; the returned function waits for its result."""
    results: queue.Queue = queue.Queue()
    threading.Thread(target=lambda: results.put(call()), daemon=True).start()
    return lambda: results.get(timeout=10)


def test_garbage_collections_spare_what_was_loaded():
    with process() as server:
        server.wait_for("ready")
        server.stop()
        assert server.wait_for("ended")["num_frozen"] > 10_000


def test_ports_answer_while_the_model_loads_and_the_server_becomes_ready():
    with process(FAKE_LOAD_S="1.0") as server:
        url = server.http()
        assert httpx.get(url + "/livez").status_code == 200
        assert httpx.get(url + "/readyz").status_code == 503
        refused = httpx.post(url + CHAT, json=json_body())
        assert (refused.status_code, error_of(refused)["code"]) == (503, "not_ready")
        assert "retry-after" in refused.headers
        server.wait_for("ready")
        assert httpx.get(url + "/readyz").status_code == 200
        assert httpx.post(url + CHAT, json=json_body()).status_code == 200
        server.stop()
        assert server.exit_code() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_first_takes_then_refuses_and_finishes_what_runs(number):
    with process(FAKE_STEP_S="0.25", WAVLLM_DRAIN_DELAY="0.4") as server:
        url = server.http()
        server.wait_for("ready")
        running = in_background(lambda: httpx.post(url + CHAT, json=json_body()))
        time.sleep(0.2)
        server.stop(number)
        server.wait_for("draining")
        assert httpx.get(url + "/readyz").status_code == 503
        assert httpx.get(url + "/livez").status_code == 200
        late = in_background(lambda: httpx.post(url + CHAT, json=json_body(), timeout=10))
        time.sleep(0.5)
        refused = httpx.post(url + CHAT, json=json_body())
        assert (refused.status_code, refused.headers["connection"]) == (503, "close")
        assert [running().status_code, late().status_code] == [200, 200]
        assert server.exit_code() == 0
        assert "Traceback" not in server.output()


def test_what_outlasts_the_shutdown_timeout_ends_with_a_clean_error():
    settings = {"FAKE_STEP_S": "30", "WAVLLM_SHUTDOWN_TIMEOUT": "0.3", "WAVLLM_DRAIN_DELAY": "0"}
    with process(**settings) as server:
        url = server.http()
        server.wait_for("ready")
        whole = in_background(lambda: httpx.post(url + CHAT, json=json_body(), timeout=20))
        stream = in_background(lambda: httpx.post(url + CHAT, json=json_body(stream=True), timeout=20))
        time.sleep(0.3)
        server.stop()
        response = whole()
        assert (response.status_code, error_of(response)["code"]) == (503, "not_ready")
        assert '"code":"not_ready"' in stream().text
        assert server.exit_code() == 0


def test_a_second_signal_ends_it_now():
    with process(FAKE_STEP_S="30", WAVLLM_DRAIN_DELAY="60") as server:
        url = server.http()
        server.wait_for("ready")
        answer = in_background(lambda: httpx.post(url + CHAT, json=json_body(), timeout=20))
        time.sleep(0.3)
        server.stop()
        server.wait_for("draining")
        start = time.monotonic()
        server.stop()
        assert answer().status_code == 503
        assert server.exit_code() == 0
        assert time.monotonic() - start < 3


def test_a_signal_while_loading_ends_it_cleanly():
    with process(FAKE_LOAD_S="60") as server:
        server.http()
        server.wait_for("listening", transport="grpc")
        server.stop()
        assert server.exit_code() == 0
        assert "Traceback" not in server.output()


def test_a_model_that_cannot_load_is_one_line_and_exit_code_1():
    with process(FAKE_LOAD_ERROR="model.safetensors: no such file") as server:
        assert server.exit_code() == 1
        last = server.output().splitlines()[-1]
        assert last == "cannot load the model: model.safetensors: no such file"


def test_the_metrics_port_and_the_shared_one():
    with process(WAVLLM_METRICS_PORT=(port := str(free_port()))) as server:
        url = server.http()
        server.wait_for("ready")
        response = httpx.get(f"http://127.0.0.1:{port}/metrics")
        assert "wavllm_requests_accepted_total" in response.text
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert httpx.get(url + "/metrics").status_code == 404
    shared = str(free_port())
    with process(WAVLLM_METRICS_PORT=shared, WAVLLM_HTTP_PORT=shared) as server:
        url = server.http()
        server.wait_for("ready")
        assert "wavllm_model_state" in httpx.get(url + "/metrics").text


def free_port() -> int:
    """A port that was free a moment ago."""
    from server.http_server import bind

    with bind("127.0.0.1", 0)[0] as listener:
        return listener.getsockname()[1]
