"""Several things measured in turn, so that what disturbs the machine disturbs all of them alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from ferryman.golden import GoldenSamples
from ferryman.runtimes.base import Session
from ferryman.specs import Facts

T = TypeVar("T")
Blocks = Sequence[Sequence[float]]  # the latencies of each round, in milliseconds
ROUNDS = 12
RESAMPLES = 2000  # of a bootstrap


class Ratio(Facts):
    """How many times as fast one thing is as another: `value`, and the interval that holds 95 % of its resamples."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} times as fast ({self.low:.2f} to {self.high:.2f})"

    @property
    def differs(self) -> bool:
        """Whether the interval excludes that both are as fast."""
        return not self.low <= 1 <= self.high


def run_in_turn(
    measures: Mapping[str, Callable[[float], list[T]]],
    seconds: float,
    rounds: int = ROUNDS,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[list[T]]]:
    """A block of `seconds / rounds` of each thing in every round; every second round goes backwards.

    measures: measures for about so many seconds, at least once, and gives what it found
    advance: called with the number of blocks done and in all
    """
    blocks: dict[str, list[list[T]]] = {name: [] for name in measures}
    total = rounds * len(measures)
    for number in range(rounds):
        order = list(measures) if number % 2 == 0 else list(measures)[::-1]
        for place, name in enumerate(order):
            advance(number * len(order) + place, total)
            blocks[name].append(measures[name](seconds / rounds))
    return blocks


def compare_speed(base: Blocks, other: Blocks) -> Ratio:
    """How many times as fast `other` is as `base`, measured in the same rounds.

    The median over the rounds of the ratio of their medians; the interval is a bootstrap's over whole rounds, since
    runs of one block share what disturbed them.
    """
    medians = np.array([[np.median(mine), np.median(others)] for mine, others in zip(base, other, strict=True)])
    ratios = medians[:, 0] / medians[:, 1]
    picked = np.random.default_rng(0).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[picked], axis=1), (2.5, 97.5))
    return Ratio(value=float(np.median(ratios)), low=float(low), high=float(high))


def time_session(session: Session, golden: GoldenSamples, seconds: float) -> list[float]:
    """`time_runs` on one golden sample after the other, input tensors to output tensors."""
    return time_runs(session.run, [golden.batch([index]) for index in range(len(golden))], seconds)


def time_runs(run: Callable[[T], object], inputs: Sequence[T], seconds: float, warmup: int = 2) -> list[float]:
    """Milliseconds of each run on one input after the other, for about so many seconds, at least one.

    warmup: runs before the clock starts: what ran before has left its own weights in the caches
    """
    for number in range(warmup):
        run(inputs[number % len(inputs)])
    latencies: list[float] = []
    start = time.perf_counter()
    while (now := time.perf_counter()) - start < seconds or not latencies:
        run(inputs[len(latencies) % len(inputs)])
        latencies.append((time.perf_counter() - now) * 1e3)
    return latencies
