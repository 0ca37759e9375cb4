"""Which threads run where, and which give way: nothing of the server shall stand in the way of its models."""

import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ferryman.device import count_usable
from ferryman.errors import UsageError

_PART = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")


@dataclass(frozen=True)
class Place:
    """Where threads run, and how. cpus: processors by number; policy: of the system's scheduler; None leaves either"""

    cpus: frozenset[int] | None = None
    policy: int | None = None

    def take(self) -> "Place":
        """Moves the calling thread there, and with it those that it starts from now on; returns where it was."""
        before = Place(
            None if self.cpus is None else frozenset(os.sched_getaffinity(0)),
            None if self.policy is None else os.sched_getscheduler(0),
        )
        if self.cpus is not None:
            os.sched_setaffinity(0, self.cpus)
        if self.policy is not None:
            try:
                os.sched_setscheduler(0, self.policy, os.sched_param(0))
            except OSError:  # of a sandbox: then all threads are alike, as they were
                return replace(before, policy=None)
        return before


ANYWHERE = Place()


@contextmanager
def inside(place: Place) -> Generator[None]:
    """The calling thread is there, and so are those that start meanwhile, as a runtime's do."""
    before = place.take()
    try:
        yield
    finally:
        before.take()


@dataclass(frozen=True)
class Placement:
    """models: of sessions and what runs their batches; others: of all else in the server"""

    models: Place = ANYWHERE
    others: Place = ANYWHERE


AS_IT_COMES = Placement()


def place_threads(model_cpus: str | None, busy: int | None) -> Placement:
    """Of a server whose models have processors of their own, or where they keep fewer busy than there are.

    busy: threads that compute, None for one a processor
    Raises UsageError, see `parse_placement`.
    """
    if model_cpus is not None:
        return parse_placement(model_cpus)
    if busy is None or busy >= count_usable() or not _is_usual():
        return AS_IT_COMES
    # A thread that wakes interrupts one that computes, even where another processor is about to be free. One of
    # SCHED_BATCH does not. Where models keep all processors busy it would wait for their slices to end.
    return Placement(Place(policy=os.SCHED_OTHER), Place(policy=os.SCHED_BATCH))


def _is_usual() -> bool:
    """Whether threads are scheduled as they are where nobody chose, and can be scheduled otherwise: Linux alone can."""
    try:
        return os.sched_getscheduler(0) == os.SCHED_OTHER
    except (AttributeError, OSError):  # other systems; other libraries of C, such as musl
        return False


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
    return Placement(Place(frozenset(models)), Place(frozenset(others)))


def _list_text(cpus: set[int]) -> str:
    return ",".join(map(str, sorted(cpus)))
