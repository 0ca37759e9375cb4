"""Progress of stages that have steps."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # the stage's name, steps done, steps in all


def count_steps(progress: Progress, stage: str, total: int) -> Callable[[int], None]:
    """Tells `progress` of a stage of `total` steps; called with the number of steps done since the last call."""
    done = 0
    progress(stage, done, total)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(stage, done, total)

    return advance
