"""Numbers about the server itself, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One registry a server, so that several may live in one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self.requests = Counter(
            "trainsanity_http_requests",
            "Requests answered.",
            ["method", "status"],
            registry=self._registry,
        )
        self.seconds = Histogram(
            "trainsanity_http_request_seconds",
            "Time until the head of the answer.",
            ["method"],
            registry=self._registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
        )
        self.packets = Counter(
            "trainsanity_packets",
            "Packets by what became of them.",
            ["what"],
            registry=self._registry,
        )
        self.points = Counter("trainsanity_points", "Samples stored.", registry=self._registry)
        self.judgements = Histogram(
            "trainsanity_judgement_seconds",
            "Time of one judgement of a run.",
            registry=self._registry,
        )

    def watch(
        self, name: str, text: str, label: str, look: Callable[[], Mapping[str, float]]
    ) -> None:
        """A gauge that is looked up when somebody asks."""
        self._registry.register(_Gauge(name, text, label, look))

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Gauge:
    def __init__(
        self, name: str, text: str, label: str, look: Callable[[], Mapping[str, float]]
    ) -> None:
        self._name = name
        self._text = text
        self._label = label
        self._look = look

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(self._name, self._text, labels=[self._label])

    def collect(self) -> Iterator[GaugeMetricFamily]:
        gauge = GaugeMetricFamily(self._name, self._text, labels=[self._label])
        for value, number in self._look().items():
            gauge.add_metric([value], number)
        yield gauge
