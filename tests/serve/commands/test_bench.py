"""`ferryman bench` on real sessions and servers: its scenarios, what ends it early, and what it writes."""

import csv
import json
import re
import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import onnxruntime
import pytest

from ferryman.bench.curve import Curve
from ferryman.bench.energy import Meters
from ferryman.bench.record import BenchRecord, Check
from ferryman.client import Client
from ferryman.commands.bench.contenders import LocalContender, When
from ferryman.specs import Target

from ..server.process import ServerProcess, free_address
from ..toy import TARGET, add_toy_bundle, change_golden, make_picture, make_toy_repository, shift_boxes
from .outcome import Cli, finish, spawn

FAST = ("--seconds", 0.3)


@pytest.fixture
def bundle(toy_repository: Path) -> Path:
    return toy_repository / "toy-classifier"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    path.write_bytes(make_picture((200, 30, 30)))
    return path


@pytest.mark.parametrize("where", ["here", "server"])
def test_scenarios(cli: Cli, bundle: Path, toy_server: str, picture: Path, where: str) -> None:
    """Each through the command, of a bundle and of a server; the figures fit each other."""
    place = (bundle, "--threads", 1) if where == "here" else ("--address", toy_server, "--model", "toy-classifier")
    place = (*place, "--image", picture)

    def run(scenario: str, *options: object) -> BenchRecord:
        outcome = cli("bench", *place, *FAST, "--scenario", scenario, *options, "--json")
        assert outcome.status == 0, outcome.stderr
        return BenchRecord.model_validate_json(outcome.stdout)

    multi = run("multi-stream")
    assert (multi.runs[0].images, multi.scenario) == (8, "multi-stream")
    figures = multi.runs[0].figures
    assert figures.images_per_s == pytest.approx(8 * figures.requests / figures.seconds)

    offline = run("offline", "--clients", 3, "--per-request", 2)
    assert (offline.clients, offline.runs[0].images) == (3, 2)
    assert 6 <= len(offline.runs[0].blocks) <= 12  # fewer where three clients take longer

    # far beyond what anything here takes: every rate keeps it until requests queue for so long
    server = run("server", "--bound", 200, "--percentile", 90)
    assert server.bound is not None
    assert (server.bound.ms, server.bound.percentile) == (200, 90)
    rate = server.runs[0].rate
    assert rate is not None
    assert server.runs[0].trials[-1].rate == rate
    assert server.runs[0].figures.percentiles_ms["p90"] <= 200
    assert any(not trial.kept for trial in server.runs[0].trials)
    ended = server.runs[0].ended
    assert ended is not None
    assert ended.startswith(f"confirmed by {server.runs[0].trials[-1].requests:,} requests")


def test_what_a_server_costs(cli: Cli, toy_repository: Path, toy_server: str) -> None:
    """The bundle here and the server's in turn: the golden samples are asked of both, and the ratio is told."""
    place = (toy_repository / "toy-detector", "--threads", 1, "--address", toy_server, "--model", "toy-detector")
    document = cli("bench", *place, *FAST, "--json").document
    assert [run["name"] for run in document["runs"]] == ["onnxruntime-cpu-fp32", "the server"]
    assert list(document["ratios"]) == ["the server"]
    assert [len(run["checks"]) for run in document["runs"]] == [2, 0]
    assert not any("the server answers with" in line for line in document["unreliable"])
    assert not any("other processes" in line for line in document["unreliable"])  # the server is one
    other = cli("bench", toy_repository / "toy-classifier", *place[1:5], "--model", "toy-detector", *FAST)
    assert "unreliable: the server answers with another bundle than the one here" in other.stdout


def test_the_ways_in(cli: Cli, toy_repository: Path, toy_server: str, picture: Path) -> None:
    """Typed calls and ModelInfer side by side; tensors beside the bare session; each through every kind of load."""
    place = (toy_repository / "toy-detector", "--threads", 1, "--address", toy_server, "--model", "toy-detector")
    both = cli("bench", *place, "--via", "infer", "--via", "typed", *FAST, "--json").document
    assert [run["name"] for run in both["runs"]] == ["onnxruntime-cpu-fp32", "the server, ModelInfer", "the server"]
    assert list(both["ratios"]) == ["the server, ModelInfer", "the server"]
    tensors = cli("bench", *place, "--via", "tensors", "--image", picture, *FAST, "--json").document
    assert [run["name"] for run in tensors["runs"]] == ["onnxruntime-cpu-fp32", "the server, tensors"]
    assert tensors["images"].endswith(", as tensors made beforehand")
    assert [list(run["figures"]["stages_ms"]) for run in both["runs"]] == [
        ["decode", "resize", "compute", "postprocess", "rest"],
        ["decode", "resize", "queue", "compute", "encode", "transfer", "rest"],
        ["decode", "resize", "queue", "compute", "postprocess", "encode", "transfer", "rest"],
    ]
    assert [list(run["figures"]["stages_ms"]) for run in tensors["runs"]] == [
        ["compute", "rest"],
        ["queue", "compute", "encode", "transfer", "rest"],
    ]
    assert (both["read_ms"], tensors["read_ms"] > 0) == (None, True)  # golden samples come from no files
    load = ("--scenario", "offline", "--clients", 2, "--per-request", 2)
    for way in ("infer", "tensors"):
        record = BenchRecord.model_validate_json(cli("bench", *place, "--via", way, *load, *FAST, "--json").stdout)
        assert [run.images for run in record.runs] == [2, 2]
        assert all("queue" in run.figures.stages_ms for run in record.runs)  # of two clients one waits
        for figures in (run.figures for run in record.runs):
            assert sum(figures.stages_mean_ms.values()) == pytest.approx(figures.mean_ms)


class Meter:
    """10 W."""

    name = "package-0"

    def joules(self) -> float:
        return 10 * time.perf_counter()


def test_joules_of_another_machine(
    cli: Cli, bundle: Path, toy_server: str, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this one takes while a server elsewhere answers is not that server's; a bundle here keeps its own."""
    opened: list[str] = []

    def open_meters() -> AbstractContextManager[Meters]:
        opened.append("meters")
        return nullcontext([Meter()])

    monkeypatch.setattr("ferryman.commands.bench.run.open_meters", open_meters)
    server = ("--address", toy_server, "--model", "toy-classifier", "--image", picture)

    def run(*options: object) -> BenchRecord:
        return BenchRecord.model_validate_json(cli("bench", *options, *server, *FAST, "--json").stdout)

    for scenario in ("single-stream", "offline", "server"):
        near = run("--scenario", scenario)
        assert (list(near.runs[0].figures.joules_per_image), near.notes) == (["package-0"], ())
    monkeypatch.setattr("ferryman.commands.bench.served.is_nearby", lambda address: address != toy_server)
    far = run(bundle, "--threads", 1, "--scenario", "client-curve", "--most", 1)
    assert [list(one.figures.joules_per_image) for one in far.runs] == [["package-0"], []]
    assert far.notes[0].startswith(f"{toy_server} is not this machine: joules of what it answers are left out")
    opened.clear()
    alone = cli("bench", *server, *FAST)
    assert (alone.status, opened) == (0, [])
    assert "J/image" not in alone.stdout
    assert f"{toy_server} is not this machine" in alone.stdout
    assert "not this machine" in cli("bench", *server, *FAST, "--markdown").stdout


def test_a_bound_that_nothing_keeps(cli: Cli, bundle: Path) -> None:
    options = ("--scenario", "server", "--bound", 1e-4, "--threads", 1, *FAST)
    outcome = cli("bench", bundle, *options)
    assert outcome.status == 2
    assert "a bound of 0.0001 ms is below what onnxruntime-cpu-fp32 takes alone, " in outcome.complaint


def test_a_batch_curve(cli: Cli, bundle: Path, toy_server: str, picture: Path) -> None:
    options = ("--scenario", "batch-curve", "--most", 4)
    outcome = cli("bench", bundle, "--threads", 1, *FAST, *options, "--json")
    record = BenchRecord.model_validate_json(outcome.stdout)
    assert [(run.name.rpartition(" ")[2], run.images) for run in record.runs] == [("1", 1), ("2", 2), ("4", 4)]
    ((_, curve),) = record.curves.items()
    assert [point.name for point in curve.points] == ["1", "2", "4"]
    assert curve.knee is not None
    assert curve.best is not None
    assert int(curve.knee) <= int(curve.best)
    assert curve.ended == "4 was the most that was asked for"
    assert record.images == "the golden samples as tensors"
    wrong = cli("bench", bundle, "--image", picture, *options)
    assert (wrong.status, "--image belongs to other scenarios" in wrong.complaint) == (2, True)
    served = cli("bench", "--address", toy_server, "--model", "toy-classifier", "--image", picture, *options)
    assert (served.status, "give a bundle instead of --address" in served.complaint) == (2, True)
    both = ("--address", toy_server, "--model", "toy-classifier", *options)
    assert "leave out --address" in cli("bench", bundle, *both).complaint


def test_other_curves(cli: Cli, tmp_path: Path, bundle: Path, toy_server: str, picture: Path) -> None:
    """Sizes of a bundle, threads, streams, and clients of a session and of a server."""

    def run(*options: object) -> BenchRecord:
        outcome = cli("bench", *options, *FAST, "--json")
        assert outcome.status == 0, outcome.stderr
        return BenchRecord.model_validate_json(outcome.stdout)

    def names(record: BenchRecord) -> list[str]:
        (curve,) = record.curves.values()
        assert [f"{record.runs[0].contender} {name}" for name in _rows(curve)] == [one.name for one in record.runs]
        return [point.name for point in curve.points]

    sizes = run(bundle, "--threads", 1, "--scenario", "size-curve")
    assert names(sizes) == ["32x32"]
    assert next(iter(sizes.curves.values())).best is None
    threads = run(bundle, "--scenario", "thread-curve", "--most", 3)
    assert names(threads) == ["1", "2", "3"]
    clients = run(bundle, "--threads", 1, "--scenario", "client-curve", "--most", 2, "--image", picture)
    assert names(clients) == ["1", "2"]
    address = ("--address", toy_server, "--model", "toy-classifier", "--image", picture)
    served = run(*address, "--scenario", "client-curve", "--most", 2)
    assert names(served) == ["1", "2"]
    for point, one in zip(next(iter(served.curves.values())).points, served.runs, strict=True):
        assert point.images_per_s == pytest.approx(one.figures.images_per_s)
    add_toy_bundle(tmp_path, "toy-classifier", targets=(Target.parse("openvino-cpu-fp32"),))
    streams = run(tmp_path / "toy-classifier", "--scenario", "stream-curve", "--most", 2)
    assert names(streams) == ["1", "2"]
    wrong = cli("bench", bundle, "--scenario", "stream-curve", *FAST)
    assert (wrong.status, "onnxruntime-cpu-fp32 takes no streams" in wrong.complaint) == (2, True)
    # what was measured before is not lost
    add_toy_bundle(tmp_path / "two", "toy-classifier", targets=(Target.parse("openvino-cpu-fp32"), TARGET))
    two = ("--target", "openvino-cpu-fp32", "--target", str(TARGET))
    alike = cli("bench", tmp_path / "two" / "toy-classifier", "--target", "all", *FAST, "--json").document
    assert [one["name"] for one in alike["runs"]] == [two[1], two[3]]
    late = cli("bench", tmp_path / "two" / "toy-classifier", *two, "--scenario", "stream-curve", "--most", 1, *FAST)
    assert (late.status, "takes no streams" in late.complaint) == (2, True)
    assert "openvino-cpu-fp32: best streams 1" in late.stdout


def _rows(curve: Curve) -> list[str]:
    return [one.name if curve.axis == "size" else f"{curve.axis} {one.name}" for one in curve.points]


WRONG = {
    "no time": (("--seconds", 0), "--seconds must be above 0, got 0"),
    "less than none": (("--seconds", -1), "--seconds must be above 0, got -1"),
    "a percentile of nothing": (("--percentile", 100), "--percentile must be 50 or more and below 100, got 100"),
    "a bound of one stream": (("--bound", 5), "--bound belongs to the scenario server, not to single-stream"),
    "a bound of nothing": (("--scenario", "server", "--bound", 0), "--bound must be above 0 ms, got 0"),
    "a bound of no number": (("--scenario", "server", "--bound", "nan"), "--bound must be above 0 ms, got nan"),
    "clients of one stream": (("--clients", 5), "--clients belongs to the scenario server or offline"),
    "tensors beside pictures": (("--via", "tensors", "--via", "typed"), "--via tensors stands alone"),
    "ModelInfer of nobody": (("--via", "infer"), "--via infer belongs to --address"),
    "compiled what": (("--compiled",), "--compiled belongs to --pytorch SOURCE"),
    "percentiles of a curve": (("--scenario", "size-curve", "--percentile", 99), "--percentile belongs to the other"),
    "accuracy of a curve": (("--scenario", "size-curve", "--accuracy", "."), "--accuracy stands beside speeds of"),
    "threads of their curve": (("--scenario", "thread-curve", "--threads", 2), "thread-curve sets --threads itself"),
    "streams of theirs": (("--scenario", "stream-curve", "--hint", "throughput"), "stream-curve sets --hint itself"),
    "a tool for servers": (("--compare", "perf_analyzer"), "--compare perf_analyzer measures a server: give --address"),
    "a tool for one at a time": (("--compare", "onnxruntime", "--streams", 2), "--compare is of one picture at a time"),
    "a tool for another": (
        ("--compare", "benchmark_app"),
        "--compare benchmark_app measures none of the variants here",
    ),
    "more sizes": (("--scenario", "size-curve", "--most", 3), "--most belongs to the scenario batch-curve or thread"),
    "another scenario": (("--scenario", "streams"), "'streams' is not one of 'single-stream'"),
    "a regression of nothing": (("--max-regression", "x"), "--max-regression must be a share of the time"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_wrong_usage(cli: Cli, bundle: Path, options: tuple[object, ...], message: str) -> None:
    outcome = cli("bench", bundle, *options)
    assert (outcome.status, outcome.stdout) == (2, "")
    assert message in outcome.complaint


def test_no_server(cli: Cli, picture: Path) -> None:
    for scenario in ("single-stream", "server"):
        place = ("--address", free_address(), "--model", "x", "--image", picture, "--scenario", scenario)
        outcome = cli("bench", *place, "--json")
        assert outcome.status == 1
        assert outcome.document["error"]["type"] == "UnavailableError"
        assert "no server answers at" in outcome.complaint


@pytest.mark.parametrize("scenario", ["single-stream", "offline"])
def test_a_server_that_dies(tmp_path: Path, picture: Path, scenario: str) -> None:
    """What was measured is told, and marked; the document is the only one."""
    repository = make_toy_repository(tmp_path / "models", ["toy-classifier"])
    with ServerProcess({"repository": str(repository), "threads": 1}) as server:
        place = ("--address", server.address, "--model", "toy-classifier", "--image", picture)
        process = spawn("bench", *place, "--scenario", scenario, "--seconds", 60, "--json")
        assert process.stderr is not None
        while process.stderr.readline() != "- measure\n":
            assert process.poll() is None
        time.sleep(2)
        server.kill()
        outcome = finish(process)
    assert outcome.status == 1
    record = BenchRecord.model_validate_json(outcome.stdout)
    assert record.ended is not None
    assert "no server answers" in record.ended
    assert record.runs[0].figures.requests > 10
    assert outcome.complaint.startswith("ferryman: no server answers")


def test_a_server_is_asked_once(toy_server: str) -> None:
    """Retries would hide what failed; a client by itself has them."""
    from ferryman.commands.predict import Asker

    asker = Asker(None, toy_server, "toy-classifier", None, retries=False)
    with asker.connect() as remote:
        assert remote.facts().certified
    with Client(toy_server) as client:
        assert client.settings.retry.attempts > 1


def test_a_disk_that_is_full(bundle: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        process = spawn("bench", bundle, *FAST, "--threads", 1, "--json", stdout=full)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert stderr.splitlines()[-1] == "ferryman: the operating system refused: No space left on device"


def test_wrong_answers_are_no_result(cli: Cli, folder: Path) -> None:
    change_golden(folder, shift_boxes)
    outcome = cli("bench", folder, *FAST)
    assert (outcome.status, outcome.stdout) == (3, "")
    assert "onnxruntime-cpu-fp32 is out of tolerance: " in outcome.complaint


def test_answers_that_go_wrong_while_they_are_measured(cli: Cli, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The requests are told; their figures are not."""

    def check(self: LocalContender, when: When) -> Check:
        return Check(when=when, passed=when == "before", error=0.5, failures=() if when == "before" else ("wrong",))

    monkeypatch.setattr(LocalContender, "check", check)
    outcome = cli("bench", bundle, *FAST, "--threads", 1)
    assert outcome.status == 3
    assert re.search(r"^onnxruntime-cpu-fp32 +[\d,]+ +wrong answers *$", outcome.stdout, re.MULTILINE)
    assert re.search(r"^onnxruntime-cpu-fp32 .* wrong after$", outcome.stdout, re.MULTILINE)
    assert outcome.complaint == "ferryman: wrong answers are no result: onnxruntime-cpu-fp32"


def test_broken_files_are_named(cli: Cli, bundle: Path, tmp_path: Path, picture: Path) -> None:
    shutil.copy(picture, tmp_path / "blue.png")
    (tmp_path / "half.png").write_bytes(picture.read_bytes()[:50])
    outcome = cli("bench", bundle, "--image", tmp_path, *FAST, "--threads", 1, "--json")
    record = BenchRecord.model_validate_json(outcome.stdout)
    assert record.images.startswith("2 pictures")
    (line,) = record.broken
    assert "half.png: " in line


def test_strict(cli: Cli, bundle: Path) -> None:
    """Twenty requests are too few for anything; without --strict it is only said."""
    options = ("bench", bundle, "--threads", 1, "--seconds", 1e-4)
    text = cli(*options)
    assert text.status == 0
    assert re.search(r"^unreliable: only \d+ requests were measured$", text.stdout, re.MULTILINE)
    assert cli(*options, "--strict").status == 1
    assert cli(*options, "--strict", "--json").document["runs"][0]["unreliable"]


def test_a_page_and_accuracy(cli: Cli, bundle: Path, tmp_path: Path, picture: Path) -> None:
    """Right answers stand beside the speed; a page that can't be written costs nothing that was measured."""
    (tmp_path / "labelled" / "red").mkdir(parents=True)
    shutil.copy(picture, tmp_path / "labelled" / "red")
    options = ("bench", bundle, *FAST, "--threads", 1, "--accuracy", tmp_path / "labelled")
    html = tmp_path / "page.html"
    text = cli(*options, "--html", html).stdout
    assert re.search(r"^variant .* top-1$", text, re.MULTILINE)
    assert "top-1 of 1 labelled pictures of labelled" in text
    assert text.endswith(f"written: {html}\n")
    assert "Speed against accuracy" in html.read_text(encoding="utf-8")
    lost = cli(*options, "--html", html / "page.html", "--json")
    assert (lost.status, lost.complaint.startswith("ferryman: can't write")) == (1, True)
    assert lost.document["accuracy"]["variants"][0]["scores"]["top1"] == 1
    server = ("bench", "--address", "127.0.0.1:1", "--model", "x", "--image", picture)
    assert "--accuracy belongs to a bundle" in cli(*server, "--accuracy", tmp_path).complaint


def test_reports(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    first = cli("bench", bundle, *FAST, "--threads", 1, "--json").stdout
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    other = json.loads(first) | {"model": "pipe|model", "ended": "it was told to stop"}
    for path, text in zip(paths, (first, json.dumps(other)), strict=True):
        path.write_text(text, encoding="utf-8")
    shown = cli("bench", "report", *paths).stdout
    assert "toy-classifier/1, single-stream" in shown
    assert "pipe|model" in shown
    assert shown.count("ended early: it was told to stop") == 1
    markdown = cli("bench", "report", *paths, "--markdown").stdout
    assert markdown.count("| --- | --:") == 2
    assert "* **ended early:** it was told to stop" in markdown
    assert f"onnxruntime {onnxruntime.__version__}" in markdown
    rows = list(csv.DictReader(cli("bench", "report", *paths, "--csv").stdout.splitlines()))
    assert [row["model"] for row in rows] == ["toy-classifier/1", "pipe|model"]
    figures = json.loads(first)["runs"][0]["figures"]
    assert float(rows[0]["p50_ms"]) == figures["percentiles_ms"]["p50"]
    assert cli("bench", "report", *paths, "--json").document[0] == json.loads(first)
    assert cli("bench", "report", paths[0], "--csv", "--markdown").status == 2
    assert cli("bench", bundle, "--csv", "--json").status == 2
    at_once = cli("bench", bundle, *FAST, "--threads", 1, "--markdown").stdout
    assert re.search(r"^\| onnxruntime-cpu-fp32 \| [\d,]+ \|", at_once, re.MULTILINE)
    assert (
        next(csv.DictReader(cli("bench", bundle, *FAST, "--threads", 1, "--csv").stdout.splitlines()))["right"]
        == "True"
    )
    assert cli("bench", "--fleet", *paths).stdout == shown
    schema = cli("bench", "schema").document
    assert schema["properties"]["schema_version"]["const"] == 1
    assert all(len(line) <= 100 for line in shown.splitlines() if not line.startswith("unreliable"))
