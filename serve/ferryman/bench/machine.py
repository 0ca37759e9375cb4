"""The machine that measured, as far as it bears on speed: what it is, and the state that it was in."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from ferryman.bench.gpu import GpuState, read_gpus, read_power_mode
from ferryman.device import DeviceFacts, read_device
from ferryman.specs import Facts

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_OLD_QUOTA, _OLD_PERIOD = (Path(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
_MEMORY_MAX = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_CPUINFO = Path("/proc/cpuinfo")
_NO_LIMIT = 1 << 60  # what older kernels write for none
_LIBRARIES = ("numpy", "pillow", "grpcio", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")


class MachineFacts(Facts):
    """What does not change while something is measured; None where the machine does not tell.

    governor: of the processor's frequency; virtual: whether it is a guest of another machine
    quota: processors that the control group may use; memory_limit_bytes: of the group; versions: of libraries
    power_mode: of a Jetson
    """

    device: DeviceFacts
    governor: str | None
    virtual: bool
    quota: float | None
    memory_limit_bytes: int | None
    versions: dict[str, str]
    power_mode: str | None = None


class MachineState(Facts):
    """As it was at one moment. load: processes that want to run, the mean of the last minute

    frequency_mhz: mean of all processors; temperatures_c: of each sensor, the hottest of its places
    """

    load: float | None
    frequency_mhz: float | None
    temperatures_c: dict[str, float]
    memory_available_bytes: int
    gpus: tuple[GpuState, ...] = ()


def read_machine() -> MachineFacts:
    cpuinfo = _read(_CPUINFO) or ""
    return MachineFacts(
        device=read_device(),
        governor=_read(_GOVERNOR),
        virtual=" hypervisor" in cpuinfo,
        quota=_read_quota(),
        memory_limit_bytes=_read_memory_limit(),
        versions=_read_versions(),
        power_mode=read_power_mode(),
    )


def read_state() -> MachineState:
    return MachineState(
        load=_read_load(), frequency_mhz=_read_frequency(), temperatures_c=_read_temperatures(),
        memory_available_bytes=psutil.virtual_memory().available,
        gpus=read_gpus(),
    )  # fmt: skip


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _read_quota() -> float | None:
    quota, _, period = (_read(_CPU_MAX) or "").partition(" ")
    if not period:
        quota, period = _read(_OLD_QUOTA) or "", _read(_OLD_PERIOD) or ""
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _read_memory_limit() -> int | None:
    for path in _MEMORY_MAX:
        text = _read(path)
        if text is not None:
            return int(text) if text.isdecimal() and int(text) < _NO_LIMIT else None
    return None


def _read_versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _read_load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):  # of systems that have none
        return None


def _read_frequency() -> float | None:
    try:
        found = psutil.cpu_freq()
    except (OSError, RuntimeError):  # psutil, of a guest whose kernel does not tell: NotImplementedError is the latter
        return None
    return float(found.current) or None if found else None


def _read_temperatures() -> dict[str, float]:
    try:
        found = psutil.sensors_temperatures()
    except (OSError, AttributeError):  # neither Windows nor macOS has the function
        return {}
    return {name: max(float(one.current) for one in places) for name, places in found.items() if places}
