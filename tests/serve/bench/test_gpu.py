"""What NVIDIA's tools say, from programs that print what theirs do."""

import os
from pathlib import Path

import pytest

from ferryman.bench.gpu import GpuState, read_gpus, read_power_mode, watch_gpu_memory


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which programs are found."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def make_tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def test_gpus(tools: Path) -> None:
    rows = [
        "NVIDIA H200, 570.86.15, 1980, 3201, 44, 310.55, 0x0000000000000000",
        "NVIDIA L4, 570.86.15, 300, [N/A], 81, [N/A], 0x0000000000000044",
        "NVIDIA T4, 570.86.15, 300, 405, 40, 10, 0x0000000000000001",
    ]
    make_tool(tools, "nvidia-smi", "cat <<'E'\n" + "\n".join(rows) + "\nE")
    first, second, idle = read_gpus()
    assert first == GpuState(
        name="NVIDIA H200", driver="570.86.15", clock_mhz=1980, memory_clock_mhz=3201, temperature_c=44,
        power_w=310.55, throttled=(),
    )  # fmt: skip
    assert (second.memory_clock_mhz, second.power_w) == (None, None)
    assert second.throttled == ("power cap", "heat (hardware)")
    assert idle.throttled == ()


@pytest.mark.parametrize("script", ["echo 'No devices were found'; exit 6", "echo nonsense", "exit 0"])
def test_a_driver_without_gpus(tools: Path, script: str) -> None:
    make_tool(tools, "nvidia-smi", script)
    assert read_gpus() == ()


def test_power_mode(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tool(tools, "nvpmodel", "printf 'NV Power Mode: MAXN\\n0\\n'")
    assert read_power_mode() == "MAXN"
    monkeypatch.setenv("PATH", str(tools / "nowhere"))
    assert (read_power_mode(), read_gpus()) == (None, ())


def test_the_most_memory_that_was_taken(tools: Path) -> None:
    """What is there at the start, and what is given back, is not part of it."""
    used = tools / "used"
    make_tool(tools, "nvidia-smi", f"while cat {used}; do sleep 0.01; done")

    def use(mebibytes: int) -> None:
        (tools / "new").write_text(f"{mebibytes}\n", encoding="ascii")
        (tools / "new").rename(used)

    use(300)
    with watch_gpu_memory() as tell:
        assert tell() == 0
        use(900)
        assert tell() == 600 * 2**20
        use(500)
        assert tell() == 600 * 2**20


UNTOLD = {
    "no GPU": "exit 6",
    "not of this GPU": "while echo '[N/A]'; do sleep 0.01; done",
    "no longer": "echo 300; echo 300; echo '[Unknown Error]'; sleep 60",
    "ended": "echo 300; echo 900",
}


@pytest.mark.parametrize("script", UNTOLD.values(), ids=UNTOLD)
def test_memory_that_is_not_told(tools: Path, script: str) -> None:
    """Rather than what was told last."""
    make_tool(tools, "nvidia-smi", script)
    with watch_gpu_memory() as tell:
        assert tell() is None


def test_memory_without_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with watch_gpu_memory() as tell:
        assert tell() is None
