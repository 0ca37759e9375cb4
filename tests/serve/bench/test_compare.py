"""Two measurements compared, made apart by the harness on sessions of known latency."""

from pathlib import Path

import pytest

from ferryman.bench.compare import compare_apart, compare_records, list_differences
from ferryman.bench.record import BenchRecord, Check
from ferryman.commands.bench.diff import parse_share
from ferryman.errors import UsageError

from ..commands.outcome import Cli
from .records import PLAN, make_record
from .synthetic import constant, play


def test_changes_are_found_and_no_more() -> None:
    """Of 100 pairs of equals at most 8 are told apart; of 100 pairs that differ by 3 % at least 95."""

    def count_differences(times: float) -> int:
        told = 0
        for seed in range(100):
            sides = [play({"a": constant(median, 0.05, 2 * seed + index)}, PLAN).runs["a"]
                     for index, median in enumerate((5, 5 * times))]  # fmt: skip
            told += compare_apart(*([block.latencies_ms.tolist() for block in run.blocks] for run in sides)).differs
        return told

    assert count_differences(1) <= 8
    assert count_differences(1.03) >= 95


def test_records_are_compared_by_name() -> None:
    before = make_record({"fp32": constant(10), "bf16": constant(5)})
    after = make_record({"bf16": constant(5.5, seed=1), "int8": constant(2), "fp32": constant(10, seed=2)})
    first, second = compare_records(before, after)
    assert (first.name, second.name) == ("fp32", "bf16")
    assert not first.ratio.differs
    assert str(first).endswith(": no difference")
    assert second.ratio.value == pytest.approx(1 / 1.1, rel=0.01)
    assert [second.is_slower(share) for share in (0.05, 0.09, 0.15)] == [True, True, False]
    one, other = make_record({"fp32": constant(10)}), make_record({"int8": constant(5)})
    (change,) = compare_records(one, other)
    assert change.name == "fp32 -> int8"
    assert change.ratio.value == pytest.approx(2, rel=0.01)
    with pytest.raises(UsageError, match="no variant in common that answered right: fp32, bf16 and int8"):
        compare_records(before, other)
    with pytest.raises(UsageError, match="single-stream can't be compared with offline"):
        compare_records(one, other.model_copy(update={"scenario": "offline"}))


def test_wrong_answers_are_compared_with_nothing() -> None:
    right = make_record({"fp32": constant(10)})
    check = Check(when="after", passed=False, error=0.5, failures=("wrong",))
    wrong = right.model_copy(update={"runs": (right.runs[0].model_copy(update={"checks": (check,)}),)})
    with pytest.raises(UsageError, match="answered right: fp32 and none"):
        compare_records(right, wrong)


def test_what_else_differs_is_told() -> None:
    before = make_record({"a": constant(5)})
    assert list_differences(before, before) == []
    machine = before.machine.model_copy(update={"governor": "powersave", "versions": {}})
    after = before.model_copy(update={"machine": machine, "settings": {"threads": 2}, "bundle_digest": "cd" * 32})
    lines = list_differences(before, after)
    assert f"bundle: {'ab' * 6} -> {'cd' * 6}" in lines
    assert "threads: 1 -> 2" in lines
    assert f"numpy: {before.machine.versions['numpy']} -> none" in lines


@pytest.mark.parametrize("wrong", ["5", "x%", "-1%", "", "5000%", "nan%"])
def test_shares(wrong: str) -> None:
    assert (parse_share("5%"), parse_share(" 0.5 %"), parse_share("0%")) == (0.05, 0.005, 0)
    with pytest.raises(UsageError, match="--max-regression must be a share of the time such as 5%"):
        parse_share(wrong)


def write(folder: Path, name: str, record: BenchRecord) -> Path:
    path = folder / name
    path.write_text(record.model_dump_json(), encoding="utf-8")
    return path


def test_the_command(cli: Cli, tmp_path: Path) -> None:
    before = write(tmp_path, "a.json", make_record({"fp32": constant(10)}))
    after = write(tmp_path, "b.json", make_record({"fp32": constant(5)}, unreliable=("it was noisy",)))
    text = cli("bench", "diff", before, after).stdout
    assert text.startswith("fp32: 10 -> 5 ms, 2.0")
    assert "unreliable: b.json: it was noisy" in text
    document = cli("bench", "diff", before, after, "--json").document
    assert document["changes"][0]["differs"] is True
    assert document["differences"] == []
    assert (cli("bench", "diff", before, tmp_path / "c.json").status, cli("bench", "diff", before).status) == (1, 2)


def test_the_baseline_of_a_build(cli: Cli, toy_repository: Path, tmp_path: Path) -> None:
    """It fails where it is surely slower, and nowhere else; the document is the only one on stdout."""
    name = "onnxruntime-cpu-fp32"
    slow = write(tmp_path, "slow.json", make_record({name: constant(1000)}))
    fast = write(tmp_path, "fast.json", make_record({name: constant(0.05)}))
    arguments = ("bench", toy_repository / "toy-classifier", "--seconds", 0.2, "--threads", 1)
    fine = cli(*arguments, "--baseline", slow)
    assert fine.status == 0
    assert f"against the baseline:\n{name}: 1" in fine.stdout
    failed = cli(*arguments, "--baseline", fast, "--json")
    assert failed.status == 1
    assert failed.document["runs"][0]["name"] == name
    assert failed.complaint.startswith("ferryman: slower than the baseline by more than 5%: onnxruntime-cpu-fp32: 0.0")
    strange = cli(
        *arguments, "--baseline", write(tmp_path, "x.json", make_record({"a": constant(1), "b": constant(1)})), "--json"
    )
    assert (strange.status, strange.document["runs"][0]["name"]) == (2, name)
    assert "they have no variant in common" in strange.complaint
    early = cli(*arguments, "--baseline", tmp_path / "nowhere.json")
    assert (early.status, early.stderr.count("\n")) == (1, 1)
    other = cli(*arguments, "--baseline", fast, "--scenario", "offline")
    assert (other.status, other.stdout) == (2, "")  # before anything is measured
    assert other.complaint == "ferryman: single-stream can't be compared with offline: measure both in one way"
    assert cli(*arguments, "--baseline", fast, "--max-regression", "much").status == 2
