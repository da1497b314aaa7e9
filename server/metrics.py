"""Prometheus metrics under stable names (prefix `wavllm_`, vLLM's suffixes); no label takes a client's text.

Law: requests_accepted = sum of request_success + requests_failed + requests_cancelled + those still open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.errors import RequestCancelled, ServerError
from server.types import EncoderRun, EngineStats, FinishReason, Stage

PREFIX = "wavllm_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# fmt: off
TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
)
TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
LATENCY_BUCKETS = (
    0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0,
)
# fmt: on
STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
AUDIO_BUCKETS = (0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0)
FACTOR_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0, 10.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)

MODEL_STATES = ("starting", "ready", "draining", "failed", "stopped")
INTERNAL_ERROR = ServerError.code


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an accepted request ended. label: finish reason, error code or stage."""

    kind: Literal["success", "failed", "cancelled"]
    label: str

    @classmethod
    def success(cls, finish_reason: FinishReason) -> Outcome:
        """It was answered."""
        return cls("success", finish_reason)

    @classmethod
    def failed(cls, code: str) -> Outcome:
        """It ended with an error of this code."""
        return cls("failed", code)

    @classmethod
    def cancelled(cls, stage: Stage) -> Outcome:
        """The client went away in this stage."""
        return cls("cancelled", stage.value)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Gauges at scrape time. state: one of MODEL_STATES."""

    num_running: int
    num_waiting: int
    queue_audio_s: float
    state: str
    engine: EngineStats


class Metrics:
    """All instruments of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._take_encoder_runs: Callable[[], Iterable[EncoderRun]] = tuple
        self._make_request_counters()
        self._make_histograms()
        self._preset_labels()

    def _make_request_counters(self) -> None:
        self._accepted = self._counter("requests_accepted", "Requests that got a slot.")
        self._success = self._counter("request_success", "Requests answered.", "finished_reason")
        self._failed = self._counter("requests_failed", "Accepted requests that ended with an error.", "code")
        self._cancelled = self._counter(
            "requests_cancelled", "Accepted requests whose client went away.", "stage"
        )
        self._rejected = self._counter("requests_rejected", "Requests refused before a slot.", "reason")
        self._prompt_tokens = self._counter("prompt_tokens", "Prefilled tokens, audio included.")
        self._generation_tokens = self._counter("generation_tokens", "Generated tokens.")
        self._audio_seconds = self._counter("audio_seconds", "Seconds of decoded audio.", "outcome")

    def _make_histograms(self) -> None:
        self._ttft = self._histogram(
            "time_to_first_token_seconds", "From the slot to the first token.", TTFT_BUCKETS
        )
        self._inter_token = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of an answer.", TOKEN_BUCKETS
        )
        self._e2e = self._histogram(
            "e2e_request_latency_seconds", "From the slot to the end of an answer.", LATENCY_BUCKETS
        )
        self._queue_time = self._histogram(
            "request_queue_time_seconds", "From submission to the first computation.", LATENCY_BUCKETS
        )
        self._audio_duration = self._histogram(
            "request_audio_duration_seconds", "Length of decoded clips.", AUDIO_BUCKETS
        )
        self._decode = self._histogram(
            "audio_decode_seconds", "Time to decode a clip, with the wait for a worker.", STEP_BUCKETS
        )
        self._encoder = self._histogram("encoder_seconds", "One encoder pass.", STEP_BUCKETS, "encoder")
        self._encoder_batch = self._histogram(
            "encoder_batch_size", "Clips of one encoder pass.", BATCH_BUCKETS
        )
        self._factor = self._histogram(
            "real_time_factor", "Time to answer over the clip's length.", FACTOR_BUCKETS
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(PREFIX + name, text, labels, buckets=buckets, registry=self.registry)

    def _preset_labels(self) -> None:
        """Make every series exist at 0 from the start, so that rates work from the first request on."""
        for reason in ("stop", "length"):
            self._success.labels(reason)
        for stage in Stage:
            self._cancelled.labels(stage.value)
        for code in error_codes():
            self._failed.labels(code)
            self._rejected.labels(code)
        for outcome in ("success", "failed", "cancelled"):
            self._audio_seconds.labels(outcome)
        for encoder in ("whisper", "wavlm"):
            self._encoder.labels(encoder)

    def watch(
        self, snapshot: Callable[[], Snapshot], take_encoder_runs: Callable[[], Iterable[EncoderRun]]
    ) -> None:
        """Read gauges and the engine's counters from these at every scrape. Call once."""
        self._take_encoder_runs = take_encoder_runs
        self.registry.register(_SnapshotCollector(snapshot))

    def render(self) -> bytes:
        """The exposition in Prometheus' text format."""
        self.collect_encoder_runs()
        return generate_latest(self.registry)

    def collect_encoder_runs(self) -> None:
        """Move the engine's finished encoder passes into the histograms."""
        for run in self._take_encoder_runs():
            self._encoder.labels(run.encoder).observe(run.seconds)
            if run.encoder == "whisper":  # both branches read the same clips
                self._encoder_batch.observe(run.batch_size)

    def accepted(self) -> None:
        """A request got its slot."""
        self._accepted.inc()

    def rejected(self, reason: str) -> None:
        """A request was refused before it got a slot. reason: an error code."""
        self._rejected.labels(reason).inc()

    def ended(self, outcome: Outcome, audio_s: float) -> None:
        """An accepted request ended; audio_s: seconds of its clip, 0 if it was never decoded."""
        counters = {"success": self._success, "failed": self._failed, "cancelled": self._cancelled}
        counters[outcome.kind].labels(outcome.label).inc()
        self._audio_seconds.labels(outcome.kind).inc(audio_s)

    def answered(self, *, total_s: float, queue_s: float, audio_s: float) -> None:
        """Durations of an answered request; audio_s 0: it had no clip."""
        self._e2e.observe(total_s)
        self._queue_time.observe(queue_s)
        if audio_s > 0:
            self._factor.observe(total_s / audio_s)
        self.collect_encoder_runs()

    def decoded(self, *, seconds: float, audio_s: float) -> None:
        """A clip of audio_s seconds was decoded in this time."""
        self._decode.observe(seconds)
        self._audio_duration.observe(audio_s)

    def prefilling(self, num_tokens: int) -> None:
        """The engine begins to read a prompt of this many tokens."""
        self._prompt_tokens.inc(num_tokens)

    def first_token(self, seconds: float) -> None:
        """The first token came after this time."""
        self._ttft.observe(seconds)

    def generated(self, num_tokens: int) -> None:
        """New tokens left the engine."""
        self._generation_tokens.inc(num_tokens)

    def next_tokens(self, num_tokens: int, seconds: float) -> None:
        """These tokens came this long after the ones before."""
        for _ in range(num_tokens):
            self._inter_token.observe(seconds / num_tokens)


def error_codes() -> tuple[str, ...]:
    """Every code of the error tree but the client's own departure, sorted."""
    codes: set[str] = set()
    todo: list[type[ServerError]] = [ServerError]
    while todo:
        cls = todo.pop()
        codes.add(cls.code)
        todo.extend(cls.__subclasses__())
    return tuple(sorted(codes - {RequestCancelled.code}))


class _SnapshotCollector(Collector):
    """Gauges and the engine's cumulative counters, read when scraped."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering does not take a snapshot."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """One family per gauge and counter."""
        now = self._snapshot()
        yield from _gauges(now)
        yield _model_state(now.state)
        yield from _engine_counters(now.engine)


def _gauges(now: Snapshot) -> Iterator[Metric]:
    values = (
        ("num_requests_running", "Requests that the engine works on.", now.num_running),
        ("num_requests_waiting", "Requests with a slot that wait.", now.num_waiting),
        ("queue_audio_seconds", "Seconds of audio that wait.", now.queue_audio_s),
        ("kv_cache_usage_perc", "Share of KV pages held by live sequences.", now.engine.kv_cache_usage),
        ("kv_cache_cached_perc", "Share of KV pages kept for reuse.", now.engine.kv_cache_cached),
        ("encoder_cache_bytes", "Bytes of cached audio embeddings.", now.engine.encoder_cache_bytes),
    )
    for name, text, value in values:
        yield GaugeMetricFamily(PREFIX + name, text, value=value)


def _model_state(state: str) -> Metric:
    family = GaugeMetricFamily(PREFIX + "model_state", "1 for the state the server is in.", labels=["state"])
    for name in MODEL_STATES:
        family.add_metric([name], float(name == state))
    return family


def _engine_counters(stats: EngineStats) -> Iterator[Metric]:
    values = (
        ("encoder_cache_hits", "Clips whose embeddings were cached.", stats.encoder_cache_hits),
        ("encoder_cache_misses", "Clips that had to be encoded.", stats.encoder_cache_misses),
        ("encoder_cache_evictions", "Embeddings dropped for room.", stats.encoder_cache_evictions),
        ("prompt_cache_hits", "Instructions whose LoRA scales were cached.", stats.prompt_cache_hits),
        ("prompt_cache_misses", "Instructions that had to be read.", stats.prompt_cache_misses),
        ("num_preemptions", "Sequences that gave up their KV pages.", stats.num_preemptions),
    )
    for name, text, value in values:
        yield CounterMetricFamily(PREFIX + name, text, value=value)
