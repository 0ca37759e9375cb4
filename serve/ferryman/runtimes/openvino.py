"""OpenVINO. A variant is an IR (model.xml and model.bin), compiled for one picture: static shapes are faster."""

import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferryman.attest import Attestation, attestation
from ferryman.device import count_usable, read_device, saturates
from ferryman.errors import EngineError
from ferryman.heap import give_back
from ferryman.runtimes.base import Arrays, Runtime, Session, Settings
from ferryman.runtimes.seven_bits import narrow_weights
from ferryman.specs import ModelSpec, Target

if TYPE_CHECKING:
    from openvino import CompiledModel, Core

# OpenVINO tells Google Analytics that it was imported, from a process that it forks off this one, and gRPC then starts
# its threads anew, in the middle of a server. It goes without where the package for it can't be imported.
sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]  # None: there is none

_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_NAMES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}
_PRODUCTS = ("FullyConnected", "Convolution", "GroupConvolution", "Deconvolution")
_OPENING = Lock()


def open_core() -> "Core":
    """OpenVINO's one core in this process.

    Each keeps the devices' plugins, and the processor's gives the thread that makes it a stack for signals: after the
    first of two is gone, the thread is left with a stack that is no more, and dies of its next Ctrl-C or SIGTERM.
    """
    with _OPENING:
        return _make_core()


@cache
def _make_core() -> "Core":
    import openvino

    return openvino.Core()


class OpenVino(Runtime):
    name = "openvino"
    known: ClassVar = {
        "cpu": ("fp32", "bf16", "int8"),
        "gpu": ("fp32", "fp16", "int8"),
        "npu": ("fp16", "int8"),
    }

    def missing(self) -> str | None:
        return None if find_spec("openvino") else "OpenVINO is not installed: pip install 'ferryman[openvino]'"

    def version(self) -> str:
        import openvino

        return openvino.__version__.split("-")[0]

    def devices(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name.split(".")[0].lower() for name in open_core().available_devices))

    def accelerator(self, device: str) -> str:
        return "" if device == "cpu" else name_device(open_core(), device.upper())

    def _lacks(self, target: Target) -> str | None:
        device = target.device.upper()
        able = open_core().get_property(device, "OPTIMIZATION_CAPABILITIES")
        if target.precision == "fp32" or target.precision.upper() in able:
            return None
        return f"this {device} has no {target.precision}; OpenVINO would run it in fp32 without a word"

    def _load(self, path: Path, target: Target, spec: ModelSpec, settings: Settings) -> Session:
        core = open_core()
        device = target.device.upper()
        config = choose_config(core, device, target, settings)
        try:
            model = core.read_model(path)
            names = tuple(tensor.any_name for tensor in model.inputs), tuple(out.any_name for out in model.outputs)
            if names != (spec.input_names, spec.output_names):
                raise EngineError(
                    f"{path} has inputs and outputs {names}, expected {spec.input_names}, {spec.output_names}"
                )
            if device == "CPU" and saturates(read_device().cpu_features):
                narrow_weights(model)
            model.reshape({tensor.name: [1, *tensor.shape[1:]] for tensor in spec.inputs})
            compiled = core.compile_model(model, device, config)
            del model
            give_back()  # some 10 MB that compiling has freed
        except RuntimeError as error:
            raise EngineError(f"OpenVINO can't load {path}: {_one_line(error)}") from error
        return OpenVinoSession(spec, compiled)


def name_device(core: "Core", device: str) -> str:
    """Name of a device, and the version of its driver where it tells; of several of a kind, the first, which runs."""
    drivers = [one for one in core.get_property(device, "SUPPORTED_PROPERTIES") if one.endswith("DRIVER_VERSION")]
    return ", ".join(str(core.get_property(device, fact)) for fact in ("FULL_DEVICE_NAME", *drivers))


def choose_config(core: "Core", device: str, target: Target, settings: Settings) -> dict[str, Any]:
    """How a target is compiled for a device."""
    able = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
    # What int8 leaves in floating point: bf16 or fp16 where the device has it, as fp32 would be the slower half.
    half = "BF16" if device == "CPU" else "FP16"
    floating = _PRECISIONS.get(target.precision, _PRECISIONS[half.lower()] if half in able else "f32")
    config: dict[str, Any] = {
        "PERFORMANCE_HINT": settings.hint.upper(),
        "INFERENCE_PRECISION_HINT": floating,  # else OpenVINO takes bf16 for fp32 where it can
    }
    if device == "CPU" and settings.threads is not None:
        config["INFERENCE_NUM_THREADS"] = settings.threads
        # OpenVINO holds threads to the first processors, those of each model and of each process to the same ones.
        config["ENABLE_CPU_PINNING"] = settings.threads >= count_usable()
    if settings.streams is not None:
        config["NUM_STREAMS"] = str(settings.streams)
    return config


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class OpenVinoSession(Session):
    """Runs a batch picture by picture, as many side by side as there are streams; neighbours can't touch each other."""

    def __init__(self, spec: ModelSpec, compiled: "CompiledModel") -> None:
        super().__init__(spec)
        self._compiled: CompiledModel | None = compiled
        self._streams = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._idle: SimpleQueue[_Slot] = SimpleQueue()
        self._answers = [
            (tuple(int(size) for size in tensor.shape[1:]), np.dtype(tensor.dtype)) for tensor in spec.outputs
        ]

    @property
    def largest_useful_batch(self) -> int | None:
        return self._streams

    def attest(self, inputs: Arrays) -> Attestation:
        compiled = self._compiled
        if compiled is None:
            raise EngineError("the session is closed")
        found: list[tuple[str, str, bool]] = []
        for node in compiled.get_runtime_model().get_ops():
            facts = node.get_rt_info()
            kind = str(facts["layerType"].astype(str))
            precision = str(facts["runtimePrecision"].astype(str))
            found.append((kind, _NAMES.get(precision, precision), kind in _PRODUCTS))
        return attestation(found)

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        # The queue first: a run that finds the session open then has the one that `close` drops, requests and all.
        idle, compiled = self._idle, self._compiled
        if compiled is None:  # closed by another thread after the check
            raise EngineError("the session is closed")
        arrays = [np.ascontiguousarray(inputs[tensor.name]) for tensor in self.spec.inputs]
        batch = len(arrays[0])
        answers = [np.empty((batch, *shape), dtype) for shape, dtype in self._answers]
        slots = [_take(idle, compiled) for _ in range(min(batch, self._streams))]
        try:
            for start in range(0, batch, len(slots)):
                side_by_side = slots[: batch - start]
                alone = len(side_by_side) == 1
                for index, slot in enumerate(side_by_side, start):
                    rows = [array[index : index + 1] for array in arrays]
                    (slot.run if alone else slot.start)(rows)
                for index, slot in enumerate(side_by_side, start):
                    if not alone:
                        slot.wait()
                    for answer, output in zip(answers, slot.outputs, strict=True):
                        answer[index] = output[0]
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed on a batch of {batch}: {_one_line(error)}") from error
        for slot in slots:  # one that failed may still be busy, and is dropped
            idle.put(slot)
        return dict(zip(self.spec.output_names, answers, strict=True))

    def _close(self) -> None:
        self._compiled = None
        self._idle = SimpleQueue()


class _Slot:
    """One of OpenVINO's requests, which runs a picture at a time."""

    def __init__(self, compiled: "CompiledModel") -> None:
        from openvino import Tensor

        self._request = compiled.create_infer_request()
        self._wrap = Tensor
        self._types = [tensor.element_type for tensor in self._request.input_tensors]
        self._rows: list[NDArray[Any]] = []
        self._answers = range(len(compiled.outputs))

    def run(self, rows: list[NDArray[Any]]) -> None:
        """In this thread: to hand it to one of OpenVINO's, and to wait for that, takes longer. rows: see `start`"""
        self._bind(rows)
        self._request.infer(share_outputs=True)

    def start(self, rows: list[NDArray[Any]]) -> None:
        """In a thread of OpenVINO's. rows: contiguous, and read where they lie"""
        self._bind(rows)
        self._request.start_async()

    @property
    def outputs(self) -> list[NDArray[Any]]:
        """Where its answers lie, until it runs again."""
        return [self._request.get_output_tensor(index).data for index in self._answers]

    def _bind(self, rows: list[NDArray[Any]]) -> None:
        self._rows = rows  # OpenVINO does not keep them
        for index, (row, kind) in enumerate(zip(rows, self._types, strict=True)):
            # With its type, a read-only array is not copied, as `start_async` and `infer` would.
            self._request.set_input_tensor(index, self._wrap(row, row.shape, kind))

    def wait(self) -> None:
        self._request.wait()


def _take(idle: "SimpleQueue[_Slot]", compiled: "CompiledModel") -> _Slot:
    try:
        return idle.get_nowait()
    except Empty:
        return _Slot(compiled)
