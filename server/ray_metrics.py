"""A replica's metrics in the exporter that Ray has on every node: a replica has no port to be scraped at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

PERIOD_S = 5.0
"""Ray's own exporter reports about as often."""


class MetricsMirror:
    """Sets a gauge of Ray's to the value of each sample: same name behind Ray's prefix `ray_`, same labels.

    Gauges for counters and histogram buckets too: their values are totals already, and what is computed from
    scraped samples (rate, histogram_quantile) does not ask for the type.
    render: the metrics as Prometheus' text. make_gauge: as `ray.serve.metrics.Gauge`.
    """

    def __init__(self, render: Callable[[], bytes], make_gauge: Callable[..., Any]) -> None:
        self._render = render
        self._make_gauge = make_gauge
        self._gauges: dict[str, Any] = {}

    async def run(self) -> None:
        """Update until cancelled."""
        while True:
            self.update()
            await asyncio.sleep(PERIOD_S)

    def update(self) -> None:
        """Bring every gauge to what the metrics say now."""
        for documentation, sample in self._samples():
            self._gauge(sample, documentation).set(sample.value, tags=sample.labels)

    def _samples(self) -> Iterator[tuple[str, Sample]]:
        for family in text_string_to_metric_families(self._render().decode()):
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    yield family.documentation, sample

    def _gauge(self, sample: Sample, documentation: str) -> Any:
        if sample.name not in self._gauges:
            gauge = self._make_gauge(sample.name, documentation, tag_keys=tuple(sample.labels))
            self._gauges[sample.name] = gauge
        return self._gauges[sample.name]
