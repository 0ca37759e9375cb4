"""Benchmark figures: only percentiles that the requests carry, and stages that add up."""

import numpy as np
import pytest

from ferryman.bench.percentiles import check_percentiles, count_needed
from ferryman.bench.report import report_latency, sort_stages
from ferryman.bench.samples import Block, Run
from ferryman.errors import UsageError


def make_run(latencies_ms: list[float], **stages_ms: float) -> Run:
    stages = {name: np.full(len(latencies_ms), value) for name, value in stages_ms.items()}
    return Run(blocks=[Block(0, sum(latencies_ms) / 1e3, np.array(latencies_ms), stages)])


@pytest.mark.parametrize(
    ("count", "names"),
    [
        (1, ["p50"]),
        (99, ["p50"]),
        (100, ["p50", "p90"]),
        (999, ["p50", "p90"]),
        (1000, ["p50", "p90", "p99"]),
        (9_999, ["p50", "p90", "p99"]),
        (10_000, ["p50", "p90", "p99", "p99.9"]),
    ],
)
def test_percentiles_need_ten_requests_beyond_them(count: int, names: list[str]) -> None:
    latencies = np.random.default_rng(count).permutation(np.arange(1, count + 1))
    report = report_latency(make_run(latencies.tolist()))
    assert list(report.percentiles_ms) == names
    assert report.percentiles_ms["p50"] == pytest.approx((count + 1) / 2)
    for name, value in report.percentiles_ms.items():
        assert (latencies <= value).mean() == pytest.approx(float(name[1:]) / 100, abs=0.5 / count + 1e-9) or count == 1
    assert (report.requests, report.min_ms, report.max_ms) == (count, 1, count)
    assert report.mean_ms == pytest.approx((count + 1) / 2)
    assert report.seconds == pytest.approx(latencies.sum() / 1e3)
    assert list(report.left_out) == ["p50", "p90", "p99", "p99.9"][len(names) :]


def test_stages_add_up() -> None:
    stages = {"decode": 1.0, "resize": 2.0, "queue": 0.5, "compute": 5.0, "postprocess": 0.25}
    report = report_latency(make_run([10.0] * 3, **stages))
    assert list(report.stages_ms) == [*stages, "rest"]
    assert report.stages_ms["compute"] == 5
    assert report.stages_ms["rest"] == pytest.approx(1.25)
    assert sum(report.stages_ms.values()) == pytest.approx(10)
    assert report_latency(make_run([10.0])).stages_ms == {}


def test_means_of_stages_add_up_where_medians_do_not() -> None:
    """Decoding is slow for one half of the requests and computing for the other, so that each median lies between."""
    count = 1000
    decode = np.where(np.arange(count) % 2, 1.0, 9.0)
    stages = {"compute": 12 - decode, "decode": decode, "transfer": np.full(count, 0.5)}
    latencies = sum(stages.values()) + np.random.default_rng(0).uniform(0, 0.1, count)
    report = report_latency(Run(blocks=[Block(0, 1, latencies, stages)]))
    assert list(report.stages_ms) == ["decode", "compute", "transfer", "rest"]
    assert sum(report.stages_mean_ms.values()) == pytest.approx(report.mean_ms)
    assert report.stages_mean_ms["decode"] == 5
    assert report.stages_mean_ms["rest"] == pytest.approx(0.05, rel=0.1)


def test_stages_in_their_order() -> None:
    """Of runs that have different ones, and of a record that knows more than this version."""
    names = ["decode", "compute", "rest", "queue", "thinking", "transfer", "decode"]
    assert sort_stages(names) == ["decode", "queue", "compute", "transfer", "thinking", "rest"]


def test_what_can_be_asked_for() -> None:
    assert check_percentiles([99.9, 50, 99, 50]) == (50, 99, 99.9)
    assert [count_needed(one) for one in (50, 90, 99, 99.9, 99.99)] == [1, 100, 1000, 10_000, 100_000]
    for wrong in (0, 49.9, 100, float("nan")):
        with pytest.raises(UsageError, match="--percentile must be 50 or more and below 100"):
            check_percentiles([wrong])
