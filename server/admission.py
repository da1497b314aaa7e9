"""One ledger for both transports: requests, seconds of audio and bytes that wait or are in flight.

Confined to the event loop, so it needs no locks; nothing here awaits or touches I/O.
"""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from server.errors import AuthenticationError, Overloaded, RateLimited

MIN_RETRY_S = 1.0
MAX_RETRY_S = 60.0
STALE_S = 60.0
"""So long after the last queue its pace is no measure of the next one's."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class LedgerLimits:
    """Bounds of the ledger: requests and seconds of audio that wait, bytes held."""

    max_queued_requests: int
    max_queued_audio_seconds: float
    max_inflight_bytes: int


@dataclass(slots=True, eq=False)
class Slot:
    """What one request holds. waiting: the engine has not begun with it. queued: but has been given it."""

    num_bytes: int
    audio_s: float = 0.0
    waiting: bool = True
    queued: bool = False


class DrainRate:
    """How fast requests complete, as a moving average of the time between completions while others queue."""

    def __init__(self, weight: float = 0.1) -> None:
        self._weight = weight
        self._mean_s: float | None = None
        self._since: float | None = None
        self._rested = -math.inf

    def begin(self, now: float) -> None:
        """From now on requests queue: the time before is nobody's interval."""
        self._since = now
        if now - self._rested > STALE_S:
            self._mean_s = None

    def rest(self, now: float) -> None:
        """The queue is empty: how long what runs takes is not how fast a queue would drain."""
        self._since = None
        self._rested = now

    def record(self, now: float) -> None:
        """One request completed."""
        if self._since is None:
            return
        interval = now - self._since
        mean = interval if self._mean_s is None else self._mean_s
        self._mean_s = mean + self._weight * (interval - mean)
        self._since = now

    def wait_s(self, num_requests: int) -> float:
        """Seconds until this many requests have completed; 0 before anything was measured."""
        return num_requests * (self._mean_s or 0.0)


@dataclass(slots=True)
class Ledger:
    """Counts what is held and refuses what does not fit. Totals are recounted by `check_integrity`."""

    limits: LedgerLimits
    clock: Clock = time.monotonic
    num_waiting: int = 0
    num_queued: int = 0
    waiting_audio_s: float = 0.0
    num_bytes: int = 0
    _slots: set[Slot] = field(default_factory=set)
    _drain: DrainRate = field(default_factory=DrainRate)

    @property
    def num_open(self) -> int:
        """Requests that hold a slot, waiting and running together."""
        return len(self._slots)

    def take(self, num_bytes: int) -> Slot:
        """Take a slot for a request of this many bytes. Raises Overloaded when it does not fit."""
        if self.num_waiting >= self.limits.max_queued_requests:
            raise self.overloaded("the queue is full")
        self._check_bytes(num_bytes)
        slot = Slot(num_bytes)
        self._slots.add(slot)
        self.num_waiting += 1
        self.num_bytes += num_bytes
        return slot

    def resize_bytes(self, slot: Slot, num_bytes: int) -> None:
        """Hold this many bytes instead. Raises Overloaded if that is more and does not fit."""
        if slot not in self._slots:
            return
        more = num_bytes - slot.num_bytes
        if more > 0:
            self._check_bytes(more)
        slot.num_bytes += more
        self.num_bytes += more

    def reserve_audio(self, slot: Slot, seconds: float) -> None:
        """Count a decoded clip as waiting. Raises Overloaded when other clips fill the budget.

        A lone clip always fits, so that a small budget slows the server down but never bars a clip.
        """
        if slot not in self._slots or not slot.waiting:
            return
        if self.waiting_audio_s > 0 and self.waiting_audio_s + seconds > self.limits.max_queued_audio_seconds:
            raise self.overloaded("too many seconds of audio are waiting")
        slot.audio_s += seconds
        self.waiting_audio_s += seconds

    def enter_queue(self, slot: Slot) -> None:
        """The engine is given it; until now it waited for its own client and held nobody up. Idempotent."""
        if slot not in self._slots or not slot.waiting or slot.queued:
            return
        if not self.num_queued:
            self._drain.begin(self.clock())
        slot.queued = True
        self.num_queued += 1

    def leave_queue(self, slot: Slot) -> None:
        """The engine began with it: it waits no more. Idempotent."""
        if slot not in self._slots or not slot.waiting:
            return
        if slot.queued:
            slot.queued = False
            self.num_queued -= 1
            if not self.num_queued:
                self._drain.rest(self.clock())
        slot.waiting = False
        self.num_waiting -= 1
        self.waiting_audio_s -= slot.audio_s
        if not self.num_waiting:
            self.waiting_audio_s = 0.0  # floating-point sums drift; an empty queue is exactly empty

    def release(self, slot: Slot, *, completed: bool) -> None:
        """Give everything back. Idempotent. completed: it ran to its end, so it tells the drain rate."""
        if slot not in self._slots:
            return
        self.leave_queue(slot)
        self._slots.remove(slot)
        self.num_bytes -= slot.num_bytes
        if completed:
            self._drain.record(self.clock())

    @property
    def expected_wait_s(self) -> float:
        """Seconds until all that is queued has been served at the measured rate; 0 before any measurement."""
        return self._drain.wait_s(self.num_queued)

    @property
    def retry_after_s(self) -> float:
        """Seconds after which a refused client should come back: 1 to 60."""
        return min(max(self.expected_wait_s, MIN_RETRY_S), MAX_RETRY_S)

    def overloaded(self, what: str) -> Overloaded:
        """The refusal, with its time to come back."""
        return Overloaded(f"The server is overloaded: {what}.", retry_after_s=self.retry_after_s)

    def check_integrity(self) -> None:
        """Recount everything. Raises AssertionError naming what is off."""
        waiting = [slot for slot in self._slots if slot.waiting]
        held = sum(slot.num_bytes for slot in self._slots)
        audio_s = sum(slot.audio_s for slot in waiting)
        queued = [slot for slot in self._slots if slot.queued]
        if self.num_queued != len(queued) or not set(queued) <= set(waiting):
            raise AssertionError(f"{self.num_queued} requests counted, {len(queued)} are queued")
        if self.num_waiting != len(waiting):
            raise AssertionError(f"{self.num_waiting} requests counted, {len(waiting)} wait")
        if self.num_bytes != held:
            raise AssertionError(f"{self.num_bytes} bytes counted, {held} held")
        if not math.isclose(self.waiting_audio_s, audio_s, abs_tol=1e-6):
            raise AssertionError(f"{self.waiting_audio_s} s of audio counted, {audio_s} wait")

    def _check_bytes(self, more: int) -> None:
        if self.num_bytes + more > self.limits.max_inflight_bytes:
            raise self.overloaded("too many bytes are in flight")


class KeyRing:
    """The API keys; open to all when there are none."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = tuple(key.encode() for key in keys)

    @property
    def is_open(self) -> bool:
        """Whether anybody may ask."""
        return not self._keys

    def identify(self, key: str | None) -> int:
        """Index of the client's key (0 when open). Compares every key in constant time.

        Raises AuthenticationError for a missing or unknown key.
        """
        if self.is_open:
            return 0
        if key is None:
            raise AuthenticationError("No API key: send the header `Authorization: Bearer <key>`.")
        sent = key.encode("utf-8", "surrogatepass")
        matches = [index for index, known in enumerate(self._keys) if hmac.compare_digest(known, sent)]
        if not matches:
            raise AuthenticationError("The API key is not known here.")
        return matches[0]


def bearer_token(authorization: str) -> str | None:
    """The token of `Bearer TOKEN`, or None if there is none or it is of another kind."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


class RateLimiter:
    """A token bucket per key: `rate` requests per second, bursts of one second's worth (at least one)."""

    def __init__(self, rate: float, clock: Clock = time.monotonic) -> None:
        self._rate = rate
        self._burst = max(1.0, rate)
        self._clock = clock
        self._buckets: dict[int, tuple[float, float]] = {}

    def check(self, client: int) -> None:
        """Take one token. Raises RateLimited with the time until the next one."""
        now = self._clock()
        tokens, then = self._buckets.get(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        if tokens < 1.0:
            self._buckets[client] = (tokens, now)
            raise RateLimited(
                "Too many requests for this API key.", retry_after_s=(1.0 - tokens) / self._rate
            )
        self._buckets[client] = (tokens - 1.0, now)
