"""The gRPC front end: a grpc.aio server with SpeechChat, grpc.health.v1 and reflection."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from server.grpc_health import Health
from server.grpc_servicer import SERVICE_NAME, SpeechChat
from server.service import SpeechService
from server.settings import MIB, Settings, SettingsError

HEALTH_NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

MAX_CONNECTION_AGE_S = 300.0
"""After this long (the library adds up to 10 % either way) a client is asked to connect anew, so that a
balancer can spread channels that would live for ever."""
MIN_PING_INTERVAL_S = 5.0
"""Clients are told that a ping every 10 s is welcome; half of that leaves room for jitter."""
DEAD_PEER_S = 20.0
"""A connection without a sign of life for so long is pinged, and dropped without an answer in half of it."""
EXPIRE_S = 1.0
"""What calls that were told to end at shutdown get for their last status."""
LINGER_S = 0.2
"""What streams of reflection, and clients that do not read, get before the connection is cut."""


class GrpcServer:
    """Owns the gRPC port. Start it before the model is loaded: it then says NOT_SERVING and UNAVAILABLE."""

    def __init__(self, service: SpeechService, settings: Settings) -> None:
        self._settings = settings
        self._chat = SpeechChat(service, settings)
        self._health = Health((SERVICE_NAME,), lambda: service.readiness().ready)
        self._server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Bind and serve. Returns the port. Raises SettingsError if it or the TLS files are unusable."""
        server = grpc.aio.server(options=channel_options(self._settings))
        server.add_generic_rpc_handlers((self._chat.rpc_handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE_NAME, HEALTH_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        port = _bind(server, self._settings)
        await server.start()
        self._server = server
        return port

    def set_serving(self, serving: bool) -> None:
        """Whether health may say SERVING; it does so only while the service is ready as well."""
        self._health.set_serving(serving)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls; running ones get `grace_s` seconds, then a clean error. Idempotent."""
        if self._server is None:
            return
        self._health.close()
        stopping = asyncio.create_task(self._server.stop(grace_s + EXPIRE_S))
        if not await _within(grace_s, self._chat):
            self._chat.expire_all()
            await _within(EXPIRE_S, self._chat)
        await asyncio.wait({stopping}, timeout=LINGER_S)
        await self._server.stop(None)
        await stopping


async def _within(seconds: float, chat: SpeechChat) -> bool:
    """Whether all calls ended in so many seconds."""
    try:
        await asyncio.wait_for(chat.wait_idle(), seconds)
    except TimeoutError:
        return False
    return True


def channel_options(settings: Settings) -> list[tuple[str, int]]:
    """The transport's settings. A message may be 1 MiB over the clip's cap, so that what is only a little
    too large is refused with a full status; the library refuses the rest by itself."""
    grace_s = settings.request_timeout
    return [
        ("grpc.max_receive_message_length", settings.max_upload_bytes + MIB),
        ("grpc.so_reuseport", 0),  # else a second server on a taken port would take half of its calls
        ("grpc.max_connection_age_ms", round(MAX_CONNECTION_AGE_S * 1e3)),
        ("grpc.max_connection_age_grace_ms", round(grace_s * 1e3)),
        ("grpc.keepalive_time_ms", round(DEAD_PEER_S * 1e3)),
        ("grpc.keepalive_timeout_ms", round(DEAD_PEER_S * 5e2)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", round(MIN_PING_INTERVAL_S * 1e3)),
        ("grpc.http2.max_ping_strikes", 2),
    ]


def _bind(server: grpc.aio.Server, settings: Settings) -> int:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.grpc_port}"
    try:
        if settings.tls_cert is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, _credentials(settings))
    except RuntimeError as error:
        hint = "" if settings.tls_cert is None else ", or the files of --tls-cert and --tls-key do not fit"
        raise SettingsError(
            f"--grpc-port: cannot listen on {address}: it is taken or not ours{hint}"
        ) from error


def _credentials(settings: Settings) -> grpc.ServerCredentials:
    pair = (_read("--tls-key", settings.tls_key), _read("--tls-cert", settings.tls_cert))
    authorities = _read("--tls-client-ca", settings.tls_client_ca) if settings.tls_client_ca else None
    return grpc.ssl_server_credentials([pair], authorities, require_client_auth=authorities is not None)


def _read(flag: str, path: Path | None) -> bytes:
    try:
        return path.read_bytes() if path else b""
    except OSError as error:
        raise SettingsError(f"{flag}: {path}: {error.strerror}") from error
