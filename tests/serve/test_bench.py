"""Benchmark figures: only percentiles that the requests carry, and stages that add up."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ferryman.bench.report import report_latency
from ferryman.bench.scenarios import Sample, run_single_stream
from ferryman.bundle import Bundle
from ferryman.commands.bench import encode_golden
from ferryman.golden import load_golden
from ferryman.predictor import Timings
from ferryman.preprocess import preprocess_image


def make_sample(latency_ms: float, **stages: float) -> Sample:
    names = ("decode_ms", "resize_ms", "queue_ms", "compute_ms", "postprocess_ms")
    times = {name: stages.get(name, 0.0) for name in names}
    return Sample(latency_ms, Timings(**times, total_ms=sum(times.values())))


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
    report = report_latency([make_sample(float(latency)) for latency in latencies])
    assert list(report.percentiles_ms) == names
    assert report.percentiles_ms["p50"] == pytest.approx((count + 1) / 2)
    for name, value in report.percentiles_ms.items():
        assert (latencies <= value).mean() == pytest.approx(float(name[1:]) / 100, abs=0.5 / count + 1e-9) or count == 1
    assert (report.requests, report.min_ms, report.max_ms) == (count, 1, count)
    assert report.mean_ms == pytest.approx((count + 1) / 2)
    assert report.seconds == pytest.approx(latencies.sum() / 1e3)


def test_stages_add_up() -> None:
    stages = {"decode_ms": 1.0, "resize_ms": 2.0, "queue_ms": 0.5, "compute_ms": 5.0, "postprocess_ms": 0.25}
    report = report_latency([make_sample(10.0, **stages)] * 3)
    assert list(report.stages_ms) == ["decode", "resize", "queue", "compute", "postprocess", "rest"]
    assert report.stages_ms["compute"] == 5
    assert report.stages_ms["rest"] == pytest.approx(1.25)
    assert sum(report.stages_ms.values()) == pytest.approx(10)


class Clock:
    """A clock that only requests move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("ferryman.bench.scenarios.time.perf_counter", made)
    return made


def test_single_stream(clock: Clock) -> None:
    asked: list[bytes] = []
    seen: list[float] = []

    def ask(image: bytes) -> Timings:
        asked.append(image)
        clock.now += 0.125 if len(asked) > 4 else 5.0  # the first ones are slow
        return make_sample(0).stages

    samples = run_single_stream(ask, [b"a", b"b", b"c"], seconds=1.0, warmup=4, advance=seen.append)
    assert asked[:7] == [b"a", b"b", b"c", b"a", b"a", b"b", b"c"]
    assert [sample.latency_ms for sample in samples] == [125.0] * 8
    assert seen == [0.125 * number for number in range(8)]


def test_every_picture_is_asked_for_once_however_short_the_time(clock: Clock) -> None:
    def ask(image: bytes) -> Timings:
        clock.now += 60
        return make_sample(0).stages

    assert len(run_single_stream(ask, [b"a", b"b", b"c"], seconds=0.1, warmup=0)) == 3


def test_an_error_ends_the_measurement() -> None:
    asked: list[bytes] = []

    def ask(image: bytes) -> Timings:
        asked.append(image)
        if image == b"b":
            raise ValueError("broken")
        return make_sample(0).stages

    with pytest.raises(ValueError, match="broken"):
        run_single_stream(ask, [b"a", b"b", b"c"], seconds=1.0)
    assert asked == [b"a", b"b"]


@pytest.mark.parametrize("name", ["toy-classifier", "toy-detector"])
def test_golden_samples_as_pictures(toy_repository: Path, name: str) -> None:
    """Encoded, decoded and fitted again, they are the canvases that they were."""
    bundle = Bundle.open(toy_repository / name)
    golden = load_golden(bundle.file("golden.npz"), bundle.spec)
    files = encode_golden(bundle)
    assert len(files) == len(golden)
    for index, data in enumerate(files):
        canvas, geometry = preprocess_image(data, bundle.spec.preprocess)
        assert_array_equal(canvas, golden.inputs["image"][index])
        if name == "toy-detector":
            assert geometry.valid_size == tuple(golden.inputs["valid_size"][index])
