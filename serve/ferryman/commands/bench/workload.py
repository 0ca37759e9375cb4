"""How contenders are asked, and what asking them left."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from ferryman.bench.curve import Axis, Curve
from ferryman.bench.disturbance import Disturbance
from ferryman.bench.flow_harness import FlowHarness
from ferryman.bench.harness import Harness, Moment
from ferryman.bench.record import Scenario
from ferryman.bench.samples import Run
from ferryman.bench.search import Bound, Trial
from ferryman.errors import FerrymanError, UsageError

Advance = Callable[[Moment], None]
MULTI_STREAM = 8  # pictures a request, as MLPerf's MultiStream has them
OFFLINE_CLIENTS = 2  # so that there is always another request when one is answered
AXES: dict[Scenario, Axis] = {
    "batch-curve": "batch",
    "size-curve": "size",
    "thread-curve": "threads",
    "stream-curve": "streams",
    "client-curve": "clients",
}
_ALONE_PERCENTILE = 99.0


@dataclass(frozen=True)
class Workload:
    """How contenders are asked. count: pictures a request; clients: requests at a time; bound_ms: None for a default;
    most: where a curve ends at the latest, None for a default
    """

    scenario: Scenario
    count: int
    clients: int
    percentile: float
    bound_ms: float | None
    most: int | None

    @property
    def axis(self) -> Axis | None:
        """What a curve is drawn over; None of other scenarios."""
        return AXES.get(self.scenario)

    @property
    def tensors(self) -> bool:
        """Whether golden samples go to the session as they are, without pictures to decode."""
        return self.axis in ("batch", "size", "threads")

    @property
    def crowded(self) -> bool:
        """Whether several requests are under way at a time, in threads that may be more than processors."""
        return self.scenario in ("server", "offline", "stream-curve", "client-curve")

    @classmethod
    def choose(
        cls, scenario: Scenario, count: int | None, clients: int | None, percentiles: Sequence[float],
        bound_ms: float | None, most: int | None,
    ) -> "Workload":  # fmt: skip
        """With the scenario's own defaults. Raises UsageError for what does not belong to it."""
        curves = tuple(name for name in AXES if name != "size-curve")
        for name, given, owners in (
            ("--per-request", count, ("multi-stream", "server", "offline", "client-curve")),
            ("--clients", clients, ("server", "offline")),
            ("--bound", bound_ms, ("server",)),
            ("--most", most, curves),
        ):
            if given is not None and scenario not in owners:  # rather than to take no notice of it
                raise UsageError(f"{name} belongs to the scenario {' or '.join(owners)}, not to {scenario}")
        if scenario in AXES and percentiles:
            raise UsageError(f"--percentile belongs to the other scenarios: {scenario} tells medians")
        default = MULTI_STREAM if scenario == "multi-stream" else 1
        workers = clients or (OFFLINE_CLIENTS if scenario == "offline" else 1)
        percentile = max(percentiles, default=_ALONE_PERCENTILE)
        return cls(scenario, count or default, workers, percentile, bound_ms, most)


@dataclass
class Found:
    """What a scenario left. ended: how each search for a rate did; error: what ended it all early"""

    runs: dict[str, Run]
    disturbance: Disturbance
    trials: dict[str, list[Trial]] = field(default_factory=dict[str, list[Trial]])
    ended: dict[str, str] = field(default_factory=dict[str, str])
    bound: Bound | None = None
    curves: dict[str, Curve] = field(default_factory=dict[str, Curve])
    error: FerrymanError | SystemExit | None = None

    def forget_joules(self, names: Collection[str]) -> None:
        """Of contenders on another machine: what was read meanwhile is what this one took."""
        for run in self.runs.values():
            if run.contender in names:
                run.blocks = [replace(block, joules={}) for block in run.blocks]


def keep(harness: Harness | FlowHarness, run: Callable[[], None]) -> FerrymanError | SystemExit | None:
    """What ended `run` early, if that left something of any contender; else it is raised. Those without are dropped."""
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
    harness.runs = {name: run for name, run in harness.runs.items() if len(run.latencies_ms)}
    if not harness.runs:
        raise error
    return error


def _first(group: BaseExceptionGroup[FerrymanError | SystemExit]) -> FerrymanError | SystemExit:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
