"""`wavllm serve`: wires the parts together and takes them through starting, ready, draining, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol

import uvloop

from server.audio_cache import CachedDecoder
from server.audio_decode import AudioDecoder
from server.audio_limits import AudioLimits
from server.engine_process import EngineProcess
from server.errors import ServerError
from server.grpc_api import GrpcServer
from server.http_api import create_app, create_metrics_app
from server.http_server import HttpServer
from server.os_process import keep_freed_memory, spare_from_collection
from server.service import SpeechService
from server.settings import Settings

logger = logging.getLogger(__name__)

HEALTH_INTERVAL_S = 0.25
GRPC_GRACE_S = 2.0
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StartFailure(Exception):
    """The server cannot start; the message is for the operator."""


class Frontend(Protocol):
    """A listening port of the server."""

    async def start(self) -> int:
        """Listen; returns the bound port."""


class StopSignals:
    """The first SIGTERM or SIGINT asks to drain, the second to end now."""

    def __init__(self) -> None:
        self.drain = asyncio.Event()
        self.now = asyncio.Event()

    def take(self) -> None:
        """One signal came."""
        (self.now if self.drain.is_set() else self.drain).set()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside the block."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.take)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)


def run(settings: Settings, on_progress: Callable[[int, int, str], None] | None = None) -> None:
    """Serve until a signal. Raises StartFailure, PortInUse or SettingsError if it cannot start."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, build_service(settings, on_progress)))


def build_service(
    settings: Settings, on_progress: Callable[[int, int, str], None] | None = None
) -> SpeechService:
    """The service over a supervised engine process and decoding workers."""

    def make_decoder(max_audio_s: float) -> CachedDecoder:
        limits = AudioLimits(max_seconds=max_audio_s, min_seconds=settings.min_audio_seconds)
        return CachedDecoder(AudioDecoder(limits, settings.audio_workers, settings.queue_timeout))

    log = (settings.log_format, settings.log_level)
    engine = EngineProcess(
        settings.engine_config(),
        heartbeat_timeout_s=settings.engine_timeout,
        on_progress=on_progress,
        log=log,
    )
    return SpeechService(engine, make_decoder, settings)


async def serve(settings: Settings, service: SpeechService) -> None:
    """The whole life of a server. Signal handlers come first, then the ports, then the model."""
    keep_freed_memory()
    signals = StopSignals()
    with signals.installed():
        server = Server(settings, service, signals)
        try:
            await server.open_ports()
            if await server.load():
                await server.run()
        finally:
            await server.close()


class Server:
    """The ports over one service, and the order in which all of it starts and stops."""

    def __init__(self, settings: Settings, service: SpeechService, signals: StopSignals) -> None:
        self.settings = settings
        self.service = service
        self.signals = signals
        self.http = HttpServer(create_app(service), settings, settings.http_port)
        self.grpc = GrpcServer(service, settings)
        self.metrics = self._metrics_server()

    def _metrics_server(self) -> HttpServer | None:
        port = self.settings.metrics_port
        if port in (0, self.settings.http_port):
            return None
        return HttpServer(create_metrics_app(self.service), self.settings, port, use_tls=False)

    async def open_ports(self) -> None:
        """Listen on every port; they answer "loading" from now on. Raises PortInUse or SettingsError."""
        frontends: dict[str, Frontend] = {"http": self.http, "grpc": self.grpc}
        if self.metrics is not None:
            frontends["metrics"] = self.metrics
        for name, frontend in frontends.items():
            port = await frontend.start()
            logger.info("listening", extra={"transport": name, "host": self.settings.host, "port": port})

    async def load(self) -> bool:
        """Load the model; False if a signal came first. Raises StartFailure."""
        loading = asyncio.create_task(self.service.start(), name="load")
        stopping = asyncio.create_task(self.signals.drain.wait())
        try:
            await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                _check_loaded(loading)
                spare_from_collection()
                self._announce()
            return loading.done()
        finally:
            await _cancel(loading, stopping)

    async def run(self) -> None:
        """Serve until the first signal, then drain."""
        watcher = asyncio.create_task(self._report_health(), name="grpc-health")
        try:
            await self.signals.drain.wait()
            await self._drain()
        finally:
            await _cancel(watcher)

    async def close(self) -> None:
        """End what is left and close every port; the health routes answer until the last."""
        self.service.drain()
        await self.service.stop()
        await self.grpc.stop(0.0 if self.signals.now.is_set() else GRPC_GRACE_S)
        await self.http.stop()
        if self.metrics is not None:
            await self.metrics.stop()
        logger.info("stopped")

    async def _drain(self) -> None:
        """Fail readiness, go on for the balancer's sake, then refuse and let the rest finish."""
        logger.info("draining", extra={"delay_s": self.settings.drain_delay})
        self.service.drain()
        self.grpc.set_serving(False)
        await self._unless_now(asyncio.sleep(self.settings.drain_delay))
        self.service.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.shutdown_timeout):
                await self._unless_now(self.service.wait_idle())

    async def _unless_now(self, wait: Coroutine[Any, Any, None]) -> None:
        """Wait for it, or for the second signal."""
        waiting = asyncio.create_task(wait)
        now = asyncio.create_task(self.signals.now.wait())
        try:
            await asyncio.wait({waiting, now}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(waiting, now)

    async def _report_health(self) -> None:
        """Keep gRPC's health service at what readiness says: the engine may die and come back."""
        serving = None
        while True:
            ready = self.service.readiness().ready
            if ready is not serving:
                serving = ready
                self.grpc.set_serving(ready)
            await asyncio.sleep(HEALTH_INTERVAL_S)

    def _announce(self) -> None:
        card = self.service.models()[0]
        logger.info("ready", extra={"model": card.id, "max_audio_s": card.max_audio_seconds})
        if self.service.is_open_to_all:
            logger.warning("no API key is set: everybody who reaches the ports may use them")
        if card.random_weights:
            logger.warning("the weights are random: nobody trained this model, its answers mean nothing")


def _check_loaded(loading: asyncio.Task[None]) -> None:
    try:
        loading.result()
    except ServerError as error:
        raise StartFailure(f"cannot load the model: {error.message}") from error


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
