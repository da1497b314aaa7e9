"""grpc.health.v1 with a status that is true when asked: the library's servicer keeps a copy of its own,
behind a lock that a watcher who does not read can hold."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

WATCH_PERIOD_S = 1.0
"""Watchers are woken by `set_serving`; what changes without it (the engine dies) they see after so long."""


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """SERVING while `set_serving(True)` holds and `is_ready` says so. Knows `services`, and "" for all.

    Needs no API key. Confined to the event loop.
    """

    def __init__(self, services: Collection[str], is_ready: Callable[[], bool]) -> None:
        self._services = ("", *services)
        self._is_ready = is_ready
        self._serving = False
        self._closed = False
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool) -> None:
        """Allow or forbid SERVING, and wake the watchers."""
        self._serving = serving
        self._wake()

    def close(self) -> None:
        """Not serving any more; watchers are told so, and their streams end."""
        self._closed = True
        self.set_serving(False)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def _status(self) -> int:
        is_up = self._serving and self._is_ready()
        response = health_pb2.HealthCheckResponse
        return int(response.SERVING if is_up else response.NOT_SERVING)

    async def Check(self, request: Any, context: Context) -> Any:
        """The status now; NOT_FOUND for a service that is not served here."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=self._status)

    async def List(self, request: Any, context: Context) -> Any:
        """The status of every service."""
        status = health_pb2.HealthCheckResponse(status=self._status)
        return health_pb2.HealthListResponse(statuses=dict.fromkeys(self._services, status))

    async def Watch(self, request: Any, context: Context) -> None:
        """The status now and after every change; SERVICE_UNKNOWN for a service that is not served here."""
        is_known = request.service in self._services
        last: int | None = None
        while True:
            changed = self._changed
            status = self._status if is_known else health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            if status != last:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                last = status
            if self._closed:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), WATCH_PERIOD_S)
