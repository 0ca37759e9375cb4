"""TensorRT, and TensorRT-RTX: the same interface in another module.

A variant is a typed ONNX file; what runs is an engine that `ferryman build` makes of it on the device
(`tensorrt_build.py`). Building was tried; running needs an NVIDIA GPU and was never tried: see docs/tensorrt.md.
"""

import ctypes
import json
import platform
import threading
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferryman.attest import Attestation, attestation
from ferryman.engines import PORTABLE, Engine, EngineFacts, Host, choose_engine, count_precisions, read_engine
from ferryman.errors import EngineError
from ferryman.runtimes.base import Arrays, Runtime, Session, Settings
from ferryman.specs import ModelSpec, Target


class TensorRt(Runtime):
    name = "tensorrt"
    extra: ClassVar[str] = "tensorrt"  # installs it
    known: ClassVar = {"gpu": ("fp32", "fp16", "bf16", "int8", "fp8")}
    module: ClassVar[str] = "tensorrt"
    portable: ClassVar[bool] = False  # whether it builds without a GPU, for all of them
    needs: ClassVar = {"bf16": (8, 0), "fp8": (8, 9)}  # the least compute capability, by precision

    def missing(self) -> str | None:
        if find_spec(self.module) is None:
            return f"{self.module} is not installed: pip install 'ferryman[{self.extra}]'"
        try:
            self.open()
        except EngineError as error:
            return str(error)
        return None

    def open(self) -> Any:
        """The module, which is not typed. Raises EngineError when its libraries are not there."""
        try:
            return import_module(self.module)
        except (ImportError, OSError, RuntimeError) as error:
            raise EngineError(f"{self.module} can't be loaded: {' '.join(str(error).split())}") from error

    def version(self) -> str:
        return str(self.open().__version__)

    def devices(self) -> tuple[str, ...]:
        return ("gpu",) if has_gpu() else ()

    def why_not(self, target: Target) -> str | None:
        if self.missing() is None and not self.devices():
            how = f"is there one, and cuda-bindings (pip install 'ferryman[{self.extra}]')?"
            return f"CUDA finds no NVIDIA GPU; {how}"
        return super().why_not(target)

    def accelerator(self, device: str) -> str:
        del device
        return f"{Cuda().name()}, driver {Cuda().driver()}"

    def host(self) -> Host:
        """What engines are built by and for here. Raises EngineError without a GPU, unless engines are portable."""
        capability = PORTABLE if self.portable else Cuda().capability()
        return Host(runtime=f"{self.name} {self.version()}", capability=capability, machine=platform.machine())

    def _lacks(self, target: Target) -> str | None:
        capability, needed = Cuda().capability(), self.needs.get(target.precision, (0, 0))
        if tuple(map(int, capability.split("."))) < needed:
            least = ".".join(map(str, needed))
            return f"it needs a GPU of compute capability {least} or more, and this one has {capability}"
        return None

    def why_not_build(self) -> str | None:
        """Why no engine can be built here, or None when it can."""
        why = self.missing()
        if why is None:
            try:
                self.host()
            except EngineError as error:
                why = str(error)
        return why

    def engine(self, path: Path, target: Target) -> EngineFacts:
        return choose_engine(path, target, self.host()).facts

    def _load(self, path: Path, target: Target, spec: ModelSpec, settings: Settings) -> Session:
        return TensorRtSession(spec, self.open(), choose_engine(path, target, self.host()))


class TensorRtRtx(TensorRt):
    """Its engines run on the GPUs that the module names, which are consumers' and workstations', from 8.0 on."""

    name = "tensorrtrtx"
    extra = "tensorrt-rtx"
    module = "tensorrt_rtx"
    portable = True
    needs: ClassVar = dict.fromkeys(TensorRt.known["gpu"], (8, 0)) | {"fp8": (8, 9)}  # as its engines are built

    def _lacks(self, target: Target) -> str | None:
        why, capability = super()._lacks(target), Cuda().capability()
        names = [name[2:] for name in self.open().ComputeCapability.__members__ if name.startswith("SM")]
        known = [f"{name[:-1]}.{name[-1]}" for name in names]  # SM89, SM120
        if why is None and capability not in known:
            return f"{self.module} knows GPUs of compute capability {', '.join(known)}, and this one has {capability}"
        return why


def has_gpu() -> bool:
    """Whether CUDA's bindings are installed and find a GPU."""
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return False
    try:
        return Cuda().count() > 0
    except EngineError:
        return False


class Cuda:
    """The few calls of CUDA's runtime that a session needs, on the first GPU. Each raises EngineError."""

    def __init__(self) -> None:
        try:
            self.api: Any = import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise EngineError(f"CUDA can't be asked: {error}; install it with: pip install cuda-bindings") from error

    def call(self, name: str, *arguments: Any) -> Any:
        try:
            error, *values = getattr(self.api, name)(*arguments)
        except RuntimeError as failure:  # a driver that is not there
            raise EngineError(f"CUDA can't do {name}: {' '.join(str(failure).split())}") from failure
        if int(error) != 0:
            raise EngineError(f"CUDA can't do {name}: {error.name}")
        return values[0] if values else None

    def count(self) -> int:
        return int(self.call("cudaGetDeviceCount"))

    def _properties(self) -> Any:
        return self.call("cudaGetDeviceProperties", 0)

    def name(self) -> str:
        return bytes(self._properties().name).split(b"\0")[0].decode()

    def driver(self) -> str:
        return str(self.call("cudaDriverGetVersion"))

    def capability(self) -> str:
        facts = self._properties()
        return f"{facts.major}.{facts.minor}"


class Buffer:
    """A tensor's memory for the largest batch: pinned on the host, and on the GPU."""

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype[Any], stack: ExitStack) -> None:
        size = prod(shape) * dtype.itemsize
        host = cuda.call("cudaHostAlloc", size, 0)
        stack.callback(cuda.call, "cudaFreeHost", host)
        self.device = int(cuda.call("cudaMalloc", size))
        stack.callback(cuda.call, "cudaFree", self.device)
        raw = (ctypes.c_uint8 * size).from_address(int(host))
        self.host: NDArray[Any] = np.ctypeslib.as_array(raw).view(dtype).reshape(shape)


class TensorRtSession(Session):
    """One engine, one stream, a context a range of batches: runs wait for each other. Larger batches go in parts."""

    def __init__(self, spec: ModelSpec, module: Any, engine: Engine) -> None:
        super().__init__(spec)
        self._lock = threading.Lock()
        self._cuda, self._module, self._facts = Cuda(), module, engine.facts
        self.engine_sha256 = engine.facts.sha256
        self._batch = engine.facts.key.batch
        with ExitStack() as stack:
            try:
                self._runtime: Any = module.Runtime(module.Logger(module.Logger.ERROR))
            except (TypeError, RuntimeError) as error:  # where there is no driver, or one that is too old
                raise EngineError(f"{module.__name__} can't start: {error}") from error
            self._engine: Any = self._runtime.deserialize_cuda_engine(read_engine(engine.path, engine.facts))
            if self._engine is None:
                raise EngineError(f"can't load {engine.path}: the runtime refuses it; delete it and build it again")
            names = tuple(self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors))
            if set(names) != {*spec.input_names, *spec.output_names}:
                raise EngineError(
                    f"{engine.path} has inputs and outputs {names}, expected {spec.input_names}, {spec.output_names}"
                )
            self._stream = self._cuda.call("cudaStreamCreate")
            stack.callback(self._cuda.call, "cudaStreamDestroy", self._stream)
            self._buffers: dict[str, Buffer] = {}
            for tensor in (*spec.inputs, *spec.outputs):
                shape = tuple(size if isinstance(size, int) else self._batch for size in tensor.shape)
                self._buffers[tensor.name] = Buffer(self._cuda, shape, np.dtype(tensor.dtype), stack)
            self._contexts = [self._make_context(profile) for profile in range(len(engine.facts.key.profiles))]
            self._stack = stack.pop_all()

    def _make_context(self, profile: int) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise EngineError("can't load the engine: the GPU has no memory for its context")
        if not context.set_optimization_profile_async(profile, int(self._stream)):
            raise EngineError(f"the engine refuses its profile {profile}; delete it and build it again")
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, buffer.device)
        return context

    def attest(self, inputs: Arrays) -> Attestation:
        with self._lock:
            if self._engine is None:
                raise EngineError("the session is closed")
            text = self._engine.create_engine_inspector().get_engine_information(
                self._module.LayerInformationFormat.JSON
            )
        layers: list[Any] = [layer for layer in json.loads(text)["Layers"] if isinstance(layer, dict)]
        return attestation(count_precisions(layers, self._facts.products))

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        with self._lock:
            if self._engine is None:  # closed by another thread after the check
                raise EngineError("the session is closed")
            parts = [
                self._run_part({name: array[start : start + self._batch] for name, array in inputs.items()})
                for start in range(0, len(inputs["image"]), self._batch)
            ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.spec.output_names}

    def _run_part(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        batch, kinds = len(inputs["image"]), self._cuda.api.cudaMemcpyKind
        ranges = self._facts.key.batches
        context = next(one for one, (_, most) in zip(self._contexts, ranges, strict=True) if batch <= most)
        for name, array in inputs.items():
            buffer = self._buffers[name]
            buffer.host[:batch] = array
            self._copy(buffer.device, buffer.host[:batch].ctypes.data, array.nbytes, kinds.cudaMemcpyHostToDevice)
            if not context.set_input_shape(name, array.shape):
                raise EngineError(f"the engine refuses input {name} of shape {array.shape}")
        if not context.execute_async_v3(int(self._stream)):
            raise EngineError(f"TensorRT failed on a batch of {batch}")
        for name in self.spec.output_names:
            buffer = self._buffers[name]
            view = buffer.host[:batch]
            self._copy(view.ctypes.data, buffer.device, view.nbytes, kinds.cudaMemcpyDeviceToHost)
        self._cuda.call("cudaStreamSynchronize", self._stream)
        return {name: self._buffers[name].host[:batch].copy() for name in self.spec.output_names}

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        self._cuda.call("cudaMemcpyAsync", target, source, size, kind, self._stream)

    def _close(self) -> None:
        with self._lock:  # whoever runs comes to an end first
            self._contexts.clear()
            self._engine = self._runtime = None
            self._stack.close()
