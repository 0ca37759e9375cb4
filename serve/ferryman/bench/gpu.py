"""NVIDIA's GPUs as `nvidia-smi` tells of them, and the power mode of a Jetson; empty where the tools are not there."""

import csv
import shutil
import subprocess
from collections.abc import Sequence

from ferryman.specs import Facts

_TIMEOUT_S = 10
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
