"""Records of sessions of known latency, played through the harness."""

from ferryman.bench.clock import ClockFacts
from ferryman.bench.disturbance import Disturbance
from ferryman.bench.harness import Plan
from ferryman.bench.machine import read_machine, read_state
from ferryman.bench.record import BenchRecord, BlockRecord, RunRecord
from ferryman.bench.report import report_latency

from .synthetic import Latency, play

PLAN = Plan(seconds=2, warm_s=1)


def make_record(latencies: dict[str, Latency], **changes: object) -> BenchRecord:
    state = read_state()
    runs = [
        RunRecord(
            name=name,
            contender=name,
            warmup=run.warmup,
            blocks=tuple(map(BlockRecord.pack, run.blocks)),
            figures=report_latency(run),
            unreliable=(),
        )
        for name, run in play(latencies, PLAN).runs.items()
    ]
    record = BenchRecord(
        ferryman="1", created="2025-01-01T00:00:00+00:00", command="ferryman bench x", scenario="single-stream",
        model="toy/1", bundle_digest="ab" * 32, address=None, images="pictures", broken=(), seconds=2,
        settings={"threads": 1}, machine=read_machine(), before=state, after=state,
        clock=ClockFacts(resolution_ns=1, overhead_ns=50), disturbance=Disturbance(), unreliable=(),
        runs=tuple(runs), ratios={}, refused={},
    )  # fmt: skip
    return record.model_copy(update=changes)
