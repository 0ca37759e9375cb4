"""The scenarios of `ferryman bench`: each measures contenders and leaves runs, whatever ends it."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import psutil

from ferryman.bench.curve import Curve, draw_curve
from ferryman.bench.disturbance import Disturbance
from ferryman.bench.flow import AsyncRequest
from ferryman.bench.flow_harness import FlowHarness
from ferryman.bench.harness import Harness, Moment, Plan, Request
from ferryman.bench.record import Scenario
from ferryman.bench.samples import Run
from ferryman.bench.search import Bound, Trial
from ferryman.commands.bench_contenders import Contender, LocalContender
from ferryman.errors import DeadlineError, EngineError, FerrymanError, UsageError

Advance = Callable[[Moment], None]
MULTI_STREAM = 8  # pictures a request, as MLPerf's MultiStream has them
OFFLINE_CLIENTS = 2  # so that there is always another request when one is answered
_ALONE_PERCENTILE = 99.0


@dataclass(frozen=True)
class Workload:
    """How contenders are asked. count: pictures a request; clients: requests at a time; bound_ms: None for a default"""

    scenario: Scenario
    count: int
    clients: int
    percentile: float
    bound_ms: float | None
    max_batch: int

    @classmethod
    def choose(
        cls, scenario: Scenario, count: int | None, clients: int | None, percentiles: Sequence[float],
        bound_ms: float | None, max_batch: int,
    ) -> "Workload":  # fmt: skip
        """With the scenario's own defaults. Raises UsageError for what does not belong to it."""
        for name, given, owners in (
            ("--per-request", count, ("multi-stream", "server", "offline")),
            ("--clients", clients, ("server", "offline")),
            ("--bound", bound_ms, ("server",)),
        ):
            if given is not None and scenario not in owners:
                raise UsageError(f"{name} belongs to the scenario {' or '.join(owners)}, not to {scenario}")
        default = MULTI_STREAM if scenario == "multi-stream" else 1
        workers = clients or (OFFLINE_CLIENTS if scenario == "offline" else 1)
        percentile = max(percentiles, default=_ALONE_PERCENTILE)
        return cls(scenario, count or default, workers, percentile, bound_ms, max_batch)


@dataclass
class Found:
    """What a scenario left. error: what ended it early"""

    runs: dict[str, Run]
    disturbance: Disturbance
    trials: dict[str, list[Trial]] = field(default_factory=dict[str, list[Trial]])
    bound: Bound | None = None
    curves: dict[str, Curve] = field(default_factory=dict[str, Curve])
    error: FerrymanError | SystemExit | None = None


def measure(
    workload: Workload, plan: Plan, contenders: Sequence[Contender], images: Sequence[bytes], advance: Advance
) -> Found:
    """Raises an error, and SystemExit of Ctrl-C, only when there is a contender without any request."""
    match workload.scenario:
        case "batch-curve":
            return measure_curves(workload, plan, contenders, advance)
        case "server" | "offline":
            flow = FlowHarness(plan)
            error = _keep(flow, partial(_run_flow, flow, workload, contenders, images, advance))
            found = Found(flow.runs, flow.disturbance, flow.trials, flow.bound, error=error)
        case _:
            harness = Harness(plan)
            requests = {one.name: one.request(images, workload.count) for one in contenders}
            error = _keep(harness, partial(harness.measure, requests, advance))
            found = Found(harness.runs, harness.disturbance, error=error)
    for name, run in found.runs.items():
        run.contender, run.images = name, workload.count
        if not run.blocks:  # of a server whose every trial was given up before anything was answered
            raise DeadlineError(f"{name} answered no request in time: raise --bound")
    return found


def _keep(harness: Harness | FlowHarness, run: Callable[[], None]) -> FerrymanError | SystemExit | None:
    """What ended it early, if that left something of every contender; else it is raised."""
    try:
        run()
    except (FerrymanError, SystemExit) as error:
        return _judge_end(harness, error)
    except BaseExceptionGroup as group:
        ours, others = group.split((FerrymanError, SystemExit))
        if others is not None or ours is None:
            raise
        return _judge_end(harness, _first(ours))
    return None


def _judge_end(harness: Harness | FlowHarness, error: FerrymanError | SystemExit) -> FerrymanError | SystemExit:
    if not harness.runs or not all(len(run.latencies_ms) for run in harness.runs.values()):
        raise error
    return error


def _first(group: BaseExceptionGroup[FerrymanError | SystemExit]) -> FerrymanError | SystemExit:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _run_flow(
    flow: FlowHarness, workload: Workload, contenders: Sequence[Contender], images: Sequence[bytes], advance: Advance
) -> None:
    async def main() -> None:
        async with AsyncExitStack() as opened:
            requests: dict[str, AsyncRequest] = {}
            for one in contenders:
                requests[one.name] = await opened.enter_async_context(
                    one.connect(images, workload.count, workload.clients)
                )
            if workload.scenario == "offline":
                await flow.measure_offline(requests, workload.clients, advance)
            else:
                await flow.measure_server(requests, workload.percentile, workload.bound_ms, advance)

    asyncio.run(main())


def measure_curves(workload: Workload, plan: Plan, contenders: Sequence[Contender], advance: Advance) -> Found:
    """Of each variant batches of 1, 2, 4 ... as tensors, in turn, until memory or patience ends."""
    found = Found({}, Disturbance())
    for one in contenders:
        if not isinstance(one, LocalContender):
            raise UsageError("batch-curve runs batches on a bundle's session: give a bundle, not --address")
        batches, ended = make_batches(one, workload.max_batch, plan.seconds)
        shared = Plan(plan.seconds / len(batches), 1, (), plan.patience_s, plan.warm_s / len(batches))
        harness = Harness(shared)
        requests = {f"{one.name} batch {size}": request for size, request in batches.items()}
        error = _keep(harness, partial(harness.measure, requests, advance))
        for size, run in zip(batches, harness.runs.values(), strict=True):
            run.contender, run.images = one.name, size
        found.runs |= harness.runs
        found.disturbance, found.error = harness.disturbance, error
        medians = [float(np.median(run.latencies_ms)) for run in harness.runs.values()]
        found.curves[one.name] = draw_curve(list(zip(batches, medians, strict=True)), ended)
        if error is not None:
            break
    return found


def make_batches(contender: LocalContender, most: int, patience_s: float) -> tuple[dict[int, Request], str]:
    """A request for each size that could be run once, ascending; why no larger."""
    session, golden = contender.sessions[0], contender.bundle.golden()
    requests: dict[int, Request] = {}
    size, ended = 1, f"{most} was the most that was asked for"
    while size <= most:
        inputs = golden.batch([index % len(golden) for index in range(size)])

        def request(_number: int, inputs: Mapping[str, np.ndarray] = inputs) -> Mapping[str, float]:
            session.run(inputs)
            return {}

        before, start = psutil.virtual_memory().available, time.perf_counter()
        try:
            session.run(inputs)
        except EngineError as error:
            ended = f"a batch of {size} failed: {error}"
            break
        took = time.perf_counter() - start
        requests[size] = request
        if took > patience_s:
            ended = f"a batch of {size} took {took:.1f} s"
            break
        left = psutil.virtual_memory().available
        if 2 * (before - left) > left:  # the next one takes about twice as much
            ended = f"a batch of {2 * size} might not fit into the memory"
            break
        size *= 2
    return requests, ended
