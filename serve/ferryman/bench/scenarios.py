"""How requests are made while they are timed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ferryman.predictor import Timings

Ask = Callable[[bytes], Timings]


@dataclass(frozen=True)
class Sample:
    """One request. latency_ms: as the caller saw it; stages: as the one that answered it timed them."""

    latency_ms: float
    stages: Timings


def run_single_stream(
    ask: Ask,
    images: Sequence[bytes],
    seconds: float,
    warmup: int = 10,
    advance: Callable[[float], None] = lambda elapsed: None,
) -> list[Sample]:
    """One request after the other, the next when the last is answered (MLPerf Inference's SingleStream).

    images: encoded pictures, taken in turn; warmup: requests before the clock starts
    advance: called with the seconds measured so far. At least one request of every picture is timed.
    """
    for number in range(warmup):
        ask(images[number % len(images)])
    samples: list[Sample] = []
    start = time.perf_counter()
    while (now := time.perf_counter()) - start < seconds or len(samples) < len(images):
        stages = ask(images[len(samples) % len(images)])
        samples.append(Sample((time.perf_counter() - now) * 1e3, stages))
        advance(now - start)
    return samples
