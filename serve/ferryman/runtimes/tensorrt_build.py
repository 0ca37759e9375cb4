"""A typed ONNX file into a TensorRT engine: progress, cancelling, timing cache."""

import hashlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ferryman.attest import attestation
from ferryman.engines import (
    FOLDER,
    PORTABLE,
    WIDEST,
    Engine,
    EngineFacts,
    EngineKey,
    find_engines,
    find_neighbours,
    make_key,
    read_engine,
    write_engine,
)
from ferryman.errors import CancelledError, EngineError, FileAccessError, ParityError
from ferryman.files import replace_file, temporary_folder, undisturbed
from ferryman.runtimes.pace import Pace, describe_seconds
from ferryman.runtimes.tensorrt import Cuda, TensorRt, has_gpu
from ferryman.specs import ModelSpec, Target

if sys.platform != "win32":
    import fcntl

BATCH = 8
_DATA_TYPES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}
Show = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What TensorRT gave: the engine, the precision of the network's products by name, what it timed on this GPU."""

    data: bytes
    products: dict[str, str]
    timings: bytes


def build_engine(
    runtime: TensorRt,
    onnx: Path,
    target: Target,
    spec: ModelSpec,
    batch: int = BATCH,
    show: Show = lambda *_: None,
    refittable: bool = False,
) -> tuple[Engine, bool]:
    """The engine of an ONNX file for this machine, and whether it was there already. Ctrl-C ends the build.

    batch: the largest; show: told of each phase, its steps done and in all, or of the whole where its time is known
    Raises EngineError when it can't be built, ParityError when it would not compute in what its target names,
    FileAccessError when it can't be written; nothing is left then.
    """
    trt, host = runtime.open(), runtime.host()
    key = make_key(onnx, target, spec, batch, host, refittable)

    def make() -> tuple[bytes, EngineFacts]:
        portable = host.capability == PORTABLE  # what was timed on no GPU is of no use to the next build
        name = "-".join((*host.runtime.split(), host.capability, "timing"))
        cache = None if portable else onnx.parent / FOLDER / name
        pace = _take_pace(onnx, key)
        plan: Plan = _interruptible(lambda cancelled: _build(trt, onnx, key, target, cache, show, pace, cancelled))
        pace.stop()
        if cache is not None:
            with replace_file(cache) as temporary:
                temporary.write_bytes(plan.timings)
        return plan.data, make_facts(key, plan.data, plan.products, pace.seconds, pace.marks())

    return keep_engine(onnx, key, show, make, refitted=None)


def keep_engine(
    onnx: Path, key: EngineKey, show: Show, make: Callable[[], tuple[bytes, EngineFacts]], refitted: str | None
) -> tuple[Engine, bool]:
    """The engine of that key, whole or absent, made when it isn't there; and whether it was.

    refitted: as in its facts: what was refitted from another engine, or is no longer what was written, is made anew
    """
    with _alone(onnx, show):
        for engine in find_engines(onnx):
            if engine.facts.key == key and engine.facts.refitted == refitted and _is_whole(engine):
                return engine, True
        _check_space(onnx)
        # Taken now, lest minutes of work end with a folder that can't be written; it goes when nothing comes of them.
        with temporary_folder(onnx.parent / FOLDER, key.digest):
            return write_engine(onnx, *make()), False


def _is_whole(engine: Engine) -> bool:
    try:
        read_engine(engine.path, engine.facts)
    except EngineError:
        return False
    return True


def make_facts(
    key: EngineKey,
    data: bytes,
    products: dict[str, str],
    seconds: float,
    pace: tuple[int, ...] = (),
    refitted: str | None = None,
) -> EngineFacts:
    return EngineFacts(
        key=key,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        gpu="" if key.host.capability == PORTABLE else Cuda().name(),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        seconds=seconds,
        pace=pace,
        products=products,
        refitted=refitted,
    )


@contextmanager
def _alone(onnx: Path, show: Show) -> Generator[None, None, None]:
    """One build of a file at a time: two on one GPU spoil each other's timings, and the second finds the first's."""
    with onnx.open("rb") as file:
        while sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                show("wait for another build of it", 0, 1)
                time.sleep(0.1)
            except OSError:  # a file system without locks: both build, and the last one's stays
                break
        yield


def _check_space(onnx: Path) -> None:
    """Raises FileAccessError where an engine, which is no smaller than its ONNX file, has no room."""
    needed = sum(path.stat().st_size for path in (onnx, onnx.with_name(f"{onnx.name}.data")) if path.exists())
    free = shutil.disk_usage(onnx.parent).free
    if free < needed:
        raise FileAccessError(
            f"can't write {onnx.parent / FOLDER}: {free / 1e6:.0f} MB are free, and an engine takes "
            f"{needed / 1e6:.0f} MB or more; make room and build again"
        )


def _take_pace(onnx: Path, key: EngineKey) -> Pace:
    """By the newest engine of the same target and GPU beside this one."""
    for engine in find_neighbours(onnx):
        facts = engine.facts
        alike = (facts.key.target, facts.key.host.capability) == (key.target, key.host.capability)
        if alike and facts.refitted is None:
            return Pace(facts.pace, facts.seconds)
    return Pace()


def _interruptible(work: Callable[[threading.Event], Any]) -> Any:
    """Runs `work` in a thread, for a signal does not reach Python inside TensorRT; it stops when its event is set."""
    cancelled, done = threading.Event(), threading.Event()
    results: list[Any] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work(cancelled))
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread that waits
            failures.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=run)
    try:
        with undisturbed():  # a start that a signal ends leaves the thread to itself
            thread.start()
        # Not `thread.join`: one that a signal ends takes the thread for finished, and the process goes from under it.
        while not done.wait(0.1):
            pass
    finally:
        cancelled.set()
        if thread.ident is not None:
            done.wait()
            thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _build(
    trt: Any,
    onnx: Path,
    key: EngineKey,
    target: Target,
    cache: Path | None,
    show: Show,
    pace: Pace,
    cancelled: threading.Event,
) -> Plan:
    logger = make_logger(trt)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # where TensorRT finds no driver, or one that is too old
        raise EngineError(f"TensorRT can't start: {logger.last or error}") from error
    # TensorRT 11 knows no other networks and takes no notice of the flag; 10 needs it.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        problems = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise EngineError(f"TensorRT can't read {onnx}: {' '.join(problems.split())}")
    names = [str(network.get_input(index).name) for index in range(network.num_inputs)]
    if sorted(names) != sorted(key.profiles[0]):
        raise EngineError(f"{onnx} takes {', '.join(names)}, expected {', '.join(key.profiles[0])}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # else fp32 keeps ten bits of every number
    if key.refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # what the attestation reads
    for ranges in key.profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in ranges.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    if cache is not None:
        timing = config.create_timing_cache(cache.read_bytes() if cache.exists() else b"")
        if not config.set_timing_cache(timing, False):  # of another GPU or driver: the next one is this one's
            config.set_timing_cache(config.create_timing_cache(b""), False)
    monitor = _make_monitor(trt, show, pace, cancelled)  # must outlive the build
    config.progress_monitor = monitor
    products = find_products(trt, network)
    told = attestation([("product", precision, True) for precision in products.values()])
    for failure in told.find_failures(target.precision):
        raise ParityError(f"{onnx} is not what {target} says: in TensorRT's network {failure}")
    data = builder.build_serialized_network(network, config)
    if data is None:
        if cancelled.is_set():
            raise CancelledError("the build was cancelled")
        hint = "; it wants a GPU for an engine that is refittable" if key.refittable and not has_gpu() else ""
        raise EngineError(f"TensorRT can't build {onnx}: {logger.last or 'it does not say why'}{hint}")
    return Plan(bytes(data), products, bytes(config.get_timing_cache().serialize()) if cache is not None else b"")


def find_products(trt: Any, network: Any) -> dict[str, str]:
    """Precision of each matrix product with weights, by its name: in a typed network, what it will be computed in.

    Weights are constants, or constants behind a cast, a transposition or a quantisation.
    """
    made = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for output in range(layer.num_outputs):
            made[layer.get_output(output).name] = layer
    constant: dict[str, bool] = {}

    def is_constant(tensor: Any) -> bool:
        if tensor.name not in constant:
            layer = made.get(tensor.name)
            constant[tensor.name] = layer is not None and (
                layer.type == trt.LayerType.CONSTANT
                or (layer.num_inputs > 0 and all(is_constant(one) for one in _inputs(layer)))
            )
        return constant[tensor.name]

    def stored(tensor: Any) -> str:
        """What holds an operand: behind a DequantizeLinear, its input."""
        layer = made.get(tensor.name)
        while layer is not None and layer.type == trt.LayerType.SHUFFLE:  # makes the operands' ranks the same
            layer = made.get(layer.get_input(0).name)
        if layer is not None and layer.type == trt.LayerType.DEQUANTIZE:
            tensor = layer.get_input(0)
        dtype = str(tensor.dtype).rpartition(".")[2]
        return _DATA_TYPES.get(dtype, dtype.lower())

    found: dict[str, str] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        inputs = _inputs(layer)
        if layer.type == trt.LayerType.CONVOLUTION or (
            layer.type == trt.LayerType.MATRIX_MULTIPLY and any(is_constant(one) for one in inputs)
        ):
            # A product of operands of two precisions runs in the wider one.
            told = {stored(one) for one in inputs}
            found[str(layer.name)] = next((one for one in WIDEST if one in told), "unknown")
    return found


def _inputs(layer: Any) -> list[Any]:
    return [one for index in range(layer.num_inputs) if (one := layer.get_input(index)) is not None]


def make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Keeps the last error for our own message."""

        def __init__(self) -> None:
            super().__init__()
            self.last = ""

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last = " ".join(msg.split())

    return Logger()


def _make_monitor(trt: Any, show: Show, pace: Pace, cancelled: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Tells of the whole by its time where an earlier build was as long, else of each phase by its steps."""

        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}
            self.said: dict[
                int, str
            ] = {}  # by the tenth of the time: an estimate that changes with every step helps none

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            del parent_phase
            self.steps[phase_name] = num_steps
            self.tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            pace.count()
            self.tell(phase_name, step + 1)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self.tell(phase_name, self.steps[phase_name])

        def tell(self, phase: str, done: int) -> None:
            share, left = pace.share(), pace.seconds_left()
            if share is None or left is None:
                show(f"TensorRT: {phase}", done, self.steps[phase])
            else:
                tenth = min(int(share * 10), 9)
                line = self.said.setdefault(tenth, f"TensorRT: {tenth * 10} %, about {describe_seconds(left)} left")
                show(line, int(share * 1000), 1000)

    return Monitor()
