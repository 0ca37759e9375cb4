"""What a load needs, from a record of known batches: held to what arithmetic says."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ferryman.bench.curve import Point, draw_curve
from ferryman.bench.fleet import Server
from ferryman.bench.published import read_published
from ferryman.bench.record import BenchRecord
from ferryman.bench.scaling import Load, Prices, basis_from_published, basis_from_record, plan
from ferryman.errors import FileAccessError, UsageError

from .records import make_record
from .synthetic import constant
from .test_serving import bench

NAME = "onnxruntime-cpu-fp32"
MEDIANS = {1: 10.0, 2: 16.0, 4: 28.0, 8: 56.0}  # the last gains nothing
PUBLISHED = sorted((Path(__file__).parents[3] / "docs" / "published").glob("*.toml"))
PRICES = Prices(own_ms=0, process_ms=1, hop_ms=0.2, picture_kb=50)


def make_curve_record() -> BenchRecord:
    latencies = {f"{NAME} batch {size}": constant(took, seed=size) for size, took in MEDIANS.items()}
    points = [
        Point(name=str(size), at=size, median_ms=took, images_per_s=1e3 * size / took) for size, took in MEDIANS.items()
    ]
    record = make_record(latencies, scenario="batch-curve", curves={NAME: draw_curve("batch", points, "")})
    return record.model_copy(update={"runs": tuple(one.model_copy(update={"contender": NAME}) for one in record.runs)})


def test_batches_take_what_was_measured_and_what_is_added() -> None:
    basis = basis_from_record(make_curve_record(), None, own_s=0.002)
    assert (basis.target, basis.costs.best, basis.accelerated) == (NAME, 4, False)
    assert basis.costs.seconds(1) == pytest.approx(0.012)
    assert basis.costs.seconds(4) == pytest.approx(0.036)
    drawn = np.array([basis.draw(4) for _ in range(2000)])
    assert drawn.mean() == pytest.approx(0.036, rel=0.01)
    assert drawn.std() == pytest.approx(0.036 * 0.01, rel=0.2)


def test_records_without_a_curve_are_told_apart() -> None:
    for record, target, words in (
        (make_record({"a": constant(5)}), None, "batch-curve"),
        (make_curve_record(), "openvino-cpu-int8", f"it has {NAME}"),
    ):
        with pytest.raises(UsageError, match=words):
            basis_from_record(record, target, 0)


CURVE = """
model = "a model"
target = "tensorrt-gpu-fp16"
device = "a GPU"
source = "a table"
url = "https://example.org/table"
caveats = ["nothing is said of copies"]

[batch_ms]
1 = 2
8 = 10
"""


def write_curve(folder: Path, text: str = CURVE) -> Path:
    file = folder / "curve.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_what_others_published_is_taken_as_it_stands(tmp_path: Path) -> None:
    """On a GPU decoding takes nothing from the model; on processors it does."""
    curve = read_published(write_curve(tmp_path))
    basis = basis_from_published(curve, own_s=0.003)
    assert (basis.published, basis.costs.best, basis.accelerated) == (curve, 8, True)
    assert [basis.draw(size) for size in (1, 8)] == pytest.approx([0.002, 0.010])
    processor = curve.model_copy(update={"target": "onnxruntime-cpu-fp32"})
    assert basis_from_published(processor, own_s=0.003).draw(8) == pytest.approx(0.034)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("1 = 2\n", "", "no batch of 1"),
        ("8 = 10", "8 = 0", "batch_ms.8: "),
        ("8 = 10", "eight = 10", "batch_ms.eight"),
        ("tensorrt-gpu-fp16", "tensorrt", "RUNTIME-DEVICE-PRECISION"),
        ("https://", "", "url: "),
        ('source = "a table"\n', "", "source: "),
        ("[batch_ms]", "[batch_ms", "no TOML"),
    ],
)
def test_a_curve_says_whose_it_is(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_published(write_curve(tmp_path, CURVE.replace(old, new)))


def test_the_published_curves_can_be_read(tmp_path: Path) -> None:
    assert [read_published(file).target for file in PUBLISHED] == ["tensorrt-gpu-fp16"] * 2
    with pytest.raises(FileAccessError):
        read_published(tmp_path / "none.toml")


def test_a_fleet_is_as_large_as_it_must_be_and_hardly_larger() -> None:
    """7 ms a picture in the best batch: 1,000 a second fill 7 servers, and keep a bound with a few more."""
    server = Server(lambda size: 0.004 + 0.006 * size, best=4, deadline_s=0.5)
    many = Load(name="", rate=1000.0)
    found = plan(many, server, PRICES, 0.1, 5.0, 100)
    assert found.floor == 7
    assert found.fleet is not None
    assert 7 < found.fleet.servers <= 9
    assert found.fleet.p99_ms <= 100
    assert found.fleet.refused <= 0.001
    # Busy nearly always, in batches that are not full: that is what is left to give.
    assert 7 / found.fleet.servers <= found.fleet.utilisation <= 1
    assert 1 < found.fleet.batch < 3.5
    assert (found.mbit_s, found.balancer_cores) == (pytest.approx(400), pytest.approx(0.2))
    assert plan(many, server, PRICES, 0.1, 5.0, 7).fleet is None, "seven are no fleet"


def test_cameras_that_stay_where_they_began_need_no_less() -> None:
    server = Server(lambda size: 0.004 + 0.006 * size, best=4, deadline_s=0.5)
    find = partial(plan, server=server, prices=PRICES, bound_s=0.1, seconds=4.0, most=100)
    spread = find(Load(name="", rate=1000.0, cameras=200, fps=5.0))
    together = find(Load(name="", rate=1000.0, cameras=200, fps=5.0, spread_s=0.0))
    assert spread.fleet is not None
    assert spread.pinned is not None
    assert together.fleet is not None
    assert spread.pinned.servers >= spread.fleet.servers
    # All 200 in the same moment, and 0.1 s for them: twice as many as when they come in 0.2 s.
    assert together.fleet.servers >= 1.5 * spread.fleet.servers
    assert together.fleet.queue > spread.fleet.queue


def test_the_command_tells_all_of_it(tmp_path: Path) -> None:
    record, file = tmp_path / "curve.json", tmp_path / "plan.json"
    record.write_text(make_curve_record().model_dump_json(), encoding="utf-8")
    options = ["--cameras", 40, "--per-minute", 6000, "--seconds", 2, "--own", 0, "--hop", 0.5, "--json", file]
    done = bench(record, *options, module="scaling")
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text(encoding="utf-8"))
    assert (document["target"], document["best"]) == (NAME, 4)
    assert document["limits"]["server_model"] == pytest.approx(1000 / 7, rel=0.02)
    assert [one["load"]["rate"] for one in document["plans"]] == [200, 200, 100]
    for one in document["plans"]:
        assert one["load"]["name"] in done.stdout
    failed = bench(tmp_path / "none.json", module="scaling")
    assert failed.returncode == 1
    assert "can't read" in failed.stderr


def test_the_command_says_what_was_not_measured(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    options = ["--cameras", 40, "--per-minute", 6000, "--seconds", 2, "--own", 4, "--json", file]
    done = bench(write_curve(tmp_path), *options, module="scaling")
    assert done.returncode == 0, done.stderr
    for words in ("not measured by us: a table, https://example.org/table", "nothing is said of copies", "a GPU"):
        assert words in done.stdout
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["published"]["source"] == "a table"
    assert document["limits"]["server_model"] == pytest.approx(800)
    assert document["limits"]["core_beside_it"] == pytest.approx(250)
    assert [one["own_cores"] for one in document["plans"]] == pytest.approx([0.8, 0.8, 0.4])
