"""Joules that the machine says it took: RAPL's counters, a Jetson's INA sensors, NVIDIA's GPUs. Empty where none tells.

They are of whole devices, whoever uses them. Counters count by themselves; of a sensor of power a thread makes joules.
"""

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from ferryman.bench.gpu import GpuStream

_EVERY_S = 0.05  # between two looks at a sensor, which averages over about as long itself
_TOTALS = ("VDD_IN", "POM_5V_IN")  # what INA sensors of Jetsons call the whole module
_GPU_MS = 100  # between two readings of a GPU


class Meter(Protocol):
    """name: of the device"""

    name: str

    def joules(self) -> float | None:
        """Since some time in the past; None when it tells no longer."""
        ...


Meters = Sequence[Meter]


def read_joules(meters: Meters) -> dict[str, float]:
    return {meter.name: joules for meter in meters if (joules := meter.joules()) is not None}


def joules_since(before: Mapping[str, float], meters: Meters) -> dict[str, float]:
    return {name: now - before[name] for name, now in read_joules(meters).items() if name in before}


class Rapl:
    """A processor package's counter in microjoules, which begins again at its range.

    To be read more often than it goes round: some minutes.
    """

    def __init__(self, folder: Path) -> None:
        """Raises OSError where it can't be read: only root may, on most systems."""
        self.name = (folder / "name").read_text(encoding="utf-8").strip()
        self._file, self._range = (
            folder / "energy_uj",
            int((folder / "max_energy_range_uj").read_text(encoding="utf-8")),
        )
        self._last, self._rounds = self._read(), 0

    def joules(self) -> float | None:
        try:
            now = self._read()
        except (OSError, ValueError):
            return None
        self._rounds += now < self._last
        self._last = now
        return (now + self._rounds * self._range) / 1e6

    def _read(self) -> int:
        return int(self._file.read_text(encoding="utf-8"))


class PowerSensor:
    """watts: waits for the next reading; None ends it

    first: what it read before
    """

    def __init__(self, name: str, watts: Callable[[], float | None], first: float) -> None:
        self.name, self._watts = name, watts
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._joules, self._power, self._at = 0.0, first, time.perf_counter()
        self._told_all = False
        self._thread = threading.Thread(target=self._go_on, name=f"power of {name}", daemon=True)
        self._thread.start()

    def joules(self) -> float | None:
        """What the last reading makes until now is part of it."""
        with self._lock:
            self._add()
            return None if self._told_all else self._joules

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _go_on(self) -> None:
        while not self._ended.is_set() and (power := self._watts()) is not None:
            with self._lock:
                self._add()
                self._power = power
        with self._lock:
            self._told_all = True

    def _add(self) -> None:
        now = time.perf_counter()
        self._joules += self._power * (now - self._at)
        self._at = now


@contextmanager
def open_meters(system: Path = Path("/sys")) -> Generator[Meters, None, None]:
    """All that tell. system: where the kernel shows its devices"""
    with ExitStack() as opened:
        meters: list[Meter] = []
        for folder in sorted((system / "class" / "powercap").glob("intel-rapl:[0-9]")):  # AMD's have the name too
            try:
                meters.append(Rapl(folder))
            except (OSError, ValueError):
                continue
        for watts in _find_ina(system):
            if (first := watts()) is not None:
                module = PowerSensor("module", watts, first)
                opened.callback(module.close)
                meters.append(module)
        if (stream := GpuStream.open("power.draw", _GPU_MS)) is not None:
            gpu = PowerSensor("GPU", stream.read, stream.first)
            opened.callback(gpu.close)  # last: it waits for a reading, and ends with the stream
            opened.callback(stream.close)
            meters.append(gpu)
        yield meters


def _find_ina(system: Path) -> Generator[Callable[[], float | None], None, None]:
    """Volts times amperes of the whole module."""
    for label in sorted((system / "bus" / "i2c" / "drivers" / "ina3221").glob("*/hwmon/hwmon*/in*_label")):
        number = label.name.removeprefix("in").removesuffix("_label")
        millivolts, milliamperes = label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")
        if label.read_text(encoding="utf-8").strip() in _TOTALS and milliamperes.exists():

            def watts(millivolts: Path = millivolts, milliamperes: Path = milliamperes) -> float | None:
                time.sleep(_EVERY_S)
                try:
                    return _read_milli(millivolts) * _read_milli(milliamperes)
                except (OSError, ValueError):
                    return None

            yield watts


def _read_milli(file: Path) -> float:
    return int(file.read_text(encoding="utf-8")) / 1e3
