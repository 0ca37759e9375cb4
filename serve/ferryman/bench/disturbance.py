"""What else the machine did while something was measured: other processes, other guests, limits."""

import os
from pathlib import Path

import psutil

from ferryman.specs import Facts

_TASKS = Path("/proc/self/task")
_CGROUP_STAT = (Path("/sys/fs/cgroup/cpu.stat"), Path("/sys/fs/cgroup/cpu/cpu.stat"))


class Disturbance(Facts):
    """Shares of the time, None where the machine does not tell.

    steal: of the processors' time that other guests of the host took
    others: processors that other processes of this machine kept busy, on average
    waiting: of the time that this process's threads wanted to run, how much they waited in the run queue
    throttled: of the time, how long the limit of the control group stood in the way
    """

    steal: float | None = None
    others: float | None = None
    waiting: float | None = None
    throttled: float | None = None

    def worse(self, other: "Disturbance") -> "Disturbance":
        """The larger of each."""
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in type(self).model_fields}
        known = {name: [one for one in pair if one is not None] for name, pair in pairs.items()}
        return Disturbance(**{name: max(found, default=None) for name, found in known.items()})


class Counters(Facts):
    """Seconds since some time in the past; None where the machine does not tell.

    busy, steal, whole: of all processors; own: of this process and its children; ran, waited: of its threads
    """

    busy: float | None = None
    steal: float | None = None
    whole: float | None = None
    own: float = 0.0
    ran: float | None = None
    waited: float | None = None
    throttled: float | None = None

    def until(self, later: "Counters", seconds: float) -> Disturbance:
        """What went on from here to there. seconds: between the two"""
        steal, busy = _since(self.steal, later.steal), _since(self.busy, later.busy)
        whole, throttled = _since(self.whole, later.whole), _since(self.throttled, later.throttled)
        ran, waited = _since(self.ran, later.ran), _since(self.waited, later.waited)
        others = None if busy is None else max(0.0, busy - (later.own - self.own))
        return Disturbance(
            steal=None if steal is None or not whole else steal / whole,
            others=None if others is None or seconds <= 0 else others / seconds,
            waiting=None if ran is None or waited is None else waited / max(ran + waited, 1e-9),
            throttled=None if throttled is None or seconds <= 0 else throttled / seconds,
        )


def _since(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else max(0.0, after - before)


def read_counters() -> Counters:
    """As they are now."""
    times = psutil.cpu_times()._asdict()
    idle = times["idle"] + times.get("iowait", 0.0)
    steal = times.get("steal")
    # guest time is in user time already
    whole = sum(value for name, value in times.items() if not name.startswith("guest"))
    own = os.times()
    ran, waited = _read_run_queue()
    return Counters(
        busy=whole - idle - (steal or 0.0),
        steal=steal,
        whole=whole,
        own=own.user + own.system + own.children_user + own.children_system,
        ran=ran,
        waited=waited,
        throttled=_read_throttled(),
    )


def _read_run_queue() -> tuple[float, float] | tuple[None, None]:
    """Seconds that all threads of this process ran, and waited to run."""
    ran = waited = 0
    try:
        for task in _TASKS.iterdir():
            try:
                first, second, _ = (task / "schedstat").read_text(encoding="ascii").split()
            except (FileNotFoundError, ProcessLookupError):  # a thread that just ended
                continue
            ran, waited = ran + int(first), waited + int(second)
    except OSError:
        return None, None
    return (ran / 1e9, waited / 1e9) if ran else (None, None)


def _read_throttled() -> float | None:
    for path in _CGROUP_STAT:
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        found = dict(line.split(maxsplit=1) for line in lines)
        if "throttled_usec" in found:
            return int(found["throttled_usec"]) / 1e6
        if "throttled_time" in found:
            return int(found["throttled_time"]) / 1e9
    return None
