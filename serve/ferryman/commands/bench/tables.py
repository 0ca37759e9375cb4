"""A record on the terminal."""

from collections.abc import Sequence

from ferryman.bench.record import BenchRecord
from ferryman.bench.tables import (
    STAGES_TITLE,
    describe_left_out,
    describe_load,
    describe_ratios,
    describe_reading,
    describe_record,
    tabulate,
    tabulate_costs,
    tabulate_stages,
    tabulate_trials,
)
from ferryman.commands.console import make_table, out, print_table

_WIDTH = 100  # columns


def print_record(record: BenchRecord) -> None:
    """All of it, for people; unreliable in red."""
    out.print(describe_record(record))
    header, rows = tabulate(record)
    _print(header, rows)
    if any(run.figures.stages_ms for run in record.runs):
        out.print(f"{STAGES_TITLE}:")
        _print(*tabulate_stages(record))
    for line in describe_reading(record):
        out.print(line)
    if any(run.cost or run.checks for run in record.runs):
        _print(*tabulate_costs(record))
    if any(run.trials for run in record.runs):
        out.print("trials of the search:")
        _print(*tabulate_trials(record))
    for line in [*describe_load(record), *describe_ratios(record)]:
        out.print(line)
    for line in describe_left_out(record):
        out.print(line)
    out.print(str(record.clock))
    for line in record.broken:
        out.print(f"left out: {line}")
    for name, failures in record.refused.items():
        out.print(f"{name} was not measured: {'; '.join(failures)}", style="red")
    for line in record.reasons:
        out.print(f"unreliable: {line}", style="red")
    if record.ended is not None:
        out.print(f"ended early: {record.ended}", style="red")


def _print(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = make_table(*header, numbers=tuple(range(1, len(header))))
    for row in rows:
        table.add_row(*row)
    print_table(table, _WIDTH)
