"""Which processors do what: models run on their own, so that nothing of the server stands in their way."""

import os
import re
from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from ferryman.errors import UsageError

_PART = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")


@dataclass(frozen=True)
class Placement:
    """models: the processors of sessions, by number; others: of all else in the server"""

    models: frozenset[int]
    others: frozenset[int]


def parse_placement(text: str) -> Placement:
    """From a list such as `0,2-3`, as `taskset` and `/proc/PID/status` write it, and what this thread may use.

    Raises UsageError for no such list, for processors that it may not use, and where no other one is left.
    """
    if not hasattr(os, "sched_getaffinity"):
        raise UsageError("model_cpus: this system can't hold threads to processors; leave it out")
    models: set[int] = set()
    for part in text.split(","):
        found = _PART.fullmatch(part.strip())
        if found is None:
            raise UsageError(f"model_cpus: {text[:40]!r} is no list of processors such as 0,2-3")
        first = int(found[1])
        models.update(range(first, int(found[2] or first) + 1))
    usable = os.sched_getaffinity(0)
    unusable, others = models - usable, usable - models
    if unusable or not models:
        raise UsageError(f"model_cpus: {text} is not within {_list_text(usable)}, which this process may use")
    if not others:
        raise UsageError(f"model_cpus: {text} leaves no processor of {_list_text(usable)} for the rest of the server")
    return Placement(frozenset(models), frozenset(others))


def count_usable() -> int:
    """Processors that the calling thread may use: fewer than the machine has in a container with a set of its own."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_on(cpus: Collection[int]) -> None:
    """Moves the calling thread there, and with it those that it starts from now on."""
    os.sched_setaffinity(0, cpus)


@contextmanager
def running_on(cpus: Collection[int] | None) -> Generator[None]:
    """The calling thread runs there, and so will those that start inside, as a runtime's do; None changes nothing."""
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    run_on(cpus)
    try:
        yield
    finally:
        run_on(before)


def _list_text(cpus: set[int]) -> str:
    return ",".join(map(str, sorted(cpus)))
