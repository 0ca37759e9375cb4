"""`ferryman bench diff A B` and `--baseline`: whether something got faster or slower, and how sure that is."""

from pathlib import Path

from ferryman.bench.compare import Change, compare_records, list_differences
from ferryman.bench.record import BenchRecord, read_record
from ferryman.commands.console import out, print_json
from ferryman.errors import RegressionError, UsageError


def run_diff(before: Path, after: Path, json_output: bool) -> None:
    """Raises UsageError for what can't be compared, and what `read_record` raises."""
    first, second = read_record(before), read_record(after)
    changes, differences = compare_records(first, second), list_differences(first, second)
    reasons = [f"{path.name}: {line}" for path, one in ((before, first), (after, second)) for line in one.reasons]
    if json_output:
        facts = [change.model_dump(mode="json") | {"differs": change.ratio.differs} for change in changes]
        print_json({"changes": facts, "differences": differences, "unreliable": reasons})
        return
    for change in changes:
        out.print(str(change))
    for line in differences:
        out.print(f"differs: {line}")
    for line in reasons:
        out.print(f"unreliable: {line}", style="red")


def parse_share(text: str) -> float:
    """`5%` -> 0.05. Raises UsageError."""
    number = text.strip().removesuffix("%").strip()
    try:
        share = float(number) / 100
    except ValueError:
        share = -1.0
    if not text.strip().endswith("%") or not 0 <= share < 10:
        raise UsageError(f"--max-regression must be a share of the time such as 5%, got {text!r}")
    return share


def check_baseline(baseline: BenchRecord, record: BenchRecord, share: float, json_output: bool) -> None:
    """Prints the changes. Raises RegressionError when one is certainly slower by more than `share`."""
    changes: list[Change] = compare_records(baseline, record)
    if not json_output:
        out.print("against the baseline:")
        for line in (*map(str, changes), *(f"differs: {one}" for one in list_differences(baseline, record))):
            out.print(line)
    slower = [change for change in changes if change.is_slower(share)]
    if slower:
        raise RegressionError(f"slower than the baseline by more than {share * 100:g}%: {'; '.join(map(str, slower))}")
