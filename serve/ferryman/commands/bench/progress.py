"""How far a measurement is: its newest percentiles and the time that is left."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import numpy as np
from rich.progress import TimeRemainingColumn

from ferryman.bench.harness import Moment
from ferryman.commands.console import StageProgress, err, make_progress, show_stages


@contextmanager
def show_measuring() -> Generator[tuple[StageProgress, Callable[[Moment], None]], None, None]:
    """Progress on stderr: of what is done before, and of the measuring itself. One line a stage off a terminal."""
    if not err.is_terminal:
        with show_stages() as show:
            yield show, lambda moment: show(moment.stage, 0, 1)
        return
    with make_progress(TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=None)

        def advance(moment: Moment) -> None:
            total = 1.0 if moment.share else None  # the bar pulses until there is something to tell
            progress.update(task, description=describe_moment(moment), completed=moment.share, total=total)

        yield lambda stage, done, total: progress.update(task, description=stage), advance


def describe_moment(moment: Moment) -> str:
    """`measure: p50 5.02 ms, p99 6.10 ms` of the newest block."""
    if not moment.latencies_ms:
        return moment.stage
    middle, high = np.percentile(moment.latencies_ms, (50, 99))
    return f"{moment.stage}: p50 {middle:.2f} ms, p99 {high:.2f} ms"
