"""The scenarios of `ferryman bench`: each measures contenders and leaves runs, whatever ends it."""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial

from ferryman.bench.energy import Meters
from ferryman.bench.flow import AsyncRequest, run_load
from ferryman.bench.flow_harness import FlowHarness
from ferryman.bench.harness import Harness, Plan
from ferryman.commands.bench.contenders import Contender
from ferryman.commands.bench.curves import measure_curves
from ferryman.commands.bench.workload import Advance, Found, Workload, keep
from ferryman.errors import DeadlineError


def measure(
    workload: Workload, plan: Plan, contenders: Sequence[Contender], images: Sequence[bytes], advance: Advance,
    meters: Meters,
) -> Found:  # fmt: skip
    """Raises an error, and SystemExit of Ctrl-C, only when there is no contender with any request."""
    if workload.axis is not None:
        return measure_curves(workload.axis, workload, plan, contenders, images, advance, meters)
    if workload.scenario in ("server", "offline"):
        flow = FlowHarness(plan, meters=meters)
        error = keep(flow, partial(_run_flow, flow, workload, contenders, images, advance))
        found = Found(flow.runs, flow.disturbance, flow.trials, flow.ended, flow.bound, error=error)
    else:
        harness = Harness(plan, meters=meters)
        requests = {one.name: one.request(images, workload.count) for one in contenders}
        error = keep(harness, partial(harness.measure, requests, advance))
        found = Found(harness.runs, harness.disturbance, error=error)
    for name, run in found.runs.items():
        run.contender, run.images = name, workload.count
    return found


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
            await _choose(flow, workload, requests, advance)

    run_load(main())


async def _choose(
    flow: FlowHarness, workload: Workload, requests: Mapping[str, AsyncRequest], advance: Advance
) -> None:
    if workload.scenario == "offline":
        await flow.measure_offline(requests, dict.fromkeys(requests, workload.clients), advance)
    else:
        await flow.measure_server(requests, workload.percentile, workload.bound_ms, advance)
        for name, run in flow.runs.items():
            if not run.blocks:  # every trial was given up before anything was answered
                raise DeadlineError(f"{name} answered no request in time: raise --bound")
