"""uvicorn inside our own life cycle: sockets bound here, no signal handlers, bounded request heads."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.errors import InvalidRequest
from server.http_errors import dump_json, error_body
from server.settings import Settings, SettingsError

MAX_HEAD_BYTES = 64 * 1024
HEAD_TOO_LARGE = "The request's head is too large."
CHUNK_FRAME_BYTES = 32
"""More than the frame of a chunk takes that has no extensions."""
REFUSAL_DRAIN_S = 1.0
"""How long a refused connection is read on: closed with bytes unread it would be reset, the answer lost."""
HEAD_TIMEOUT_S = 30.0
KEEP_ALIVE_S = 75
"""Longer than the usual 60 s of a balancer's pool, so that the balancer is the one who closes."""
UNREAD_MS = 60_000
"""How long bytes may stay unread by the client before the kernel gives its connection up."""
CLOSE_GRACE_S = 3
BACKLOG = 1024
FREE_PORT_TRIES = 5
"""A free port of one address may be taken at another."""
NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class PortInUse(Exception):
    """A port that cannot be bound; the message is one line for the operator."""


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 whose request heads are bounded in size and time, and whose own errors are JSON."""

    _num_other_bytes = 0
    """Bytes of the message that are not its body: its head, the frames of its chunks, its trailers."""
    _is_refused = False
    _head_timer: asyncio.TimerHandle | None = None
    _framing: bytes = b""
    """How the body ends that the parser passed over, for its head asks for another protocol."""
    _is_muted = False
    _running: RequestResponseCycle | None = None
    """The request that is answered; uvicorn itself knows the last one of several that were pipelined."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came: its first head is due."""
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went."""
        self._stop_head_timer()
        self._leave_request()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; give up on a head, or on trailers, that do not end."""
        if self._is_refused:
            return
        self._num_other_bytes += len(data)
        self._unset_keepalive_if_required()
        rest = self._parse(data)
        while rest is not None:
            rest = self._parse(rest)
        if self._num_other_bytes > MAX_HEAD_BYTES:
            self.send_400_response(HEAD_TOO_LARGE)

    def _parse(self, data: bytes) -> bytes | None:
        """Returns what is still to be parsed after a head that asked for another protocol (as Java's client
        and `curl --http2` do). That is declined, so the body follows in HTTP/1.1; httptools takes it for the
        other protocol, and uvicorn what comes of it later for another request."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        except httptools.HttpParserUpgrade as upgrade:
            if self._framing:
                self._expect_body()
                return data[upgrade.args[0] :]
        return None

    def _expect_body(self) -> None:
        """Go on with a parser that believes to have read a head with the same body and without the wish."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        head, self._framing = b"POST / HTTP/1.1\r\n" + self._framing + b"\r\n", b""
        self._is_muted = True
        self.parser.feed_data(head)
        self._is_muted = False

    def on_message_begin(self) -> None:
        """A head begins."""
        if self._is_muted:
            return
        self._start_head_timer()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the URL."""
        if not self._is_muted:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header of the head, or of the trailers."""
        if not self._is_muted:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head has ended; it may have come in one piece with the body."""
        if self._is_muted:
            return
        self._stop_head_timer()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self.send_400_response(HEAD_TOO_LARGE)
            raise httptools.HttpParserError(HEAD_TOO_LARGE)
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self._framing = _framing_of(self.headers)

    def on_body(self, body: bytes) -> None:
        """A piece of the body; at most one chunk."""
        self._num_other_bytes -= len(body) + CHUNK_FRAME_BYTES
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next byte is another message's, unless the parser passed over the body."""
        if self._framing:
            return
        self._num_other_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, in the shape of every other error. Only the first refusal is sent."""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        body = dump_json(error_body(InvalidRequest(msg)))
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {uuid.uuid4().hex}\r\n\r\n"
        )
        self._leave_request()
        self.transport.write(head.encode("ascii") + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._stop_head_timer()
        self._head_timer = self.loop.call_later(REFUSAL_DRAIN_S, self.transport.close)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _leave_request(self) -> None:
        """To the application, if it is in the middle of a request, the client is gone."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def _start_head_timer(self) -> None:
        self._stop_head_timer()
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _framing_of(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The lines that tell where a body ends; b"" if none does."""
    names = (b"content-length", b"transfer-encoding")
    return b"".join(name + b": " + value + b"\r\n" for name, value in headers if name in names)


class HttpServer:
    """One port on every address of the host. `start` returns when it answers, `stop` when it is closed."""

    def __init__(self, app: ASGIApp, settings: Settings, port: int, *, use_tls: bool = True) -> None:
        self.port = port
        self._host = settings.host
        self._server = _Server(_config(app, settings, use_tls=use_tls))
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen; returns the bound port. Raises PortInUse, or SettingsError for bad TLS files."""
        self._load_tls()
        listeners = bind(self._host, self.port)
        self.port = listeners[0].getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(sockets=listeners), name=f"http-{self.port}")
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.005)
        if self._task.done():
            await self._task
        return self.port

    def _load_tls(self) -> None:
        try:
            self._server.config.load()
        except OSError as error:  # of which ssl.SSLError is one
            raise SettingsError(
                f"--tls-cert, --tls-key, --tls-client-ca: cannot be used: {error.strerror or error}"
            ) from error

    async def stop(self) -> None:
        """Close the port; answers being sent get a few seconds. Idempotent."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers; the process has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def bind(host: str, port: int) -> list[socket.socket]:
    """Listening sockets, one for each address of the host, all on one port.

    Raises PortInUse with a line that says what to do.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise PortInUse(f"cannot listen on {host}: {error.strerror}") from error
    addresses = dict.fromkeys((int(family), address) for family, _, _, _, address in found)
    tries = 1 if port else FREE_PORT_TRIES
    while True:
        tries -= 1
        try:
            return _listen_on_all(addresses, port)
        except OSError as error:
            if not tries:
                raise PortInUse(f"cannot listen on {host} port {port}: {error.strerror}") from error


def _listen_on_all(addresses: Iterable[tuple[int, tuple[Any, ...]]], port: int) -> list[socket.socket]:
    """An address that this machine lacks, as IPv6's often is, is passed over if there is another."""
    missing: OSError | None = None
    listeners: list[socket.socket] = []
    with contextlib.ExitStack() as opened:
        for family, (name, _, *rest) in addresses:
            try:
                listener = opened.enter_context(_listen(family, (name, port, *rest)))
            except OSError as error:
                if error.errno not in NO_SUCH_ADDRESS:
                    raise
                missing = error
            else:
                listeners.append(listener)
                port = listener.getsockname()[1]  # where it was 0, the next address takes the same
        if missing is not None and not listeners:
            raise missing
        opened.pop_all()
    return listeners


def _listen(family: int, address: tuple[Any, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit it. Without it a closed connection whose peer does not read stays for ever.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _config(app: ASGIApp, settings: Settings, *, use_tls: bool) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="none",
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CLOSE_GRACE_S,
        backlog=BACKLOG,
        **(_tls(settings) if use_tls and settings.tls_cert is not None else {}),
    )


def _tls(settings: Settings) -> dict[str, Any]:
    verify = ssl.CERT_REQUIRED if settings.tls_client_ca is not None else ssl.CERT_NONE
    return {
        "ssl_certfile": settings.tls_cert,
        "ssl_keyfile": settings.tls_key,
        "ssl_ca_certs": str(settings.tls_client_ca) if settings.tls_client_ca is not None else None,
        "ssl_cert_reqs": verify,
    }
