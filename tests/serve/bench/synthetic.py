"""Sessions of known latency on a clock that only they move: what a harness must find is known beforehand."""

from collections.abc import Callable, Mapping

import numpy as np

from ferryman.bench.disturbance import Counters
from ferryman.bench.harness import Harness, Plan, Request

Latency = Callable[[float, int], float]  # from seconds since the start and the request's number, in milliseconds
READING_S = 50e-9  # what a look at the clock takes


class ManualClock:
    """Seconds; each reading takes a little, and only it and requests move the clock."""

    def __init__(self, reading_s: float = READING_S, step_s: float = 0.0) -> None:
        self.now = 100.0
        self._reading, self._step = reading_s, step_s

    def __call__(self) -> float:
        self.now += self._reading
        return self.now if not self._step else self.now // self._step * self._step


def session(clock: ManualClock, latency: Latency) -> Request:
    """Requests that take `latency`, of which a tenth is decoding and the rest computing."""
    start = clock.now

    def request(number: int) -> Mapping[str, float]:
        took = latency(clock.now - start, number)
        clock.now += took / 1e3
        return {"decode": took * 0.1, "compute": took * 0.9}

    return request


def constant(median_ms: float, noise: float = 0.01, seed: int = 0) -> Latency:
    random = np.random.default_rng(seed)
    return lambda since, number: median_ms * float(random.normal(1, noise))


def two_modes(fast_ms: float, slow_ms: float, slow: float, seed: int = 0) -> Latency:
    """slow: share of the requests, at random, that are slow."""
    random = np.random.default_rng(seed)
    return lambda since, number: float((slow_ms if random.random() < slow else fast_ms) * random.normal(1, 0.01))


def drifting(median_ms: float, share: float, over_s: float, seed: int = 0) -> Latency:
    """Grows by `share` in `over_s` seconds, as a processor that gets hot."""
    random = np.random.default_rng(seed)
    return lambda since, number: median_ms * (1 + share * since / over_s) * float(random.normal(1, 0.01))


def stalling(median_ms: float, share: float, times: float, seed: int = 0) -> Latency:
    random = np.random.default_rng(seed)
    return lambda since, number: median_ms * float(random.normal(1, 0.01)) * (times if random.random() < share else 1)


def changing(median_ms: float, spread: float, every_s: float, seed: int = 0) -> Latency:
    """For so many seconds each, faster or slower by about `spread`, as on a machine with others on it."""
    levels = np.random.default_rng(seed + 1000).normal(1, spread, 10_000)
    random = np.random.default_rng(seed)
    return lambda since, number: median_ms * float(levels[int(since / every_s)] * random.normal(1, 0.01))


def cold(median_ms: float, times: float, requests: float, seed: int = 0) -> Latency:
    """`times` as slow at first; with every so many requests the excess falls to 1/e."""
    random = np.random.default_rng(seed)
    return lambda since, number: float(
        median_ms * (1 + (times - 1) * np.exp(-number / requests)) * random.normal(1, 0.01)
    )


def play(latencies: Mapping[str, Latency], plan: Plan, clock: ManualClock | None = None) -> Harness:
    """All of them through the harness itself, on a machine on which nothing else runs."""
    clock = clock or ManualClock()
    harness = Harness(plan, clock, Counters)
    harness.measure({name: session(clock, latency) for name, latency in latencies.items()})
    return harness
