"""NVIDIA's GPUs as `nvidia-smi` tells of them, and the power mode of a Jetson; empty where the tools are not there."""

import csv
import select
import shutil
import subprocess
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from ferryman.specs import Facts

_TIMEOUT_S = 10
_MEMORY_MS = 20  # between two looks at a GPU's memory: what is taken for less may be missed
_FIELDS = ("name", "driver_version", "clocks.sm", "clocks.mem", "temperature.gpu", "power.draw",
           "clocks_throttle_reasons.active")  # fmt: skip
# Of NVML's bits those that mean less speed than the GPU has; the others say that nobody asks for more.
THROTTLES = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}


class GpuState(Facts):
    """Numbers are None where the driver does not tell. throttled: reasons for which its clocks are held down"""

    name: str
    driver: str
    clock_mhz: float | None
    memory_clock_mhz: float | None
    temperature_c: float | None
    power_w: float | None
    throttled: tuple[str, ...]


def read_gpus() -> tuple[GpuState, ...]:
    """One a GPU."""
    text = _run(["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"])
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines())]
    return tuple(_read_row(row) for row in rows if len(row) == len(_FIELDS))


def read_power_mode() -> str | None:
    """Such as `MAXN`, of a Jetson."""
    for line in _run(["nvpmodel", "-q"]).splitlines():
        name, colon, mode = line.partition(":")
        if colon and name.strip().endswith("Power Mode"):
            return mode.strip()
    return None


class GpuStream:
    """A figure of the first GPU, told again and again until it is closed.

    field: as `nvidia-smi --help-query-gpu` names it; first: what it read at once
    """

    def __init__(self, process: "subprocess.Popen[str]", first: float) -> None:
        self._process, self.first = process, first

    @classmethod
    def open(cls, field: str, every_ms: int) -> "GpuStream | None":
        """None where nothing tells it: no tool, no GPU, a driver that hangs."""
        program = shutil.which("nvidia-smi")
        if program is None:
            return None
        query = ["--id=0", f"--query-gpu={field}", "--format=csv,noheader,nounits", "-lms", str(every_ms)]
        process = subprocess.Popen([program, *query], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        stream = cls(process, 0.0)
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], _TIMEOUT_S)
        first = stream.read() if ready else None
        if first is None:
            stream.close()
            return None
        stream.first = first
        return stream

    def read(self) -> float | None:
        """Waits for the next; None when it has ended or does not tell."""
        assert self._process.stdout is not None
        try:
            return _number(self._process.stdout.readline())
        except ValueError:  # it was closed meanwhile
            return None

    def close(self) -> None:
        """Whoever waits in `read` goes on."""
        assert self._process.stdout is not None
        self._process.terminate()
        self._process.wait()
        self._process.stdout.close()


@contextmanager
def watch_gpu_memory() -> Generator[Callable[[], int | None], None, None]:
    """Yields what tells the most bytes of the first GPU that were in use since, by whoever, beyond those at the start.

    It takes two looks of `_MEMORY_MS`, so that what is held when it is asked counts; None where nothing tells.
    """
    stream = GpuStream.open("memory.used", _MEMORY_MS)
    if stream is None:
        yield lambda: None
        return
    readings: list[float | None] = [stream.first]
    told = threading.Condition()

    def go_on() -> None:
        while readings[-1] is not None:
            now = stream.read()
            with told:
                readings.append(now)
                told.notify_all()

    def tell() -> int | None:
        with told:
            wanted = len(readings) + 2
            told.wait_for(lambda: readings[-1] is None or len(readings) >= wanted, _TIMEOUT_S)
            known = [mebibytes for mebibytes in readings if mebibytes is not None]
            whole = len(known) == len(readings) >= wanted
        return round((max(known) - known[0]) * 2**20) if whole else None

    thread = threading.Thread(target=go_on, name="memory of the GPU", daemon=True)
    thread.start()
    try:
        yield tell
    finally:
        stream.close()
        thread.join()


def _read_row(row: Sequence[str]) -> GpuState:
    name, driver, clock, memory, temperature, power, reasons = row
    bits = int(reasons, 16) if reasons.lower().startswith("0x") else 0
    throttled = tuple(reason for bit, reason in THROTTLES.items() if bits & bit)
    return GpuState(
        name=name, driver=driver, clock_mhz=_number(clock), memory_clock_mhz=_number(memory),
        temperature_c=_number(temperature), power_w=_number(power), throttled=throttled,
    )  # fmt: skip


def _number(text: str) -> float | None:
    """None for `[N/A]` and its like."""
    try:
        return float(text)
    except ValueError:
        return None


def _run(command: Sequence[str]) -> str:
    """What a tool prints; empty when it is not there, fails or hangs."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
