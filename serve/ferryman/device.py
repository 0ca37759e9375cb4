"""What this machine is, as far as it bears on a measurement."""

import os
import platform
from collections.abc import Collection
from pathlib import Path

from ferryman.specs import Facts


class DeviceFacts(Facts):
    """cpu: model name; cores: that this process may use; memory_bytes: of the machine, None where it does not tell."""

    machine: str
    system: str
    cpu: str
    cores: int
    cpu_features: tuple[str, ...]
    memory_bytes: int | None
    python: str


# What bears on the speed of low precisions; names as Linux writes them.
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16",
             "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve")  # fmt: skip


def read_device() -> DeviceFacts:
    """Facts of the machine that runs this."""
    cpu, flags = _read_cpuinfo()
    return DeviceFacts(
        machine=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        cpu=cpu or platform.processor() or "unknown",
        cores=count_usable(),
        cpu_features=tuple(feature for feature in _FEATURES if feature in flags),
        memory_bytes=_read_memory(),
        python=platform.python_version(),
    )


def count_usable() -> int:
    """Processors that the calling thread may use: fewer than the machine has in a container with a set of its own."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def saturates(features: Collection[str]) -> bool:
    """Whether a processor cuts off at 16 bits what it adds up of uint8 times int8: those with AVX2 but without VNNI."""
    return "avx2" in features and not {"avx_vnni", "avx512_vnni"} & set(features)


def _read_cpuinfo() -> tuple[str, frozenset[str]]:
    """Model name and feature flags; both empty where there is no /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", frozenset()
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields.get("model name", ""), frozenset(fields.get("flags", fields.get("Features", "")).split())


def _read_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
