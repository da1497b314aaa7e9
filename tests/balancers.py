"""The shipped nginx and HAProxy files in front of real servers: nothing in them is changed but addresses."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from server_process import ServerProcess

DOCKER = Path(__file__).parent.parent / "docker"
NAMES = ("wavllm-1", "wavllm-2")
START_S = 30
STOP_S = 10


def free_ports(count: int) -> list[int]:
    """So many different ports that nobody listens on."""
    with contextlib.ExitStack() as exits:
        probes = [exits.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


class Ports(Protocol):
    """Where a balancer's file is to look for a replica."""

    http_port: int
    grpc_port: int


class Replica:
    """One server that keeps its ports when it is started again."""

    def __init__(self, model: Path, *flags: str) -> None:
        self.http_port, self.grpc_port = free_ports(2)
        ports = ("--http-port", str(self.http_port), "--grpc-port", str(self.grpc_port))
        self._arguments = (model, *ports, *flags)
        self.server = ServerProcess(*self._arguments)

    def start_again(self) -> None:
        """A new process in place of one that has ended; returns when it is ready."""
        assert self.server.process.poll() is not None
        self.server = ServerProcess(*self._arguments)
        self.server.wait_until_ready()

    def end(self) -> None:
        """At once, whatever it does. Idempotent."""
        if self.server.process.poll() is None:
            self.server.stop(signal.SIGKILL)


@contextlib.contextmanager
def two_replicas(model: Path, *flags: str) -> Iterator[tuple[Replica, Replica]]:
    """Two ready servers."""
    with contextlib.ExitStack() as exits:
        replicas = []
        for _ in NAMES:
            replicas.append(Replica(model, *flags))
            exits.callback(replicas[-1].end)
        for replica in replicas:
            replica.server.wait_until_ready()
        first, second = replicas
        yield first, second


@dataclass(frozen=True)
class Balancer:
    """Where a running balancer listens."""

    http_port: int
    grpc_port: int

    @property
    def url(self) -> str:
        """Base address of the REST API."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc_target(self) -> str:
        """Address of the gRPC API."""
        return f"127.0.0.1:{self.grpc_port}"


def tool(name: str) -> str:
    """Path of a program; servers are in sbin, which only root searches."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    assert path, f"{name} is not installed; `make test-all` installs it"
    return path


def replace_all(text: str, changes: dict[str, str]) -> str:
    """Every pattern with its replacement; each must be there."""
    for pattern, new in changes.items():
        text, count = re.subn(pattern, new, text, flags=re.MULTILINE)
        assert count, f"{pattern} is not in the shipped file"
    return text


def backends(replicas: tuple[Ports, Ports]) -> dict[str, str]:
    """Replacements of the replicas' addresses."""
    changes = {}
    for name, replica in zip(NAMES, replicas, strict=True):
        changes[rf"\b{name}:8000\b"] = f"127.0.0.1:{replica.http_port}"
        changes[rf"\b{name}:50051\b"] = f"127.0.0.1:{replica.grpc_port}"
    return changes


@contextlib.contextmanager
def running(command: list[str], log: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """A process with a session of its own, of which nothing is left afterwards."""
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for_port(port: int, process: subprocess.Popen[str], log: Path) -> None:
    """Until somebody listens. Fails with the log if the process ends first."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nobody listens: {log.read_text()}")


@contextlib.contextmanager
def nginx(
    directory: Path, replicas: tuple[Ports, Ports], more: dict[str, str] | None = None
) -> Iterator[Balancer]:
    """The shipped nginx.conf and its readiness.sh. more: further replacements."""
    directory.mkdir()
    balancer = Balancer(*free_ports(2))
    changes = {
        **backends(replicas),
        r"listen 8000\b": f"listen 127.0.0.1:{balancer.http_port}",
        r"listen 50051\b": f"listen 127.0.0.1:{balancer.grpc_port}",
        r"/tmp/": f"{directory}/",
    }
    config = directory / "nginx.conf"
    shipped = (DOCKER / "nginx" / "nginx.conf").read_text(encoding="utf-8")
    config.write_text(replace_all(shipped, {**changes, **(more or {})}), encoding="utf-8")
    user = "user root;" if os.getuid() == 0 else ""  # who else may enter pytest's directories?
    command = [tool("nginx"), "-c", str(config), "-e", "stderr", "-g", f"daemon off; {user}"]
    ports = [replica.http_port for replica in replicas]
    urls = [f"{name}=http://127.0.0.1:{port}/readyz" for name, port in zip(NAMES, ports, strict=True)]
    watch = [str(DOCKER / "nginx" / "readiness.sh"), str(directory / "readiness"), *urls]
    log = directory / "log"
    with log.open("w") as file, running(watch, file), running(command, file) as process:
        wait_for_port(balancer.grpc_port, process, log)
        yield balancer


@contextlib.contextmanager
def haproxy(
    directory: Path, replicas: tuple[Ports, Ports], more: dict[str, str] | None = None
) -> Iterator[Balancer]:
    """The shipped haproxy.cfg and its load.lua. more: further replacements."""
    directory.mkdir()
    balancer = Balancer(*free_ports(2))
    changes = {
        **backends(replicas),
        r"bind :8000\b": f"bind 127.0.0.1:{balancer.http_port}",
        r"bind :50051\b": f"bind 127.0.0.1:{balancer.grpc_port}",
        r"/usr/local/etc/haproxy/": f"{DOCKER}/haproxy/",
    }
    config = directory / "haproxy.cfg"
    shipped = (DOCKER / "haproxy" / "haproxy.cfg").read_text(encoding="utf-8")
    config.write_text(replace_all(shipped, {**changes, **(more or {})}), encoding="utf-8")
    log = directory / "log"
    with log.open("w") as file, running([tool("haproxy"), "-db", "-f", str(config)], file) as process:
        wait_for_port(balancer.grpc_port, process, log)
        yield balancer


Start = Callable[..., contextlib.AbstractContextManager[Balancer]]
BALANCERS: dict[str, Start] = {"nginx": nginx, "haproxy": haproxy}
SHORT_SILENCE: dict[str, dict[str, str]] = {
    "nginx": {r"proxy_read_timeout 310s": "proxy_read_timeout 5s"},
    "haproxy": {r"^backend rest$": "backend rest\n    timeout server 5s"},
}
"""What makes five seconds of silence end a REST request."""
