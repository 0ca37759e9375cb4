"""A fleet of servers as a discrete-event model: requests, a balancer before them, and the batcher's rules in each.

Where theory is exact the model is held to it (tests/serve/bench/test_fleet.py): M/D/1, M/M/c, the loss formula, and the
power of two choices. What it leaves out: priorities and turns of clients, several sizes of canvas, and the times of
batches following the machine's pace.
"""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ferryman.server.admission import SHARE

Floats = NDArray[np.float64]
# From a request's number and what each server has inside to the server that gets it.
Pick = Callable[[int, list[int]], int]
_Batch = list[int]  # numbers of the requests in it


@dataclass(frozen=True)
class Server:
    """What each is. seconds: that a batch takes by its size, as a rule; best: the largest batch that helps

    concurrency: runs side by side; queue_limit: requests inside at a time; deadline_s: of each request
    draw: what a run of a batch really takes, by its size; by default what it takes as a rule
    """

    seconds: Callable[[int], float]
    best: int = 1
    concurrency: int = 1
    queue_limit: int = 256
    deadline_s: float = float("inf")
    draw: Callable[[int], float] | None = None


@dataclass(frozen=True)
class Outcome:
    """latency_s: of each request, NaN where it was refused; inside: what its server had inside when it came

    utilisation: share of the time that runs took of all that could; batch: requests in a run, on average
    """

    latency_s: Floats
    inside: NDArray[np.int64]
    utilisation: float
    batch: float

    @property
    def refused(self) -> float:
        """Share of the requests."""
        return float(np.isnan(self.latency_s).mean())

    def percentile_s(self, percent: float) -> float:
        """Of those that were answered, infinite when none was."""
        answered = self.latency_s[~np.isnan(self.latency_s)]
        return float(np.percentile(answered, percent)) if len(answered) else float("inf")


@dataclass
class _State:
    """Of one server. ends: of the runs, as far as can be told; waiting: in the order in which they came"""

    waiting: deque[int] = field(default_factory=deque[int])
    ends: list[float] = field(default_factory=list[float])


class _Fleet:
    def __init__(self, arrivals: Floats, server: Server, count: int) -> None:
        self._arrivals: list[float] = arrivals.tolist()  # plain numbers: one at a time they are much faster
        self._server = server
        self._states = [_State() for _ in range(count)]
        self._running: list[tuple[float, int, int, _Batch]] = []  # a heap: end, number of the run, server, requests
        self.inside = [0] * count
        self.latency_s = [float("nan")] * len(arrivals)
        self.busy_s = self.end = 0.0
        self.runs = 0
        self.ran = 0

    def arrive(self, number: int, place: int) -> None:
        now, state, server = self._arrivals[number], self._states[place], self._server
        idle = len(state.ends) < server.concurrency
        if self.inside[place] >= server.queue_limit or not (idle or self._in_time(state, now)):
            return
        self.inside[place] += 1
        state.waiting.append(number)
        if idle:
            self._start(place, now)

    def advance(self, now: float) -> None:
        """To what has ended by now."""
        while self._running and self._running[0][0] <= now:
            end, _, place, batch = heapq.heappop(self._running)
            for number in batch:
                self.latency_s[number] = end - self._arrivals[number]
            self.inside[place] -= len(batch)
            self.end = end
            state = self._states[place]
            state.ends.remove(min(state.ends))
            self._start(place, end)

    def _in_time(self, state: _State, now: float) -> bool:
        """By the engine's rule: what runs, what waits and the request itself end in its share of the deadline."""
        server = self._server
        full, rest = divmod(len(state.waiting) + 1, server.best)
        ahead = full * server.seconds(server.best) + (server.seconds(rest) if rest else 0.0)
        wait = (sum(max(0.0, end - now) for end in state.ends) + ahead) / server.concurrency
        return wait <= SHARE * server.deadline_s - server.seconds(1)

    def _start(self, place: int, now: float) -> None:
        """A run of what waits: as many as help, and end before the first deadline. What is too late goes first."""
        state, server = self._states[place], self._server
        while state.waiting and now + server.seconds(1) > self._arrivals[state.waiting[0]] + server.deadline_s:
            state.waiting.popleft()
            self.inside[place] -= 1
        if not state.waiting:
            return
        size, earliest = min(len(state.waiting), server.best), self._arrivals[state.waiting[0]] + server.deadline_s
        while size > 1 and now + server.seconds(size) > earliest:
            size -= 1
        took = (server.draw or server.seconds)(size)
        self.runs += 1
        self.ran += size
        self.busy_s += took
        state.ends.append(now + server.seconds(size))
        heapq.heappush(self._running, (now + took, self.runs, place, [state.waiting.popleft() for _ in range(size)]))


def simulate(arrivals: Floats, server: Server, count: int, pick: Pick) -> Outcome:
    """So many servers get requests at these times, in seconds, ascending, until all are answered."""
    fleet = _Fleet(arrivals, server, count)
    inside = [0] * len(arrivals)
    for number, now in enumerate(arrivals.tolist()):
        fleet.advance(now)
        place = pick(number, fleet.inside)
        inside[number] = fleet.inside[place]
        fleet.arrive(number, place)
    fleet.advance(float("inf"))
    span = fleet.end - float(arrivals[0]) if fleet.runs else 1.0
    utilisation = fleet.busy_s / (span * count * server.concurrency)
    return Outcome(np.array(fleet.latency_s), np.array(inside), utilisation, fleet.ran / max(fleet.runs, 1))


def least_busy(number: int, inside: list[int]) -> int:
    """The server with the fewest inside, as one Envoy that scans all."""
    return inside.index(min(inside))


def stay(count: int, sources: NDArray[np.int64]) -> Pick:
    """Each source on one server, which have as many sources each: streams that opened on the emptiest one."""
    places = (sources % count).tolist()
    return lambda number, inside: places[number]


def poisson(rate: float, seconds: float, random: np.random.Generator) -> Floats:
    """Times of requests that know nothing of one another, so many a second."""
    return np.sort(random.uniform(0, seconds, random.poisson(rate * seconds)))


def cameras(
    count: int, fps: float, seconds: float, random: np.random.Generator, spread_s: float | None = None
) -> tuple[Floats, NDArray[np.int64]]:
    """Times of frames, and which camera each is of. spread_s: of their phases, by default the whole time of a frame"""
    phases = random.uniform(0, 1 / fps if spread_s is None else spread_s, count)
    times = (phases[:, None] + np.arange(int(seconds * fps))[None, :] / fps).ravel()
    order = np.argsort(times, kind="stable")
    return times[order], np.repeat(np.arange(count), int(seconds * fps))[order]
