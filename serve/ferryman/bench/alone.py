"""What a session costs: a process of its own loads a variant, runs one picture, and tells.

No PyTorch is imported there, as none is where a bundle is served.
"""

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

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
    weights_bytes: size of the variant's own files, the main one and those with its weights
    """

    load_s: float
    first_ms: float
    memory_bytes: int | None
    weights_bytes: int


def measure_cost(load: Load, processes: int | None = None) -> SessionCost:
    """The medians of several processes. Raises EngineError when one fails."""
    costs: list[SessionCost] = []
    for _ in range(processes or _PROCESSES):
        command = [sys.executable, "-m", __spec__.name]
        done = subprocess.run(command, input=load.model_dump_json(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise EngineError(f"{load.target} can't be loaded by itself: {done.stderr.strip().splitlines()[-1]}")
        costs.append(SessionCost.model_validate_json(done.stdout))
    memory = [cost.memory_bytes for cost in costs if cost.memory_bytes is not None]
    return SessionCost(
        load_s=median(cost.load_s for cost in costs),
        first_ms=median(cost.first_ms for cost in costs),
        memory_bytes=int(median(memory)) if memory else None,
        weights_bytes=costs[0].weights_bytes,
    )


def load_alone(load: Load) -> SessionCost:
    """Loads and runs it in this process. Raises EngineError."""
    runtime = find_runtime(load.target)  # imports its library, to ask it for devices
    inputs = _blank_picture(load.spec)
    if _FORGET_PEAK.exists():
        _FORGET_PEAK.write_text("5", encoding="ascii")
    before = _read_memory("VmRSS")
    start = time.perf_counter()
    with runtime.load(load.path, load.target, load.spec, Settings(threads=load.threads)) as session:
        loaded = time.perf_counter()
        session.run(inputs)
        first_ms = (time.perf_counter() - loaded) * 1e3
        peak = _read_memory("VmHWM")
    stem = load.path.name.partition(".")[0]
    weights = sum(file.stat().st_size for file in load.path.parent.glob(f"{stem}.*"))
    memory = None if before is None or peak is None else peak - before
    load_s = loaded - start
    return SessionCost(load_s=load_s, first_ms=first_ms, memory_bytes=memory, weights_bytes=weights)


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
