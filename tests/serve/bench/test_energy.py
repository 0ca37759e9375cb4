"""Joules, from files and programs that tell what the kernel's and NVIDIA's do."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from ferryman.bench.energy import PowerSensor, Rapl, joules_since, open_meters, read_joules
from ferryman.bench.harness import Harness, Plan
from ferryman.bench.record import BlockRecord
from ferryman.bench.report import report_latency
from ferryman.bench.samples import Block, Run

from .synthetic import ManualClock, constant, session


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="utf-8")


def make_package(system: Path, microjoules: int, most: int = 1_000_000) -> Path:
    folder = system / "class" / "powercap" / "intel-rapl:0"
    write(folder / "name", "package-0")
    write(folder / "energy_uj", microjoules)
    write(folder / "max_energy_range_uj", most)
    return folder


def test_a_counter_that_goes_round(tmp_path: Path) -> None:
    folder = make_package(tmp_path, 900_000)
    meter = Rapl(folder)
    before = read_joules([meter])
    assert before == {"package-0": 0.9}
    for microjoules, since in ((950_000, 0.05), (100_000, 0.2), (50_000, 1.15)):
        write(folder / "energy_uj", microjoules)
        assert joules_since(before, [meter])["package-0"] == pytest.approx(since)


def test_a_machine_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (make_package(tmp_path, 0) / "energy_uj").unlink()  # as for everybody but root
    with open_meters(tmp_path) as meters:
        assert meters == []


def test_a_jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module's rail of several, at 5 V and 2 A."""
    monkeypatch.setenv("PATH", str(tmp_path))
    sensors = tmp_path / "bus" / "i2c" / "drivers" / "ina3221" / "1-0040" / "hwmon" / "hwmon3"
    for number, name, milliamperes in ((1, "VDD_IN", 2000), (2, "VDD_CPU_GPU_CV", 700)):
        write(sensors / f"in{number}_label", name)
        write(sensors / f"in{number}_input", 5000)
        write(sensors / f"curr{number}_input", milliamperes)
    with open_meters(tmp_path) as meters:
        assert [meter.name for meter in meters] == ["module"]
        start, before = time.perf_counter(), read_joules(meters)
        time.sleep(0.2)
        joules = joules_since(before, meters)["module"]
        seconds = time.perf_counter() - start
    assert 10 * 0.2 <= joules <= 10 * seconds + 1e-6


GPUS = {"a GPU": ("while echo 50.0; do sleep 0.02; done", ["GPU"]), "none": ("exit 9", [])}


@pytest.mark.parametrize(("script", "names"), GPUS.values(), ids=GPUS)
def test_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, names: list[str]) -> None:
    write(tmp_path / "nvidia-smi", f"#!/bin/sh\n{script}")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with open_meters(tmp_path) as meters:
        assert [meter.name for meter in meters] == names
        start, before = time.perf_counter(), read_joules(meters)
        time.sleep(0.1)
        for joules in joules_since(before, meters).values():
            assert 50 * 0.1 <= joules <= 50 * (time.perf_counter() - start)


def test_a_sensor_that_ends() -> None:
    """It tells nothing more, rather than what it last read for ever; a run that it told of in part has no joules."""
    readings = iter([5.0, 7.0])
    sensor = PowerSensor("module", lambda: next(readings, None), 3.0)
    sensor.close()
    assert sensor.joules() is None
    assert read_joules([sensor]) == {}
    told = Block(0.0, 1.0, np.array([1.0]), joules={"module": 2.0})
    assert Run(blocks=[told, told]).joules_per_image() == {"module": 2.0}
    assert Run(blocks=[told, Block(1.0, 1.0, np.array([1.0]))]).joules_per_image() == {}


class Steady:
    """10 W on the clock of the harness."""

    name = "package-0"

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock

    def joules(self) -> float:
        return 10 * self._clock.now


def test_joules_of_a_picture() -> None:
    """20 ms at 10 W, through the harness, a record and back, whatever is between blocks."""
    clock = ManualClock()
    requests = {name: session(clock, constant(took)) for name, took in (("one", 20.0), ("two", 40.0))}
    harness = Harness(Plan(seconds=2, warm_s=1), clock, meters=[Steady(clock)])
    harness.measure(requests)
    for name, joules in (("one", 0.2), ("two", 0.4)):
        run = harness.runs[name]
        run.blocks = [BlockRecord.pack(block).unpack() for block in run.blocks]
        assert report_latency(run).joules_per_image == {"package-0": pytest.approx(joules, rel=0.01)}
