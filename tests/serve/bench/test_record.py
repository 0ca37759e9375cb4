"""What is written of a measurement says it all: read again, its figures are made again."""

import json
from pathlib import Path

import numpy as np
import pytest

from ferryman.bench.alone import SessionCost
from ferryman.bench.machine import MachineFacts, read_machine, read_state
from ferryman.bench.record import pack_ms, read_record, unpack_ms
from ferryman.bench.report import report_latency
from ferryman.bench.tables import tabulate_costs, tabulate_stages
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


def test_files_that_are_no_records(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match=r"can't read .*nowhere.json: No such file"):
        read_record(tmp_path / "nowhere.json")
    for text, why in (("", "Invalid JSON"), ("{}", "ferryman: Field required"), ('{"schema_version": 2}', "another")):
        (tmp_path / "x.json").write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match=f"x.json is no record of `ferryman bench --json` .*{why}"):
            read_record(tmp_path / "x.json")
