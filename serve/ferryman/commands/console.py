"""Output shared by all subcommands: results to stdout, progress to stderr, colours on a terminal alone."""

import json
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

StageProgress = Callable[[str, int, int], None]

# Labels and paths are printed as they are: no markup, no :emoji:.
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def print_json(document: object) -> None:
    """One JSON document on stdout, in ASCII lest a path or a label can't be encoded; NaN is refused."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def make_table(*columns: str, numbers: tuple[int, ...] = ()) -> Table:
    """A plain table; `numbers` are the columns to align to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in numbers else "left", overflow="fold")
    return table


def print_table(table: Table, piped: int = 100_000) -> None:
    """Nothing is cut off: a terminal that is too narrow folds the cells.

    piped: columns of what is no terminal, which has no width to fit
    """
    width = max(out.width, 80) if out.is_terminal else piped
    Console(width=width, highlight=False, markup=False, emoji=False).print(table)


def make_progress(time: ProgressColumn) -> Progress:
    """Of tasks on a terminal, gone when it is over. time: the column that says how long they take"""
    text = TextColumn("{task.description}", markup=False)
    return Progress(SpinnerColumn(), text, BarColumn(bar_width=30), time, console=err, transient=True)


@contextmanager
def show_stages() -> Generator[StageProgress, None, None]:
    """Progress on stderr: a bar on a terminal, one line a stage elsewhere."""
    if not err.is_terminal:
        seen: list[str] = []

        def write(stage: str, _done: int, _total: int) -> None:
            if stage not in seen:
                seen.append(stage)
                err.print(f"- {stage}")

        yield write
        return
    with make_progress(TimeElapsedColumn()) as progress:
        tasks: dict[str, int] = {}

        def draw(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in progress.tasks:
                    progress.update(task.id, completed=task.total or 1, total=task.total or 1)
                tasks[stage] = progress.add_task(stage, total=None)
            # A stage of one step has nothing to count: its bar pulses.
            if total > 1:
                progress.update(progress.task_ids[tasks[stage]], completed=done, total=total)

        yield draw
