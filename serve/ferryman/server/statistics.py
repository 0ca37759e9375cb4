"""What a model's requests and batches took: counted as Triton's statistics are, and as histograms."""

import threading
import time
from bisect import bisect_left
from dataclasses import dataclass, field

from ferryman.server.request import REQUEST

# Nanoseconds: from a small model's share of a batch to what no client waits for.
BOUNDS_NS = tuple(int(ms * 1e6) for ms in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000))


@dataclass(frozen=True)
class Stages:
    """Nanoseconds of one batch, or of all the batches of one request.

    input_ns: until the graph's inputs are there, decoding included; infer_ns: in the session
    output_ns: from the session's outputs to what the request gets
    """

    input_ns: int
    infer_ns: int
    output_ns: int


@dataclass
class Duration:
    """How often, and how long in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns


@dataclass
class Histogram:
    """counts: of durations up to each of BOUNDS_NS that the one before has not, and of those above all; ns: in all"""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_NS) + 1))
    ns: int = 0

    def add(self, ns: int) -> None:
        self.counts[bisect_left(BOUNDS_NS, ns)] += 1
        self.ns += ns


@dataclass
class Histograms:
    """Of requests that were answered; each counts the whole of the batches that it was in."""

    total: Histogram = field(default_factory=Histogram)
    queue: Histogram = field(default_factory=Histogram)
    decode: Histogram = field(default_factory=Histogram)
    compute: Histogram = field(default_factory=Histogram)
    encode: Histogram = field(default_factory=Histogram)


@dataclass
class StageDurations:
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)

    def add(self, stages: Stages) -> None:
        self.compute_input.add(stages.input_ns)
        self.compute_infer.add(stages.infer_ns)
        self.compute_output.add(stages.output_ns)


@dataclass
class Statistics:
    """Since the model was loaded; written by several threads.

    success, queue, requests: of requests that were answered; each counts the whole of the batches that it was in
    fail: of those that were not, those included that were refused for want of a place
    images: in requests that were answered; last_ms: when the last was, in milliseconds since 1970, 0 for never
    batches: by their number of images
    """

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    requests: StageDurations = field(default_factory=StageDurations)
    images: int = 0
    last_ms: int = 0
    batches: dict[int, StageDurations] = field(default_factory=dict[int, StageDurations])
    histograms: Histograms = field(default_factory=Histograms)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add_batch(self, size: int, stages: Stages) -> None:
        with self._lock:
            found = self.batches.get(size)
            if found is None:
                # another dictionary, so that one that is being read stays as it is
                found = StageDurations()
                self.batches = dict(sorted((self.batches | {size: found}).items()))
            found.add(stages)

    def add_answer(self, images: int, total_ns: int, queue_ns: int, stages: Stages) -> None:
        with self._lock:
            self.success.add(total_ns)
            self.queue.add(queue_ns)
            self.requests.add(stages)
            self.images += images
            self.last_ms = time.time_ns() // 1_000_000
            histograms = self.histograms
            histograms.total.add(total_ns)
            histograms.queue.add(queue_ns)
            histograms.decode.add(stages.input_ns)
            histograms.compute.add(stages.infer_ns)
            histograms.encode.add(stages.output_ns)
        request = REQUEST.get()
        if request is not None:
            request.images, request.total_ns, request.queue_ns, request.stages = images, total_ns, queue_ns, stages

    def add_failure(self, total_ns: int) -> None:
        with self._lock:
            self.fail.add(total_ns)
