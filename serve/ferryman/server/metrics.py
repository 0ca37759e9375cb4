"""What Prometheus reads: made of what the server counts anyway. See docs/monitoring.md."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ferryman import __version__
from ferryman.server.engine import Engine
from ferryman.server.health import Health
from ferryman.server.observing import Counts
from ferryman.server.repository import ModelRepository
from ferryman.server.statistics import BOUNDS_NS, Histogram
from ferryman.server.watching import Watcher

_MODEL = ("model", "version", "variant")
_STAGES = ("queue", "decode", "compute", "encode")
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Sources:
    """What a server counts."""

    models: ModelRepository[Engine]
    counts: Counts
    calls: Callable[[], int]
    health: Health
    watcher: Watcher


class Metrics:
    """Reads its sources where they are written, on the event loop, which takes milliseconds."""

    def __init__(self, sources: Sources) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Server(sources))
        ProcessCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Text and its content type. accept: what the reader takes, as in HTTP; Prometheus' own format by default."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Server(Collector):
    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def describe(self) -> list[Metric]:
        return []  # known by name only when asked

    def collect(self) -> Iterator[Metric]:
        yield from _server(self._sources)
        yield from _repository(self._sources)
        yield from _models(self._sources.models.loaded())


def _server(sources: Sources) -> Iterator[Metric]:
    yield InfoMetricFamily("ferryman_build", "The server's version.", {"version": __version__})
    yield GaugeMetricFamily("ferryman_ready", "1 when the server takes requests.", float(sources.health.ready))
    yield GaugeMetricFamily("ferryman_calls_in_flight", "gRPC calls whose status is not sent.", sources.calls())
    calls = CounterMetricFamily(
        "ferryman_calls", "gRPC calls that have ended; a stream is one.", labels=("method", "code")
    )
    counts = sources.counts.now()
    for labels, count in counts.calls.items():
        calls.add_metric(labels, count)
    yield calls
    requests = CounterMetricFamily(
        "ferryman_requests", "Requests to models that have ended, each of a stream's.", labels=(*_MODEL, "code")
    )
    for labels, count in counts.requests.items():
        requests.add_metric(labels, count)
    yield requests


def _repository(sources: Sources) -> Iterator[Metric]:
    followed = not sources.watcher.problem
    yield GaugeMetricFamily("ferryman_repository_followed", "0 while the folder can't be followed.", float(followed))
    states = GaugeMetricFamily(
        "ferryman_model_state", "1 for the state that each version is in.", labels=("model", "version", "state")
    )
    for one in sources.models.index():
        states.add_metric((one.name, str(one.version), one.state), 1)
    yield states
    refused = GaugeMetricFamily(
        "ferryman_model_refused", "1 for each version that could not be loaded.", labels=("model", "version")
    )
    for one in sources.models.refused():
        refused.add_metric((one.name, str(one.version)), 1)
    yield refused


def _models(engines: Sequence[Engine]) -> Iterator[Metric]:
    requests = HistogramMetricFamily("ferryman_request_seconds", "Of answered requests, in the server.", labels=_MODEL)
    stages = HistogramMetricFamily(
        "ferryman_stage_seconds", "Of answered requests, by stage.", labels=(*_MODEL, "stage")
    )
    batches = HistogramMetricFamily("ferryman_batch_images", "Images in a run of the model.", labels=_MODEL)
    images = CounterMetricFamily("ferryman_images", "Images in answered requests.", labels=_MODEL)
    inside = GaugeMetricFamily("ferryman_images_inside", "Images being decoded, waiting or running.", labels=_MODEL)
    waiting = GaugeMetricFamily("ferryman_images_waiting", "Images in the queue of a model.", labels=_MODEL)
    for engine in engines:
        model, statistics = engine.model, engine.statistics
        labels = (model.name, str(model.version), model.target)
        requests.add_metric(labels, *_buckets(statistics.histograms.total))
        for stage in _STAGES:
            histogram: Histogram = getattr(statistics.histograms, stage)
            stages.add_metric((*labels, stage), *_buckets(histogram))
        counts = {size: found.compute_infer.count for size, found in statistics.batches.items()}
        batches.add_metric(labels, *_batch_buckets(counts))
        images.add_metric(labels, statistics.images)
        inside.add_metric(labels, engine.images_inside)
        waiting.add_metric(labels, engine.images_waiting)
    yield from (requests, stages, batches, images, inside, waiting)


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    counts = list(histogram.counts)
    bounds = [*(str(ns / 1e9) for ns in BOUNDS_NS), "+Inf"]
    return [(bound, sum(counts[: i + 1])) for i, bound in enumerate(bounds)], histogram.ns / 1e9


def _batch_buckets(counts: Mapping[int, int]) -> tuple[list[tuple[str, float]], float]:
    """counts: batches by their number of images"""
    buckets = [
        (str(float(bound)), float(sum(count for size, count in counts.items() if size <= bound)))
        for bound in (*_BATCHES, float("inf"))
    ]
    buckets[-1] = ("+Inf", buckets[-1][1])
    return buckets, float(sum(size * count for size, count in counts.items()))
