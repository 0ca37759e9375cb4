"""The highest rate of requests that keeps a latency bound."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import expm1, log, sqrt

from ferryman.bench.percentiles import count_beyond
from ferryman.specs import Facts

PRECISION = 0.05  # between the highest rate that kept the bound and the lowest that did not, at best
# By how much the rate at which trials of one length break a bound varies, as a standard deviation, times the root of
# the requests that may be too slow: of simulated queues 0.27 to 0.7, for p90 and p99, bounds of 3 to 10 requests.
_NOISE = 0.3
_FIRST_STEP, _LAST_STEP = 1.1, 2.0  # up or down from the start; each the square of the one before
_LOWEST_SHARE = 0.05  # of what a server can answer: a first guess
_DEEPEST = 32  # times below the start, where requests hardly meet any more
_MOST = 40  # trials
_CONFIRMATIONS = 8
_SEARCHING, _CONFIRMING = 1 / 2, 3 / 4  # of the time, after which no trial is begun and no further confirmation
_LATE = "its time was over, of which more --seconds or --at-most give more"

Try = Callable[[float], Awaitable["Trial"]]


class Bound(Facts):
    """The latency that `percentile` of the requests must not exceed."""

    percentile: float
    ms: float


class Trial(Facts):
    """One rate. kept: whether the bound held; percentile_ms: None where it was given up before all were answered

    requests: answered; missed: refused or out of time; late_ms: the longest that a request was sent after its turn
    """

    rate: float
    kept: bool
    percentile_ms: float | None
    requests: int
    missed: int
    late_ms: float


@dataclass(frozen=True)
class Search:
    """trial: at the highest rate that keeps the bound, None when none does; trials: all; ended: why, for people"""

    trial: Trial | None
    trials: tuple[Trial, ...]
    ended: str


def find_precision(percentile: float, requests: int) -> float:
    """How near to each other trials of so many requests can tell rates apart, as a ratio beyond 1."""
    return max(PRECISION, _NOISE / sqrt(max(1, count_beyond(percentile, requests))))


def guess_rate(bound: Bound, alone_ms: float, most: float) -> float:
    """The rate at which a queue keeps the bound, if it answers `most` requests a second at best, always as fast.

    Of M/D/1 with the load r, the share of the requests that wait for longer than k others falls off as exp(-x k), where
    r = x / (exp(x) - 1), by Cramer and Lundberg. alone_ms: what a request takes that waits for none
    """
    others = (bound.ms - alone_ms) / 1e3 * most
    x = min(50.0, -log(1 - bound.percentile / 100) / max(others, 1e-9))
    return most * max(_LOWEST_SHARE, x / expm1(x))


async def find_rate(
    try_rate: Try,
    confirm: Try,
    start: float,
    precision: Callable[[float], float] = lambda rate: PRECISION,
    spent: Callable[[], float] = lambda: 0.0,
) -> Search:
    """Goes up or down from `start`, by steps that grow, until the answer lies between two rates; then halves the
    distance in ratios until that is `precision`. The middle of the two must be confirmed, else the lower one, else less
    by `PRECISION`, then by twice as much ...

    confirm: a longer trial; precision: of trials at a rate; spent: share of its time that the search has taken so far
    """
    trials: list[Trial] = []

    async def attempt(rate: float, how: Try = try_rate) -> bool:
        trials.append(await how(rate))
        return trials[-1].kept

    low, high, rate, step = 0.0, float("inf"), start, _FIRST_STEP  # the highest that kept it, the lowest that did not
    while high > low * (1 + precision(rate)) and len(trials) < _MOST and spent() <= _SEARCHING:
        if low == 0 and rate < start / _DEEPEST:
            return Search(None, tuple(trials), f"{high:.4g} requests a second, the fewest that were tried, broke it")
        if await attempt(rate):
            low = rate
        else:
            high = rate
        if low and high < float("inf"):
            rate = sqrt(low * high)
        else:
            rate, step = rate * step if low else rate / step, min(_LAST_STEP, step**2)
    if low == 0:
        return Search(None, tuple(trials), f"{_LATE}: {high:.4g} requests a second broke it, and fewer are untried")
    rate = low if high == float("inf") else sqrt(low * high)
    for number in range(_CONFIRMATIONS):
        if number and spent() > _CONFIRMING:
            return Search(None, tuple(trials), f"{_LATE}, before what it had found was confirmed")
        if await attempt(rate, confirm):
            broken = min((one.rate for one in trials if not one.kept and one.rate > rate), default=None)
            beyond = "nothing that was tried broke it" if broken is None else f"{broken:.4g} broke it"
            return Search(trials[-1], tuple(trials), f"confirmed by {trials[-1].requests:,} requests, and {beyond}")
        rate = low
        low /= 1 + PRECISION * 2**number
    return Search(None, tuple(trials), f"none of {_CONFIRMATIONS} longer trials confirmed what shorter ones had found")
