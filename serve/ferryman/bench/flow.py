"""Many requests at a time: closed loops, whose clients wait for their answers, and an open one, which waits for nobody.

The clock is the event loop's own, so that a loop in virtual time plays any session in no time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ferryman.bench.samples import Block, Series
from ferryman.errors import DeadlineError, OverloadedError

# Makes a request, by its number from 0, and gives the milliseconds of its stages.
AsyncRequest = Callable[[int], Awaitable[Mapping[str, float]]]
_POLL_S = 0.005  # between two looks at whether an open loop is to be given up


@dataclass
class Answers:
    """In the order in which they came."""

    latencies_ms: list[float] = field(default_factory=list[float])
    stages_ms: list[Mapping[str, float]] = field(default_factory=list[Mapping[str, float]])

    def block(self, start_s: float, seconds: float) -> Block:
        names = self.stages_ms[0] if self.stages_ms else ()
        stages: dict[str, Series] = {name: np.array([one[name] for one in self.stages_ms]) for name in names}
        kept = np.array(self.latencies_ms[: len(self.stages_ms)])  # a signal may come between the two lists
        return Block(start_s, seconds, kept, stages)


@dataclass(frozen=True)
class Flood:
    """What became of an open loop. missed: requests that were refused or ran out of time; late_ms: the longest that a
    request was sent after its turn; given_up: whether it was ended before all were sent and answered
    """

    block: Block
    missed: int
    late_ms: float
    given_up: bool


def run_load(main: Coroutine[Any, Any, None]) -> None:
    """`asyncio.run`, without a traceback of a signal's SystemExit: that reaches the caller past the tasks."""

    def complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), SystemExit):
            loop.default_exception_handler(context)

    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(complain)
        runner.run(main)


async def run_closed(
    request: AsyncRequest, clients: int, seconds: float, origin: float, blocks: list[Block], first: int = 0
) -> None:
    """So many clients that each ask again once they are answered, each at least once.

    origin: when the measuring began; blocks: are given what was answered, also when a request's error ends it
    first: number of the first request. Raises what requests raise, in a group.
    """
    clock = asyncio.get_running_loop().time
    start, answers, number = clock(), Answers(), first

    async def go_on() -> None:
        nonlocal number
        asked = False
        while not asked or clock() - start < seconds:
            mine, number, asked = number, number + 1, True
            sent = clock()
            stages = await request(mine)
            answers.latencies_ms.append((clock() - sent) * 1e3)
            answers.stages_ms.append(stages)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(go_on())
    finally:
        if answers.stages_ms:
            blocks.append(answers.block(start - origin, clock() - start))


def draw_arrivals(rate: float, seconds: float, least: int, seed: int = 0) -> Series:
    """Seconds of the requests of a Poisson process, for so long and so many at least; the same for the same seed."""
    count = max(least, round(rate * seconds))
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


async def run_open(
    request: AsyncRequest,
    arrivals: Sequence[float] | Series,
    origin: float,
    gives_up: Callable[[Sequence[float], int, float], bool] = lambda latencies_ms, missed, waiting_ms: False,
    blocks: list[Block] | None = None,
) -> Flood:
    """Sends each request at its time, whatever became of those before it.

    A latency counts from the time at which the request was to be sent: a sender that is late, or a server that holds
    up all that come, can't hide it (no coordinated omission).
    gives_up: told the latencies so far, how many were missed, and how long the oldest has been waiting
    blocks: are given what was answered, also when a request's error ends it
    Raises what a request raises, but for OverloadedError and DeadlineError: those are missed.
    """
    clock = asyncio.get_running_loop().time
    start, answers, late, missed = clock(), Answers(), 0.0, 0
    waiting: dict[int, float] = {}

    async def ask(number: int, due: float) -> None:
        nonlocal missed
        waiting[number] = due
        try:
            stages = await request(number)
        except (OverloadedError, DeadlineError):
            missed += 1
        else:
            answers.latencies_ms.append((clock() - due) * 1e3)
            answers.stages_ms.append(stages)
        finally:
            del waiting[number]

    def given_up() -> bool:
        oldest = next(iter(waiting.values()), clock())
        return gives_up(answers.latencies_ms, missed, (clock() - oldest) * 1e3)

    ended = False
    try:
        async with asyncio.TaskGroup() as group:
            tasks: set[asyncio.Task[None]] = set()
            for number, arrival in enumerate(arrivals):
                due = start + float(arrival)
                while not ended and (pause := due - clock()) > 0:
                    await asyncio.sleep(min(pause, _POLL_S) if pause > 2 * _POLL_S else pause)
                    ended = given_up()
                # once is enough: what was due later must not be sent early
                if ended or given_up():
                    ended = True
                    break
                late = max(late, clock() - due)
                task = group.create_task(ask(number, due))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            while tasks and not ended:
                await asyncio.wait(tasks, timeout=_POLL_S)
                ended = given_up()
            for task in tasks:
                task.cancel()
    finally:
        block = answers.block(start - origin, clock() - start)
        if blocks is not None and answers.stages_ms:
            blocks.append(block)
    return Flood(block, missed, late * 1e3, ended)
