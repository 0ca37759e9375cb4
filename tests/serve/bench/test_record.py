"""What is written of a measurement says it all: read again, its figures are made again."""

import base64
import csv
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferryman.bench.alone import SessionCost
from ferryman.bench.machine import MachineFacts, read_machine, read_state
from ferryman.bench.record import Check, pack_ms, read_record, unpack_ms
from ferryman.bench.report import STAGES, report_latency
from ferryman.bench.search import Bound, Trial
from ferryman.bench.tables import describe_load, render_csv, render_markdown, tabulate_costs, tabulate_stages
from ferryman.commands.bench.tables import print_record
from ferryman.errors import FileAccessError, UsageError

from ..commands.outcome import Cli
from .records import make_record
from .synthetic import constant


def test_packed_numbers_are_exact_to_the_nanosecond() -> None:
    values = np.random.default_rng(0).lognormal(1, 1, 10_000)
    text = pack_ms(values)
    np.testing.assert_allclose(unpack_ms(text), values, atol=0.51e-6, rtol=0)
    assert len(text) < 0.7 * 8 * len(values)
    for wrong in ("no base64!", "AAAA", text[: len(text) // 2]):
        with pytest.raises(ValueError):
            unpack_ms(wrong)


def test_figures_are_those_of_the_raw_requests(cli: Cli, toy_repository: Path, tmp_path: Path) -> None:
    outcome = cli("bench", toy_repository / "toy-classifier", "--seconds", 0.3, "--threads", 1, "--json")
    assert outcome.status == 0
    file = tmp_path / "one.json"
    file.write_text(outcome.stdout, encoding="utf-8")
    record = read_record(file)
    assert json.loads(outcome.stdout) == record.model_dump(mode="json")
    (run,) = record.runs
    again = report_latency(run.unpack())
    assert again.requests == run.figures.requests
    for name, value in run.figures.percentiles_ms.items():
        assert again.percentiles_ms[name] == pytest.approx(value, abs=1e-6)
    assert again.seconds == run.figures.seconds
    assert [check.when for check in run.checks] == ["before", "after"]
    assert run.right
    assert run.cost is not None
    assert run.proven is not None
    assert run.cost.first_ms > 0
    assert (run.proven.target, run.proven.certificate != "") == ("onnxruntime-cpu-fp32", True)
    assert run.proven.digest == record_digest(toy_repository)
    assert record.settings == {"threads": 1, "streams": None, "hint": "latency"}
    assert record.command.startswith("ferryman bench ")
    assert record.ended is None


def record_digest(repository: Path) -> str:
    manifest = json.loads((repository / "toy-classifier" / "1" / "manifest.json").read_text(encoding="utf-8"))
    return manifest["files"]["model.onnx"]["sha256"]


def test_costs_have_the_columns_that_are_known() -> None:
    record = make_record({"one": constant(10, 0), "two": constant(20, 0), "three": constant(30, 0)})
    one, two, three = record.runs
    plain = SessionCost(load_s=0.5, first_ms=12.0, memory_bytes=10**7, weights_bytes=2 * 10**6)
    engine = plain.model_copy(update={"memory_bytes": None, "gpu_bytes": 3 * 10**8, "build_s": 61.25})
    asked = ["worst error", "answers"]

    def tabulate(*costs: SessionCost | None) -> tuple[list[str], list[list[str]]]:
        runs = [run.model_copy(update={"cost": cost}) for run, cost in zip((one, two, three), costs, strict=True)]
        return tabulate_costs(record.model_copy(update={"runs": tuple(runs)}))

    assert tabulate(None, None, None) == (
        ["variant", *asked],
        [[name, "-", "not checked"] for name in ["one", "two", "three"]],
    )
    header, rows = tabulate(plain, None, plain)
    assert header == ["variant", "load s", "first ms", "memory MB", "size MB", *asked]
    assert rows[0][1:5] == ["0.50", "12.00", "10.0", "2.0"]
    assert rows[1][1:5] == ["-"] * 4
    header, rows = tabulate(plain, engine, None)
    assert header == ["variant", "build s", "load s", "first ms", "memory MB", "GPU MB", "size MB", *asked]
    assert rows[0][1:7] == ["-", "0.50", "12.00", "10.0", "-", "2.0"]
    assert rows[1][1:7] == ["61.2", "0.50", "12.00", "-", "300.0", "2.0"]


def test_the_machine_is_described() -> None:
    machine = read_machine()
    assert machine.versions["numpy"] == np.__version__
    assert machine.quota is None or machine.quota > 0
    assert MachineFacts.model_validate_json(machine.model_dump_json()) == machine
    assert read_state().memory_available_bytes > 0


def test_a_record_of_an_older_version(cli: Cli, tmp_path: Path) -> None:
    """Without the fields that came later it is read, shown in every way, and its shares are made from its requests."""
    record = make_record({"one": constant(10, 0), "two": constant(20, 0)})
    document = record.model_dump(mode="json")
    for name in ("notes", "read_ms"):
        del document[name]
    for run in document["runs"]:
        del run["ended"], run["figures"]["stages_mean_ms"]
    file = tmp_path / "old.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    assert tabulate_stages(read_record(file)) == tabulate_stages(record)
    assert [row[:3] for row in tabulate_stages(record)[1][:2]] == [["one", "1.00", "9.00"], ["", "10%", "90%"]]
    for way in ((), ("--markdown",), ("--csv",), ("--json",), ("--html", tmp_path / "old.html")):
        assert cli("bench", "report", file, *way).status == 0
    text = (tmp_path / "old.html").read_text(encoding="utf-8")
    assert all(f">{cell}</td>" in text for cell in ("9.00", "90%"))


def _pack(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


DAMAGES: dict[str, tuple[tuple[str | int, ...], object, str]] = {
    "no runs": (("runs",), [], "runs: "),
    "no numbers": (("runs", 0, "blocks", 0, "latencies"), "@@@", "runs.0.blocks.0: .*can't be read"),
    "half a number": (("runs", 0, "blocks", 0, "latencies"), _pack(b"abc"), "runs.0.blocks.0: "),
    "no requests": (("runs", 0, "blocks", 0, "latencies"), _pack(b""), "a block holds no request"),
    "too few of a stage": (("runs", 0, "blocks", 0, "stages", "compute"), _pack(bytes(8)), "not every .* its compute"),
    "no percentile": (("runs", 0, "figures", "percentiles_ms", "best"), 1.0, "percentiles_ms.best"),
    "no points": (("curves",), {"one": {"axis": "batch", "points": [], "best": None, "knee": None, "line": None,
                                        "ended": "x"}}, "curves.one.points: "),
}  # fmt: skip


@pytest.mark.parametrize(("place", "value", "why"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_records_are_refused(tmp_path: Path, place: tuple[str | int, ...], value: object, why: str) -> None:
    """When they are read, not when a chart or a comparison first needs what is broken."""
    document = make_record({"one": constant(10, 0)}).model_dump(mode="json")
    *path, last = place
    inner: Any = document
    for step in path:
        inner = inner[step]
    inner[last] = value
    (tmp_path / "x.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UsageError, match=f"x.json is no record .*{why}"):
        read_record(tmp_path / "x.json")


def test_nothing_is_told_less_in_other_ways() -> None:
    """Files that were left out, contenders that were not measured, what ended early: in Markdown and CSV too."""
    record = make_record(
        {"one": constant(10, 0)}, broken=("half.png: damaged",), refused={"two": ("scores differ",)}, ended="gone"
    )
    markdown = render_markdown([record])
    for line in ("left out: half.png: damaged", "**two was not measured:** scores differ", "**ended early:** gone"):
        assert f"\n* {line}\n" in markdown
    (row,) = csv.DictReader(render_csv([record]).splitlines())
    assert row["ended"] == "gone"


def test_a_search_that_was_broken_off_claims_nothing() -> None:
    """Neither a rate that nothing confirmed, nor that there is none."""
    trials = [
        Trial(rate=rate, kept=kept, percentile_ms=9, requests=200, missed=0, late_ms=0)
        for rate, kept in ((10, True), (20, False))
    ]
    plain = make_record({"one": constant(10, 0)}, bound=Bound(percentile=99, ms=50), ended="it was told to stop")
    for count in (1, 2):
        run = plain.runs[0].model_copy(update={"trials": tuple(trials[:count])})
        (line,) = describe_load(plain.model_copy(update={"runs": (run,)}))
        assert line == "one: the search for the highest rate that keeps p99 at most 50.00 ms was broken off"


def test_tables_fit_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """With the longest names, every stage and percentile, two devices that tell their joules, and costs of a GPU."""
    record = make_record({"one": constant(10, 0), "two": constant(20, 0)})
    cost = SessionCost(
        load_s=1234.5, first_ms=1234.5, memory_bytes=10**10, weights_bytes=10**9, gpu_bytes=10**10, build_s=1234.5
    )
    changes = {
        "percentiles_ms": dict.fromkeys(("p50", "p90", "p99", "p99.9"), 1234.5),
        "left_out": {},
        "joules_per_image": {"package-0": 0.123, "package-1": 0.123},
        "stages_ms": dict.fromkeys(STAGES, 123.4),
        "stages_mean_ms": dict.fromkeys(STAGES, 1.25),
    }
    runs = [
        run.model_copy(
            update={
                "name": name,
                "contender": name,
                "cost": cost,
                "figures": run.figures.model_copy(update=changes),
                "checks": tuple(Check(when=when, passed=True, error=1e-5, failures=()) for when in ("before", "after")),
            }
        )
        for run, name in zip(
            record.runs, ("the server, ModelInfer clients 32", "tensorrt-gpu-bf16 batch 64"), strict=True
        )
    ]
    print_record(record.model_copy(update={"runs": tuple(runs)}))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert "1234.50" in "\n".join(lines)
    assert sum("0.123   " in line or line.endswith("0.123") for line in lines) == 2  # numbers are whole


def test_files_that_are_no_records(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match=r"can't read .*nowhere.json: No such file"):
        read_record(tmp_path / "nowhere.json")
    for text, why in (("", "Invalid JSON"), ("{}", "ferryman: Field required"), ('{"schema_version": 2}', "another")):
        (tmp_path / "x.json").write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match=f"x.json is no record of `ferryman bench --json` .*{why}"):
            read_record(tmp_path / "x.json")
