"""A local Ray Serve with the deployment on it, for tests that use it as a client would."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

ROOT = Path(__file__).parents[1]
START_S = 600
STOP_S = 60
SCRIPT_ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",  # else a token is written into the home directory
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "server.ray_ingress.http_middlewares",
    # A busy machine is not ill: what is slow to come up or to answer Ray's checks is left alone.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_worker_register_timeout_seconds": "300",
}


class RayCluster:
    """A context manager: starts Ray, Serve and the replicas, waits until they serve, ends all of it.

    args: settings by field name. options: options of the deployment.
    """

    def __init__(self, args: dict[str, Any], options: dict[str, Any]) -> None:
        # Ray's sockets lie in here, and the path of a socket has room for 107 bytes.
        self._directory = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
        self.ports = {name: free_port() for name in ("http", "grpc", "metrics")}
        self.killed: list[psutil.Process] = []
        self._family: set[psutil.Process] = set()
        given = {
            "temp_dir": str(self._directory),
            **{f"{name}_port": port for name, port in self.ports.items()},
            "args": args,
            "deployment": options,
        }
        self._log = (self._directory / "host.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "ray_host.py"), json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env=os.environ | SCRIPT_ENVIRONMENT,
        )
        self._host = psutil.Process(self.process.pid)

    def __enter__(self) -> Self:
        try:
            self._answer("ready")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Base address of the REST API."""
        return f"http://127.0.0.1:{self.ports['http']}"

    @property
    def grpc_target(self) -> str:
        """Address of the gRPC API."""
        return f"127.0.0.1:{self.ports['grpc']}"

    @property
    def text(self) -> str:
        """The log so far, the replicas' lines among it."""
        return (self._directory / "host.log").read_text(encoding="utf-8")

    def replicas(self) -> dict[int, int]:
        """Running requests by the replica's process id."""
        return {replica["pid"]: replica["ongoing"] for replica in self._ask(do="replicas")["replicas"]}

    def redeploy(self, *, wait: bool = False, **options: Any) -> None:
        """Change options of the deployment. wait: until they are in force, replicas replaced if need be."""
        self._ask(do="deploy", wait=wait, options=options)

    def engines(self) -> list[psutil.Process]:
        """The engine's process of every replica."""
        return [
            child
            for pid in self.replicas()
            for child in psutil.Process(pid).children()
            if "server.engine_child" in " ".join(child.cmdline())
        ]

    def stop(self) -> None:
        """End everything; `killed` is what did not go by itself."""
        self._remember()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        _, left = psutil.wait_procs(self._family, 5)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()
        shutil.rmtree(self._directory, ignore_errors=True)
        self.killed = left

    def _ask(self, **command: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._answer("replicas" if command["do"] == "replicas" else "deployed")

    def _answer(self, key: str) -> dict[str, Any]:
        """The next line that is an answer; other lines are the replicas' own output."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._remember()
            if line.startswith("{") and key in (answer := json.loads(line)):
                return dict(answer)
        raise AssertionError(self.text)

    def _remember(self) -> None:
        """Every descendant ever seen, for Ray's own may outlive the host that started them."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._family |= set(psutil.Process(self.process.pid).children(recursive=True))
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(str(self._directory) in word for word in process.cmdline()):
                    self._family |= {process, *process.children(recursive=True)} - {self._host}


def wait_for(condition: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
    """Poll slowly: every look at the replicas goes through Ray."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
