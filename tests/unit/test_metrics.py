"""Metric names and labels are a contract; registries do not share state."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from server.errors import EngineError
from server.metrics import Metrics, Outcome, Snapshot, error_codes
from server.types import EncoderRun, EngineStats, Stage

NAMES = {
    "wavllm_num_requests_running": "gauge",
    "wavllm_num_requests_waiting": "gauge",
    "wavllm_kv_cache_usage_perc": "gauge",
    "wavllm_kv_cache_cached_perc": "gauge",
    "wavllm_queue_audio_seconds": "gauge",
    "wavllm_model_state": "gauge",
    "wavllm_encoder_cache_bytes": "gauge",
    "wavllm_time_to_first_token_seconds": "histogram",
    "wavllm_inter_token_latency_seconds": "histogram",
    "wavllm_e2e_request_latency_seconds": "histogram",
    "wavllm_request_queue_time_seconds": "histogram",
    "wavllm_request_audio_duration_seconds": "histogram",
    "wavllm_audio_decode_seconds": "histogram",
    "wavllm_encoder_seconds": "histogram",
    "wavllm_encoder_batch_size": "histogram",
    "wavllm_real_time_factor": "histogram",
    "wavllm_prompt_tokens": "counter",
    "wavllm_generation_tokens": "counter",
    "wavllm_request_success": "counter",
    "wavllm_audio_seconds": "counter",
    "wavllm_encoder_cache_hits": "counter",
    "wavllm_encoder_cache_misses": "counter",
    "wavllm_encoder_cache_evictions": "counter",
    "wavllm_prompt_cache_hits": "counter",
    "wavllm_prompt_cache_misses": "counter",
    "wavllm_requests_accepted": "counter",
    "wavllm_requests_failed": "counter",
    "wavllm_requests_rejected": "counter",
    "wavllm_requests_cancelled": "counter",
}
LABELS = {
    "wavllm_request_success_total": {"finished_reason"},
    "wavllm_audio_seconds_total": {"outcome"},
    "wavllm_encoder_seconds_count": {"encoder"},
    "wavllm_requests_failed_total": {"code"},
    "wavllm_requests_rejected_total": {"reason"},
    "wavllm_requests_cancelled_total": {"stage"},
    "wavllm_model_state": {"state"},
}


def scrape(metrics: Metrics):
    return {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}


def watched(runs=(), stats=None) -> Metrics:
    metrics = Metrics()
    pending = list(runs)

    def take():
        taken, pending[:] = tuple(pending), []
        return taken

    metrics.watch(lambda: Snapshot(2, 3, 4.5, "ready", stats or EngineStats()), take)
    return metrics


def test_every_name_and_type_is_exposed_from_the_start():
    families = scrape(watched())
    assert {name: families[name].type for name in NAMES} == NAMES


def test_labels():
    samples = [sample for family in scrape(watched()).values() for sample in family.samples]
    for name, labels in LABELS.items():
        found = {frozenset(sample.labels) for sample in samples if sample.name == name}
        assert found == {frozenset(labels)}, name


def test_gauges_and_engine_counters_are_read_at_scrape_time():
    stats = EngineStats(kv_cache_usage=0.5, kv_cache_cached=0.25, encoder_cache_hits=7, prompt_cache_misses=2)
    families = scrape(watched(stats=stats))
    values = {sample.name: sample.value for family in families.values() for sample in family.samples}
    assert values["wavllm_num_requests_running"] == 2
    assert values["wavllm_num_requests_waiting"] == 3
    assert values["wavllm_queue_audio_seconds"] == 4.5
    assert values["wavllm_kv_cache_usage_perc"] == 0.5
    assert values["wavllm_kv_cache_cached_perc"] == 0.25
    assert values["wavllm_encoder_cache_hits_total"] == 7
    assert values["wavllm_prompt_cache_misses_total"] == 2
    states = {s.labels["state"]: s.value for s in families["wavllm_model_state"].samples}
    assert [state for state, value in states.items() if value] == ["ready"]


def test_encoder_runs_are_counted_once():
    metrics = watched(runs=[EncoderRun("whisper", 0.02, 3), EncoderRun("wavlm", 0.01, 3)])
    for _ in range(2):
        samples = scrape(metrics)["wavllm_encoder_seconds"].samples
        counts = {s.labels["encoder"]: s.value for s in samples if s.name.endswith("_count")}
        assert counts == {"whisper": 1, "wavlm": 1}


def test_outcomes_and_tokens():
    metrics = watched()
    for outcome in (
        Outcome.success("stop"),
        Outcome.failed(EngineError.code),
        Outcome.cancelled(Stage.ENCODING),
    ):
        metrics.accepted()
        metrics.ended(outcome, 2.0)
    metrics.next_tokens(3, 0.3)
    values = {
        (s.name, *s.labels.values()): s.value for family in scrape(metrics).values() for s in family.samples
    }
    assert values["wavllm_requests_accepted_total",] == 3
    assert values["wavllm_request_success_total", "stop"] == 1
    assert values["wavllm_requests_failed_total", "engine_error"] == 1
    assert values["wavllm_requests_cancelled_total", "encoding"] == 1
    assert values["wavllm_audio_seconds_total", "failed"] == 2.0
    assert values["wavllm_inter_token_latency_seconds_count",] == 3


def test_registries_are_apart():
    first, second = watched(), watched()
    first.accepted()
    sample = scrape(second)["wavllm_requests_accepted"].samples[0]
    assert sample.value == 0


def test_the_codes_are_those_of_the_error_tree():
    assert set(error_codes()) == {
        "internal_error",
        "invalid_request",
        "invalid_audio",
        "context_length_exceeded",
        "unsupported_audio",
        "invalid_api_key",
        "model_not_found",
        "payload_too_large",
        "rate_limited",
        "overloaded",
        "not_ready",
        "deadline_exceeded",
        "engine_error",
    }
