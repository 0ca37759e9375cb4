"""Curves: each contender measured with more and more of something, in turn."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import psutil

from ferryman.bench.curve import Axis, Point, draw_curve
from ferryman.bench.disturbance import Disturbance
from ferryman.bench.energy import Meters
from ferryman.bench.flow import AsyncRequest, run_load
from ferryman.bench.flow_harness import FlowHarness
from ferryman.bench.harness import Harness, Plan, Request
from ferryman.bench.samples import Run
from ferryman.commands.bench.contenders import Contender, LocalContender, When
from ferryman.commands.bench.tensors import request_tensors
from ferryman.commands.bench.workload import Advance, Found, Workload, keep
from ferryman.device import read_device
from ferryman.errors import EngineError, FerrymanError, ParityError, UsageError
from ferryman.golden import GoldenSamples
from ferryman.runtimes.base import Session

_MOST_BATCH, _MOST_CLIENTS = 64, 32
_ALL = "processors are all that there are"
_BROKEN_OFF = "it was broken off"
_CLIENTS_A_STREAM = 2  # so that each has another request waiting


@dataclass(frozen=True)
class _Step:
    """A point to measure. name, at: see `Point`; row: of its run; images: in a request; clients: requests at a time

    contender: is asked about pictures, where there is no `request` of its own
    """

    name: str
    at: float
    row: str
    contender: Contender
    request: Request | None = None
    images: int = 1
    clients: int = 1


@dataclass(frozen=True)
class _Steps:
    """ended: why there are no more"""

    steps: Sequence[_Step]
    ended: str


def measure_curves(
    axis: Axis,
    workload: Workload,
    plan: Plan,
    contenders: Sequence[Contender],
    images: Sequence[bytes],
    advance: Advance,
    meters: Meters,
) -> Found:
    """One contender after the other, its points in turn. What ends it leaves those before, if there are any.

    Raises UsageError for one that has no such curve, before anything is measured.
    """
    found = Found({}, Disturbance())
    if axis != "clients" and not all(isinstance(one, LocalContender) for one in contenders):
        raise UsageError(f"{workload.scenario} is of a bundle's own sessions: leave out --address")
    for one in contenders:
        try:
            _measure_one(axis, one, workload, plan, images, advance, meters, found)
        except (FerrymanError, SystemExit) as error:
            if not found.runs:
                raise
            found.error = error
        if found.error is not None:
            break
    return found


def _measure_one(
    axis: Axis,
    one: Contender,
    workload: Workload,
    plan: Plan,
    images: Sequence[bytes],
    advance: Advance,
    meters: Meters,
    found: Found,
) -> None:
    """found: is given its runs, its curve, and what ended it early"""
    with ExitStack() as opened:
        made = (
            _MAKERS[axis](one, workload, plan.seconds, opened)
            if isinstance(one, LocalContender) and axis != "clients"
            else _list_clients(one, workload)
        )
        _check(made.steps, one, "before")
        harness, found.error = _measure(made.steps, plan, images, advance, meters)
        steps = [step for step in made.steps if step.row in harness.runs]
        for step in steps:
            harness.runs[step.row].contender, harness.runs[step.row].images = one.name, step.images
        found.runs |= harness.runs
        found.disturbance = found.disturbance.worse(harness.disturbance)
        points = [_make_point(step, harness.runs[step.row]) for step in steps]
        found.curves[one.name] = draw_curve(axis, points, made.ended if found.error is None else _BROKEN_OFF)
        if found.error is None:
            _check(made.steps, one, "after")


def _measure(
    steps: Sequence[_Step], plan: Plan, images: Sequence[bytes], advance: Advance, meters: Meters
) -> tuple[Harness | FlowHarness, Any]:
    """The seconds of one contender are shared by its points."""
    shared = Plan(plan.seconds / len(steps), 1, (), plan.patience_s, plan.warm_s / len(steps))
    if all(step.request is not None for step in steps):
        harness = Harness(shared, meters=meters)
        requests = {step.row: step.request for step in steps if step.request is not None}
        return harness, keep(harness, partial(harness.measure, requests, advance))
    flow = FlowHarness(shared, meters=meters)

    async def main() -> None:
        async with AsyncExitStack() as opened:
            asked: dict[str, AsyncRequest] = {}
            for step in steps:
                link = step.contender.connect(images, step.images, step.clients)
                asked[step.row] = await opened.enter_async_context(link)
            await flow.measure_offline(asked, {step.row: step.clients for step in steps}, advance)

    return flow, keep(flow, lambda: run_load(main()))


def _make_point(step: _Step, run: Run) -> Point:
    median = float(np.median(run.latencies_ms))
    if step.request is not None:  # one after the other: what the median says, whatever disturbed some
        return Point(name=step.name, at=step.at, median_ms=median, images_per_s=1e3 * step.images / median)
    rate = step.images * len(run.latencies_ms) / run.seconds
    return Point(name=step.name, at=step.at, median_ms=median, images_per_s=rate)


def _check(steps: Sequence[_Step], known: Contender, when: When) -> None:
    """Those that were opened for a step; `known` is checked with all others. Raises ParityError."""
    for one in (step.contender for step in steps if step.contender is not known):
        check = one.check(when)
        if check is not None and not check.passed:
            raise ParityError(f"{one.name} is out of tolerance: {check.failures[0]}")


def _double(most: int) -> Iterator[int]:
    """1, 2, 4 ... and `most` itself."""
    number = 1
    while number < most:
        yield number
        number *= 2
    yield most


def _list_batches(one: LocalContender, workload: Workload, patience_s: float, opened: ExitStack) -> _Steps:
    """Each size that could be run once: until memory or patience ends."""
    del opened
    session, golden, most = one.sessions[0], one.bundle.golden(), workload.most or _MOST_BATCH
    steps: list[_Step] = []
    ended = _end_at(most, workload)
    for size in _double(most):
        inputs = golden.batch([index % len(golden) for index in range(size)])
        before = psutil.virtual_memory().available
        try:
            session.run(inputs)  # of a shape that is new, and may be compiled first
            start = time.perf_counter()
            session.run(inputs)
        except EngineError as error:
            ended = f"a batch of {size} failed: {error}"
            break
        took = time.perf_counter() - start
        request = request_tensors(session, lambda _number, inputs=inputs: inputs)
        steps.append(_Step(str(size), size, f"{one.name} batch {size}", one, request, images=size))
        if took > patience_s:
            ended = f"a batch of {size} took {took:.1f} s"
            break
        left = psutil.virtual_memory().available
        if 2 * (before - left) > left:  # the next one takes about twice as much
            ended = f"a batch of {2 * size} might not fit into the memory"
            break
    return _Steps(steps, ended)


def _list_sizes(one: LocalContender, workload: Workload, patience_s: float, opened: ExitStack) -> _Steps:
    """Every size of the bundle, the smallest first."""
    del workload, patience_s, opened
    found: list[_Step] = []
    for index, session in enumerate(one.sessions):
        height, width = session.spec.preprocess.size
        request = _ask_golden(session, one.bundle.golden(index))
        name = f"{height}x{width}"
        found.append(_Step(name, height * width / 1e6, f"{one.name} {name}", one, request))
    found.sort(key=lambda step: step.at)
    return _Steps(found, "the bundle has no other size")


def _list_threads(one: LocalContender, workload: Workload, patience_s: float, opened: ExitStack) -> _Steps:
    """A session of each number of threads, all of them loaded."""
    del patience_s
    most, steps = workload.most or read_device().cores, list[_Step]()
    for threads in _double(most):
        other = opened.enter_context(one.reopen(replace(one.settings, threads=threads)))
        request = _ask_golden(other.sessions[0], one.bundle.golden())
        steps.append(_Step(str(threads), threads, f"{one.name} threads {threads}", other, request))
    return _Steps(steps, _end_at(most, workload, _ALL))


def _list_streams(one: LocalContender, workload: Workload, patience_s: float, opened: ExitStack) -> _Steps:
    """A session of each number of streams, good at throughput, and more clients than that."""
    del patience_s
    most, steps = workload.most or read_device().cores, list[_Step]()
    for streams in _double(most):
        other = opened.enter_context(one.reopen(replace(one.settings, streams=streams, hint="throughput")))
        given = other.sessions[0].largest_useful_batch
        if given != streams and steps:
            return _Steps(steps, f"{given} streams are all that it makes of {streams}")
        if given != streams:
            raise UsageError(f"{one.name} takes no streams: stream-curve is of OpenVINO's variants")
        clients = _CLIENTS_A_STREAM * streams
        steps.append(_Step(str(streams), streams, f"{one.name} streams {streams}", other, clients=clients))
    return _Steps(steps, _end_at(most, workload, _ALL))


def _list_clients(one: Contender, workload: Workload) -> _Steps:
    """Through a server, or threads on one session."""
    most = workload.most or _MOST_CLIENTS
    steps = [
        _Step(str(clients), clients, f"{one.name} clients {clients}", one, images=workload.count, clients=clients)
        for clients in _double(most)
    ]
    return _Steps(steps, _end_at(most, workload))


def _ask_golden(session: Session, golden: GoldenSamples) -> Request:
    inputs = golden.batch([0])
    return request_tensors(session, lambda _number: inputs)


def _end_at(most: int, workload: Workload, unasked: str = "is the last without --most") -> str:
    return f"{most} {unasked if workload.most is None else 'was the most that was asked for'}"


_MAKERS: dict[Axis, Callable[[LocalContender, Workload, float, ExitStack], _Steps]] = {
    "batch": _list_batches,
    "size": _list_sizes,
    "threads": _list_threads,
    "streams": _list_streams,
}
