"""What a session costs: a process of its own loads a variant, runs one picture, and tells.

No PyTorch is imported there, as none is where a bundle is served.
"""

import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import numpy as np

from ferryman.bench.gpu import watch_gpu_memory
from ferryman.errors import EngineError
from ferryman.golden import Tensors
from ferryman.runtimes import find_runtime
from ferryman.runtimes.base import Settings
from ferryman.specs import Facts, ModelSpec, Target

_PROCESSES = 5
_STATUS, _FORGET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Load(Facts):
    """What a process is asked to load. path: the variant's main file; threads: None for all"""

    path: Path
    target: Target
    spec: ModelSpec
    threads: int | None


class SessionCost(Facts):
    """load_s: seconds of loading, the runtime's library being imported before; first_ms: the first picture after that
    memory_bytes: the peak of resident memory while loading and running one picture, less what was resident before;
    files that are mapped count. None where the system does not tell, which Linux does
    weights_bytes: size of what is loaded: the engine, or else the variant's own files, its main one and its weights
    gpu_bytes: the peak of the first GPU's memory by then, CUDA's own included, less what was in use before, whoever
    uses that GPU; None where it is not used or does not tell
    build_s: what building the engine took on this device; None where none is built
    """

    load_s: float
    first_ms: float
    memory_bytes: int | None
    weights_bytes: int
    gpu_bytes: int | None = None
    build_s: float | None = None


def measure_cost(load: Load, processes: int | None = None) -> SessionCost:
    """The medians of several processes. Raises EngineError when one fails."""
    costs: list[SessionCost] = []
    for _ in range(processes or _PROCESSES):
        command = [sys.executable, "-m", __spec__.name]
        done = subprocess.run(command, input=load.model_dump_json(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise EngineError(f"{load.target} can't be loaded by itself: {done.stderr.strip().splitlines()[-1]}")
        costs.append(SessionCost.model_validate_json(done.stdout))
    return SessionCost(
        load_s=median(cost.load_s for cost in costs),
        first_ms=median(cost.first_ms for cost in costs),
        memory_bytes=_median(cost.memory_bytes for cost in costs),
        weights_bytes=costs[0].weights_bytes,
        gpu_bytes=_median(cost.gpu_bytes for cost in costs),
        build_s=costs[0].build_s,
    )


def _median(sizes: Iterable[int | None]) -> int | None:
    """Of those that are known."""
    known = [size for size in sizes if size is not None]
    return int(median(known)) if known else None


def load_alone(load: Load) -> SessionCost:
    """Loads and runs it in this process. Raises EngineError."""
    # Before CUDA takes its own memory, as it does when it is asked for devices.
    watch = nullcontext(lambda: None) if load.target.device == "cpu" else watch_gpu_memory()
    with watch as gpu_bytes:
        runtime = find_runtime(load.target)  # imports its library, to ask it for devices
        inputs = _blank_picture(load.spec)
        if _FORGET_PEAK.exists():
            _FORGET_PEAK.write_text("5", encoding="ascii")
        before = _read_memory("VmRSS")
        start = time.perf_counter()
        with runtime.load(load.path, load.target, load.spec, Settings(threads=load.threads)) as session:
            loaded = time.perf_counter()
            session.run(inputs)
            ran = time.perf_counter()
            peak, on_gpu = _read_memory("VmHWM"), gpu_bytes()
    stem, engine = load.path.name.partition(".")[0], runtime.engine(load.path, load.target)
    weights = sum(file.stat().st_size for file in load.path.parent.glob(f"{stem}.*"))
    return SessionCost(
        load_s=loaded - start,
        first_ms=(ran - loaded) * 1e3,
        memory_bytes=None if before is None or peak is None else peak - before,
        weights_bytes=weights if engine is None else engine.size_bytes,
        gpu_bytes=on_gpu or None,
        build_s=None if engine is None else engine.seconds,
    )


def _blank_picture(spec: ModelSpec) -> Tensors:
    """One that fills the canvas."""
    size = spec.preprocess.size
    blank: Tensors = {"image": np.zeros((1, *size, 3), np.uint8)}
    if "valid_size" in spec.input_names:
        blank["valid_size"] = np.array([size], np.int32)
    return blank


def _read_memory(name: str) -> int | None:
    """A line of /proc/self/status, in bytes."""
    if not _STATUS.exists():
        return None
    lines = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="ascii").splitlines())
    return int(lines[name].split()[0]) * 1024


if __name__ == "__main__":
    sys.stdout.write(load_alone(Load.model_validate_json(sys.stdin.read())).model_dump_json())
