"""The same service as replicas under Ray Serve: one engine, one GPU (or some CPUs) each. Extra: `ray`.

Serve's config file names `server.ray_app:build` and may give settings by field name as `args`; what is not
given comes from the environment, as for `wavllm serve`. docs/scaling.md says how this deployment differs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.metrics import Gauge
from starlette.types import ASGIApp

from server.grpc_servicer import SpeechChat
from server.http_api import create_app
from server.logs import configure
from server.pb import speech_pb2 as pb
from server.ray_call import ReplicaCalls, Requests, ServeContext, pieces, single
from server.ray_ingress import RETRY_AFTER_S
from server.ray_metrics import MetricsMirror
from server.serve import build_service
from server.settings import Settings, SettingsError, load_settings
from server.types import ON_CPU, ON_GPU

NAME = "SpeechChat"
HEALTH_PERIOD_S = 5.0
"""Serve replaces a replica after three failed checks. One that refuses looks idle to Serve's router and draws
requests, so it has to go soon."""
HEALTH_TIMEOUT_S = 10.0
DRAIN_POLL_S = 0.5
STOP_MARGIN_S = 10.0
"""For the engine and the decoders to end once the last request has."""
BUSY_SHARE = 0.75
"""Of a full batch, from which on another replica is wanted: beyond it requests begin to wait."""
MAX_REPLICAS = 4


class UnhealthyReplica(Exception):
    """Serve shall replace this replica."""


class Replica:
    """One service, its engine and its decoders, in a process of Ray's. Confined to Serve's user event loop.

    The methods that gRPC clients know are found by their names. given: settings by field name.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        settings = load_settings(given)
        configure(settings.log_format, settings.log_level)
        self._service = build_service(settings)
        self._calls = ReplicaCalls(SpeechChat(self._service, settings))
        self._mirroring: asyncio.Task[None] | None = None

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Serve sends HTTP requests to, once the model is loaded. Raises EngineError if it cannot be."""
        await self._service.start()
        mirror = MetricsMirror(self._service.metrics.render, Gauge)
        self._mirroring = asyncio.create_task(mirror.run(), name="metrics-mirror")
        return create_app(self._service)

    async def check_health(self) -> None:
        """Raises UnhealthyReplica while the engine is down or hung; a full queue is no illness."""
        readiness = self._service.readiness()
        if not readiness.ready:
            raise UnhealthyReplica(f"{readiness.state}: {readiness.detail}")

    async def __del__(self) -> None:
        """Serve calls it when the last request has ended, or has to."""
        if self._mirroring is not None:
            self._mirroring.cancel()
        await self._service.stop()

    async def Chat(self, request: bytes, grpc_context: ServeContext) -> Any:
        """A whole answer."""
        return await self._calls.unary("Chat", request, grpc_context) or pb.ChatResponse()

    async def GetModelInfo(self, request: bytes, grpc_context: ServeContext) -> Any:
        """The served model."""
        return await self._calls.unary("GetModelInfo", request, grpc_context) or pb.ModelInfo()

    async def ChatStream(self, request: bytes, grpc_context: ServeContext) -> AsyncIterator[Any]:
        """An answer as it is made."""
        async for event in self._calls.stream("ChatStream", single(request), grpc_context):
            yield event or pb.ChatEvent()

    async def ChatUpload(self, requests: Requests, grpc_context: ServeContext) -> AsyncIterator[Any]:
        """The same for a clip that comes in pieces."""
        async for event in self._calls.stream("ChatUpload", pieces(requests), grpc_context):
            yield event or pb.ChatEvent()


def build(args: dict[str, Any]) -> Any:
    """The Serve application. Raises SettingsError for settings that no server can run with."""
    return deployment(load_settings(args)).bind(args)


def deployment(settings: Settings) -> Any:
    """The deployment, with options that follow from the settings; Serve's config file may override each."""
    _check(settings)
    return serve.deployment(serve.ingress()(Replica), name=NAME, **options(settings))


def options(settings: Settings) -> dict[str, Any]:
    """Options of the deployment.

    A replica takes what its batch and its queue hold. Only when all are full do requests wait in the proxies,
    as many again for each proxy, and only then are they refused.
    """
    batch_size = settings.max_batch_size or (ON_GPU if _on_gpu(settings) else ON_CPU).max_batch_size
    return {
        "ray_actor_options": resources(settings),
        "max_ongoing_requests": batch_size + settings.max_queued_requests,
        "max_queued_requests": settings.max_queued_requests,
        "backpressure_config": BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S),
        "autoscaling_config": AutoscalingConfig(
            min_replicas=1, max_replicas=MAX_REPLICAS, target_ongoing_requests=batch_size * BUSY_SHARE
        ),
        "health_check_period_s": HEALTH_PERIOD_S,
        "health_check_timeout_s": HEALTH_TIMEOUT_S,
        "graceful_shutdown_wait_loop_s": DRAIN_POLL_S,
        "graceful_shutdown_timeout_s": settings.drain_delay + settings.shutdown_timeout + STOP_MARGIN_S,
    }


def resources(settings: Settings) -> dict[str, float]:
    """What a replica takes of its node: a core per decoder, one for the engine, and a GPU if asked."""
    cpus = {"num_cpus": 1.0 + settings.audio_workers}
    return {**cpus, "num_gpus": 1.0} if _on_gpu(settings) else cpus


def _on_gpu(settings: Settings) -> bool:
    """Ray hides the GPUs from a replica that asks for none, so "auto" is a CPU here."""
    return settings.device.startswith("cuda")


def _check(settings: Settings) -> None:
    if settings.tls_cert is not None:
        raise SettingsError("--tls-cert: the ports are Serve's here, see its http_options.ssl_certfile")
    if settings.device.startswith("cuda:"):
        raise SettingsError("--device: Ray gives each replica its GPU; say cuda, without a number")
