"""The highest rate of requests that keeps a latency bound."""

from collections.abc import Awaitable, Callable
from math import sqrt

from ferryman.specs import Facts

PRECISION = 0.05  # between the highest rate that kept the bound and the lowest that did not
_MOST = 40  # trials
_CONFIRMATIONS = 8
_HALVINGS = 5  # below the start, where requests hardly meet any more


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


async def find_rate(
    try_rate: Callable[[float], Awaitable[Trial]], confirm: Callable[[float], Awaitable[Trial]], start: float
) -> tuple[Trial | None, list[Trial]]:
    """The trial at the highest rate that keeps the bound, None when none does; and all trials.

    Doubles or halves from `start` until it lies between two rates, then halves the distance in ratios until that is
    `PRECISION`. What is found must be confirmed, else it goes down by `PRECISION`, then by twice as much ...
    confirm: a longer trial
    """
    trials: list[Trial] = []

    async def attempt(rate: float, how: Callable[[float], Awaitable[Trial]] = try_rate) -> bool:
        trials.append(await how(rate))
        return trials[-1].kept

    low = high = start
    if await attempt(start):
        while await attempt(high := low * 2):
            low = high
            if len(trials) >= _MOST:
                return None, trials
    else:
        while not await attempt(low := high / 2):
            high = low
            if len(trials) > _HALVINGS:
                return None, trials
    while high / low > 1 + PRECISION:
        middle = sqrt(low * high)
        low, high = (middle, high) if await attempt(middle) else (low, middle)
    for number in range(_CONFIRMATIONS):
        if await attempt(low, confirm):
            return trials[-1], trials
        low /= 1 + PRECISION * 2**number
    return None, trials
