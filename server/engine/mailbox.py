"""From an engine's step outputs to the readers of single requests, inside one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable

from server.errors import EngineError, RequestCancelled, ServerError
from server.types import Accepted, Delta, Event, Failed, Finished, GenerateRequest


class Mailbox:
    """Events of one request on their way to its reader; used by the event loop's thread only.

    The reader sees Accepted or Failed first: an engine that has queued a request may finish a step on it
    before the thread that took it has reported so, and what came too early waits here. Small however slow
    the reader: deltas that wait are joined, so a mailbox holds one answer at most.
    """

    def __init__(self) -> None:
        self._pending: deque[Event] = deque()
        self._readable = asyncio.Event()
        self._is_open = False
        self._has_ended = False

    @property
    def has_ended(self) -> bool:
        """True once the last event has come in, read or not."""
        return self._has_ended

    @property
    def is_drained(self) -> bool:
        """True once the last event has been read."""
        return self._has_ended and self._is_open and not self._pending

    def put(self, event: Event) -> None:
        """Add an event; what comes after the last one is dropped."""
        if isinstance(event, Accepted):
            self._accept(event)
        elif self._has_ended:
            return
        elif isinstance(event, Failed):
            self._fail(event)
        else:
            self._append(event)

    async def get(self) -> Event:
        """The next event; waits for it."""
        while not (self._is_open and self._pending):
            self._readable.clear()
            await self._readable.wait()
        return self._pending.popleft()

    def _accept(self, event: Accepted) -> None:
        if not self._is_open:
            self._is_open = True
            self._pending.appendleft(event)
            self._readable.set()

    def _fail(self, event: Failed) -> None:
        if not self._is_open:
            self._pending.clear()
            self._is_open = True
        self._append(event)

    def _append(self, event: Event) -> None:
        last = self._pending[-1] if self._pending else None
        if isinstance(event, Delta) and isinstance(last, Delta):
            self._pending[-1] = _joined(last, event)
        else:
            self._pending.append(event)
        self._has_ended = isinstance(event, Failed | Finished)
        self._readable.set()


def _joined(first: Delta, second: Delta) -> Delta:
    return Delta(first.request_id, first.text + second.text, first.token_ids + second.token_ids)


class Mailboxes:
    """The only map from request ids to requests. Every method belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._boxes: dict[str, Mailbox] = {}

    def __len__(self) -> int:
        """Requests that somebody reads."""
        return len(self._boxes)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._boxes

    def deliver(self, events: Iterable[Event]) -> None:
        """Hand each event to its request's reader.

        Events of unknown ids are dropped on purpose: a request that was closed a moment ago may still be
        in the step that is running, and nobody is left to tell.
        """
        for event in events:
            box = self._boxes.get(event.request_id)
            if box is not None:
                box.put(event)

    def fail(self, request_id: str, error: ServerError) -> None:
        """End one request's stream with `error`; unknown ids are ignored."""
        self.deliver((Failed(request_id, error),))

    def fail_all(self, error: ServerError) -> None:
        """End every open stream with `error`."""
        self.deliver([Failed(request_id, error) for request_id in self._boxes])

    async def stream(
        self,
        request: GenerateRequest,
        submit: Callable[[GenerateRequest], None],
        abort: Callable[[str], None],
    ) -> AsyncIterator[Event]:
        """Submit, then yield the request's events up to its last one.

        submit, abort: hand the request or its id to the engine without blocking. `abort` is called when
        the reader leaves early, also while it still waits for Accepted.
        """
        request_id = request.request_id
        if request_id in self._boxes:
            yield Failed(request_id, EngineError("two live requests share one id"))
            return
        box = self._boxes[request_id] = Mailbox()
        try:
            submit(request)
            del request  # its waveform is the engine's now, and the answer may be long
            while not box.is_drained:
                yield await box.get()
        finally:
            del self._boxes[request_id]
            if not box.has_ended:
                abort(request_id)

    def cancel(self, request_id: str) -> None:
        """End one request's stream as cancelled."""
        self.fail(request_id, RequestCancelled("the request was cancelled"))
