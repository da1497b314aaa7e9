"""A real `wavllm serve` on free ports, for tests that use it as a client would."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

CONSOLE_SCRIPT = Path(sys.executable).with_name("wavllm")
START_S = 300
"""A busy machine takes many times the usual seconds; a server that ends is noticed at once."""


class ServerProcess:
    """A context manager: starts the server, waits until it is ready, ends it with SIGTERM.

    model: a checkpoint directory, or None for the embedded default. flags: as on the command line.
    """

    def __init__(self, model: Path | None, *flags: str) -> None:
        command = [str(CONSOLE_SCRIPT), "serve", "--host", "127.0.0.1", "--drain-delay", "0"]
        command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", str(_free_port()), *flags]
        if model is not None:
            command += ["--model", str(model)]
        self.log: list[str] = []
        self.ports: dict[str, int] = {}
        self._listening = threading.Event()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop(signal.SIGKILL)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.stop()
        else:
            self._end_log()

    @property
    def url(self) -> str:
        """Base address of the REST API."""
        return f"http://127.0.0.1:{self.ports['http']}"

    @property
    def grpc_target(self) -> str:
        """Address of the gRPC API."""
        return f"127.0.0.1:{self.ports['grpc']}"

    def wait_until_ready(self) -> None:
        """Until /readyz says 200. Fails with the log if the process ends first."""
        deadline = time.monotonic() + START_S
        assert self._listening.wait(START_S), self.text
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.text
            if httpx.get(f"{self.url}/readyz").status_code == 200:
                return
            time.sleep(0.05)
        raise AssertionError(f"not ready after {START_S} s:\n{self.text}")

    @property
    def text(self) -> str:
        """The log so far."""
        return "".join(self.log)

    def metrics(self) -> dict[str, float]:
        """Samples by name, with label values after slashes: `wavllm_requests_cancelled_total/queued`."""
        text = httpx.get(f"http://127.0.0.1:{self.ports['metrics']}/metrics").text
        families = text_string_to_metric_families(text)
        samples = (sample for family in families for sample in family.samples)
        return {"/".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Send the signal; the exit code."""
        self.process.send_signal(signal_number)
        code = self.process.wait(START_S)
        self._end_log()
        return code

    def _end_log(self) -> None:
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line)
            if '"listening"' in line:
                record = json.loads(line)
                self.ports[record["transport"]] = record["port"]
            if {"http", "grpc", "metrics"} <= self.ports.keys():
                self._listening.set()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
