"""Which blocks of a graph must stay in floating point: found by measuring, not by their names.

Every block is put into the low precision alone, and ranked by the error that it adds to the answers. Then the worst are
given back, as few as the tolerance allows.
"""

from collections.abc import Callable, Generator, Mapping, Sequence, Set
from typing import Annotated

from pydantic import BeforeValidator

from ferryman.errors import ParityError
from ferryman.specs import Facts

# An overflow makes the error infinite, which JSON has no word for.
Error = Annotated[float, BeforeValidator(lambda error: min(error, 1e9))]


class Verdict(Facts):
    """error: of the answers, relative to their magnitude; passed: the tolerance; why: not, in a line"""

    error: Error
    passed: bool
    why: str = ""


class BlockError(Facts):
    """error: of the answers when this block alone is in the low precision, over what is there without any"""

    block: str
    error: Error


class CurvePoint(Facts):
    """What was measured with the `islands` worst blocks in fp32."""

    islands: int
    error: Error
    passed: bool


class IslandReport(Facts):
    """blocks: all that could be in the low precision, the best to give back first; empty when none had to be ranked
    islands: those kept in fp32; free: how many of them, the first, were not searched: the runtime refuses them in the
    low precision, or they cost next to nothing
    curve: what the search tried, by the number of islands beside those
    """

    blocks: tuple[BlockError, ...] = ()
    islands: tuple[str, ...] = ()
    free: int = 0
    curve: tuple[CurvePoint, ...]


Judge = Callable[[Set[str]], Verdict]


def find_unable(
    blocks: Sequence[str], runs: Callable[[Set[str]], bool], advance: Callable[[int], None] = lambda done: None
) -> tuple[str, ...]:
    """Blocks that can't be run in the low precision at all, each tried alone; none are when all can together.

    runs: whether the graph runs with these blocks kept in fp32
    """
    if runs(frozenset()):
        return ()
    unable: list[str] = []
    everything = frozenset(blocks)
    for block in blocks:
        if not runs(everything - {block}):
            unable.append(block)
        advance(1)
    return tuple(unable)


def rank_blocks(
    blocks: Sequence[str], measure: Callable[[Set[str]], float], advance: Callable[[int], None] = lambda done: None
) -> tuple[BlockError, ...]:
    """Each block alone in the low precision, the worst first. measure: the error with these blocks kept in fp32."""
    found: list[BlockError] = []
    everything = frozenset(blocks)
    for block in blocks:
        found.append(BlockError(block=block, error=measure(everything - {block})))
        advance(1)
    return tuple(sorted(found, key=lambda one: -one.error))


def search_islands(
    judge: Judge, rank: Callable[[], tuple[BlockError, ...]], cost: Mapping[str, int], allowed: int, what: str
) -> IslandReport:
    """The fewest worst blocks that have to stay in fp32, of those that the budget has room for.

    judge: the verdict with these blocks kept in fp32; rank: see `rank_blocks`, called only when it is needed
    cost: matrix products in each block; allowed: how many may stay in fp32, lest the precision's name be a lie
    Raises ParityError when that does not suffice; `what` names the variant there.
    """
    first = judge(frozenset())
    start = CurvePoint(islands=0, error=first.error, passed=first.passed)
    if first.passed:
        return IslandReport(curve=(start,))
    ranked = rank()
    why, most = first.why, 0
    for affordable in _choose_affordable(ranked, cost, allowed):
        curve = [start]
        count, why = _find_least(judge, affordable, curve)
        if count:
            curve.sort(key=lambda point: point.islands)
            return IslandReport(blocks=ranked, islands=tuple(affordable[:count]), curve=tuple(curve))
        most = max(most, len(affordable))
    raise ParityError(
        f"{what} is out of tolerance with {most} of {len(ranked)} blocks in fp32, and no more may be: {why}"
    )


def _choose_affordable(ranked: Sequence[BlockError], cost: Mapping[str, int], allowed: int) -> Generator[list[str]]:
    """The worst blocks that the budget has room for; then without the dearest of them, and so on.

    Most blocks hold no product, and cost nothing. One of several may leave room for no other, and several others be
    worth more together than their errors alone tell.
    """
    last: list[str] = []
    for dearest in sorted({max(1, cost[one.block]) for one in ranked}, reverse=True):
        spent, chosen = 0, list[str]()
        for one in ranked:
            if cost[one.block] <= dearest and spent + cost[one.block] <= allowed:
                spent += cost[one.block]
                chosen.append(one.block)
        if chosen != last:
            yield chosen
        last = chosen


def _find_least(judge: Judge, islands: Sequence[str], curve: list[CurvePoint]) -> tuple[int, str]:
    """How many of the first islands it takes, 0 when all of them don't do; and why the last that failed did.

    Doubling, then halving: a handful of islands is the rule, and every verdict costs a run over all pictures, which
    `curve` is told of.
    """
    why = ""

    def holds(count: int) -> bool:
        nonlocal why
        verdict = judge(frozenset(islands[:count]))
        curve.append(CurvePoint(islands=count, error=verdict.error, passed=verdict.passed))
        why = verdict.why or why
        return verdict.passed

    low, high = 0, 1
    while not holds(high):
        if high == len(islands):
            return 0, why
        low, high = high, min(2 * high, len(islands))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high, why
