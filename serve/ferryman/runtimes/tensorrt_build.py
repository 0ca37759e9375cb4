"""A typed ONNX file into a TensorRT engine: progress, cancelling, timing cache."""

import hashlib
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ferryman.engines import FOLDER, PORTABLE, Engine, EngineFacts, EngineKey, find_engines, make_key, write_engine
from ferryman.errors import CancelledError, EngineError
from ferryman.files import replace_file
from ferryman.runtimes.tensorrt import Cuda, TensorRt
from ferryman.specs import ModelSpec, Target

BATCH = 8
_DATA_TYPES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}
Show = Callable[[str, int, int], None]


def build_engine(
    runtime: TensorRt, onnx: Path, target: Target, spec: ModelSpec, batch: int = BATCH, show: Show = lambda *_: None
) -> tuple[Engine, bool]:
    """The engine of an ONNX file for this machine, and whether it was there already. Ctrl-C ends the build.

    batch: the largest; show: told of each phase, its steps done and in all
    Raises EngineError when it can't be built, FileAccessError when it can't be written; nothing is left then.
    """
    trt = runtime.open()
    capability = runtime.capability()
    key = make_key(onnx, target, spec, batch, f"{runtime.name} {runtime.version()}", capability)
    for engine in find_engines(onnx):
        if engine.facts.key == key:
            return engine, True
    cache = None if capability == PORTABLE else onnx.parent / FOLDER / f"{runtime.name}-{capability}.timing"
    start = time.monotonic()
    data, products = _interruptible(lambda cancelled: _build(trt, onnx, key, cache, show, cancelled))
    facts = EngineFacts(
        key=key,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        gpu="" if capability == PORTABLE else Cuda().name(),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        seconds=round(time.monotonic() - start, 3),
        products=products,
    )
    return write_engine(onnx, data, facts), False


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
    thread.start()
    try:
        # Not `thread.join`: one that a signal ends takes the thread for finished, and the process goes from under it.
        while not done.wait(0.1):
            pass
    finally:
        cancelled.set()
        done.wait()
        thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _build(
    trt: Any, onnx: Path, key: EngineKey, cache: Path | None, show: Show, cancelled: threading.Event
) -> tuple[bytes, dict[str, str]]:
    logger = _make_logger(trt)
    builder = trt.Builder(logger)
    # TensorRT 11 knows no other networks and takes no notice of the flag; 10 needs it.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        problems = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise EngineError(f"TensorRT can't read {onnx}: {' '.join(problems.split())}")
    names = [str(network.get_input(index).name) for index in range(network.num_inputs)]
    if sorted(names) != sorted(key.profiles):
        raise EngineError(f"{onnx} takes {', '.join(names)}, expected {', '.join(key.profiles)}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # else fp32 keeps ten bits of every number
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # what the attestation reads
    profile = builder.create_optimization_profile()
    for name, shapes in key.profiles.items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    if cache is not None:
        timing = config.create_timing_cache(cache.read_bytes() if cache.exists() else b"")
        config.set_timing_cache(timing, False)
    monitor = _make_monitor(trt, show, cancelled)  # must outlive the build
    config.progress_monitor = monitor
    products = find_products(trt, network)
    data = builder.build_serialized_network(network, config)
    if data is None:
        if cancelled.is_set():
            raise CancelledError("the build was cancelled")
        raise EngineError(f"TensorRT can't build {onnx}: {logger.last or 'it does not say why'}")
    if cache is not None:
        with replace_file(cache) as temporary:
            temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(data), products


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

    def is_dequantised(tensor: Any) -> bool:
        layer = made.get(tensor.name)
        while layer is not None and layer.type == trt.LayerType.SHUFFLE:  # makes the operands' ranks the same
            layer = made.get(layer.get_input(0).name)
        return layer is not None and layer.type == trt.LayerType.DEQUANTIZE

    found: dict[str, str] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        inputs = _inputs(layer)
        if layer.type == trt.LayerType.CONVOLUTION or (
            layer.type == trt.LayerType.MATRIX_MULTIPLY and any(is_constant(one) for one in inputs)
        ):
            quantised = all(is_dequantised(one) for one in inputs)
            dtype = str(inputs[0].dtype).rpartition(".")[2]
            found[str(layer.name)] = "int8" if quantised else _DATA_TYPES.get(dtype, dtype.lower())
    return found


def _inputs(layer: Any) -> list[Any]:
    return [one for index in range(layer.num_inputs) if (one := layer.get_input(index)) is not None]


def _make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Keeps the last error for our own message."""

        def __init__(self) -> None:
            super().__init__()
            self.last = ""

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last = " ".join(msg.split())

    return Logger()


def _make_monitor(trt: Any, show: Show, cancelled: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            del parent_phase
            self.steps[phase_name] = num_steps
            show(f"TensorRT: {phase_name}", 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            show(f"TensorRT: {phase_name}", step + 1, self.steps[phase_name])
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            show(f"TensorRT: {phase_name}", self.steps[phase_name], self.steps[phase_name])

    return Monitor()
