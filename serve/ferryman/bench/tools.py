"""Other people's benchmark programs, asked about the very file that is measured here."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ferryman.bench.turns import Ratio, time_runs
from ferryman.errors import EngineError, UsageError
from ferryman.runtimes.base import Arrays, Settings
from ferryman.specs import Facts, Target

Block = Callable[[float], list[float]]  # measures for about so many seconds: milliseconds of a picture
_MS = {"ms": 1.0, "us": 1e-3, "usec": 1e-3}
_PATIENCE_S = 120.0  # beyond the seconds that were asked for: to load, to compile


@dataclass(frozen=True)
class Job:
    """A file that a tool is asked to measure, one picture at a time. inputs: of one picture, as tensors"""

    target: Target
    path: Path
    inputs: Arrays
    settings: Settings


@dataclass(frozen=True)
class ServedJob:
    """The same of a server's model. version: 0 for the newest"""

    address: str
    model: str
    version: int


@dataclass(frozen=True, eq=False)
class Tool:
    """fits: whether it measures a target's file; None for one that measures a server

    open: makes what measures a block of a job, in a folder for its files; version: of what is installed
    least_s: seconds that it can measure
    """

    name: str
    fits: Callable[[Target], bool] | None
    open: Callable[[Any, Path], Block]
    version: Callable[[], str]
    least_s: float = 0.0


class Compared(Facts):
    """Ours beside a tool's, each in its own blocks in turn. ours: the row; ours_ms, theirs_ms: medians of the rounds

    ratio: how many times as fast ours is
    """

    tool: str
    version: str
    ours: str
    ours_ms: float
    theirs_ms: float
    ratio: Ratio

    def __str__(self) -> str:
        text = f"{self.ours} is {self.ratio} as {self.tool}, {self.ours_ms:.3g} and {self.theirs_ms:.3g} ms a picture"
        return text if self.ratio.differs else f"{text}: no difference"


@contextmanager
def open_tool(tool: Tool, job: Job | ServedJob) -> Generator[Block, None, None]:
    """What measures a block of the job. Raises UsageError for a program that is not installed, EngineError."""
    with tempfile.TemporaryDirectory() as folder:
        yield tool.open(job, Path(folder))


def run_program(command: Sequence[str], seconds: float) -> str:
    """What it printed. Raises EngineError for a program that failed or did not end."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _PATIENCE_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{name} did not end within {error.timeout:g} s") from error
    if done.returncode:
        last = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()][-1:]
        raise EngineError(f"{name} failed with {done.returncode}: {''.join(last).strip()}")
    return done.stdout


def read_median(text: str, pattern: str, name: str) -> list[float]:
    """Milliseconds of the only line that fits: the pattern's first group, in the unit of its second.

    Raises EngineError for another version's output.
    """
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise EngineError(f"{name} printed no median that this version of Ferryman can read")
    return [float(found[1]) * _MS[found[2]]]


def find_program(name: str, install: str) -> str:
    """Beside this Python, or in PATH. Raises UsageError."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise UsageError(f"--compare {name}: it is not installed; {install}")
    return found


def _open_plain_session(job: Job, folder: Path) -> Block:
    """onnxruntime.InferenceSession as its documentation makes one, but for the threads; answers as NumPy arrays."""
    del folder
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if job.settings.threads is not None:
        options.intra_op_num_threads = job.settings.threads
    session = onnxruntime.InferenceSession(str(job.path), options, providers=["CPUExecutionProvider"])
    return lambda seconds: time_runs(lambda inputs: session.run(None, inputs), [dict(job.inputs)], seconds)


def _onnxruntime_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _open_benchmark_app(job: Job, folder: Path) -> Block:
    """Compiled as ours is; of int8 on AVX2 without VNNI ours has narrower weights, which takes no longer."""
    from ferryman.runtimes.openvino import choose_config, open_core

    precision = choose_config(open_core(), "CPU", job.target, job.settings)["INFERENCE_PRECISION_HINT"]
    command = [find_program("benchmark_app", _OPENVINO), "-m", str(job.path), "-d", "CPU", "-api", "sync"]
    command += ["-infer_precision", precision]
    if job.settings.threads is None:
        command += ["-hint", "latency"]
    else:  # it takes either a hint or a number
        command += ["-hint", "none", "-nstreams", "1", "-nthreads", str(job.settings.threads)]
    command.append("-i")
    for name, array in job.inputs.items():  # random ones may take another time: a mask, a cache of powers of two
        np.save(folder / f"{name}.npy", array)
        command.append(f"{name}:{folder / name}.npy")

    def block(seconds: float) -> list[float]:
        text = run_program([*command, "-t", str(max(1, round(seconds)))], seconds)
        return read_median(text, r"Median: +([\d.]+) (ms|us)", "benchmark_app")

    return block


def _openvino_version() -> str:
    find_program("benchmark_app", _OPENVINO)
    import openvino

    return str(openvino.get_version())


def _open_trtexec(job: Job, folder: Path) -> Block:
    """The engine that was built here; copying is part of it, as it is of ours."""
    from ferryman.engines import choose_engine
    from ferryman.runtimes import find_runtime
    from ferryman.runtimes.tensorrt import TensorRt

    runtime = find_runtime(job.target)
    assert isinstance(runtime, TensorRt)
    engine = choose_engine(job.path, job.target, runtime.host()).path
    command = [find_program("trtexec", _TENSORRT), f"--loadEngine={engine}", "--warmUp=200"]
    shapes: list[str] = []
    files: list[str] = []
    for name, array in job.inputs.items():
        array.tofile(folder / f"{name}.bin")
        shapes.append(f"{name}:{'x'.join(map(str, array.shape))}")
        files.append(f"{name}:{folder / name}.bin")
    command += [f"--shapes={','.join(shapes)}", f"--loadInputs={','.join(files)}"]

    def block(seconds: float) -> list[float]:
        text = run_program([*command, f"--duration={max(1, round(seconds))}"], seconds)
        return read_median(text, r"\[I\] Latency: .*median = ([\d.]+) (ms)", "trtexec")

    return block


def _open_perf_analyzer(job: ServedJob, folder: Path) -> Block:
    """Without its own test of steadiness: rounds are judged here, as everywhere."""
    del folder
    program = find_program("perf_analyzer", _TRITON)
    command = [program, "-m", job.model, "-u", job.address, "-i", "grpc", "-b", "1", "-s", "999"]
    command += ["-x", str(job.version)] if job.version else []

    def block(seconds: float) -> list[float]:
        text = run_program([*command, "-p", str(max(100, round(seconds * 1e3)))], seconds * 3)
        return read_median(text, r"p50 latency: (\d+) (usec)", "perf_analyzer")

    return block


_OPENVINO = "pip install 'ferryman[openvino]'"
_TENSORRT = "it comes with TensorRT's archive, in its bin/"
_TRITON = "it comes with NVIDIA's tritonserver SDK image"
TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool(
            "onnxruntime",
            lambda target: (target.runtime, target.device) == ("onnxruntime", "cpu"),
            _open_plain_session, _onnxruntime_version,
        ),
        Tool(
            "benchmark_app",
            lambda target: (target.runtime, target.device) == ("openvino", "cpu"),
            _open_benchmark_app, _openvino_version, 1.0,
        ),
        Tool(
            "trtexec",
            lambda target: target.runtime == "tensorrt",
            _open_trtexec, lambda: find_program("trtexec", _TENSORRT) and "", 1.0,
        ),
        Tool(
            "perf_analyzer",
            None,
            _open_perf_analyzer,
            lambda: run_program([find_program("perf_analyzer", _TRITON), "--version"], 10).strip().split("\n")[0],
            0.2,
        ),
    )
}  # fmt: skip
