"""CUDA played by this machine's memory, and TensorRT's engines by ONNX Runtime: an engine is its ONNX file."""

import ctypes
import hashlib
import json
from copy import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

from ferryman.engines import EngineFacts, EngineKey

BATCH = 3


def make_facts(key: EngineKey, data: bytes) -> EngineFacts:
    """Of an engine that was built on a GPU, with one matrix product in fp32."""
    return EngineFacts(
        key=key,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        gpu="a GPU",
        created="2026-01-01",
        seconds=60,
        pace=(9,),
        products={"weigh": "fp32"},
    )


class FakeCuda:
    """CUDA's runtime, with the machine's memory for a GPU's. `free`: how many bytes there are."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self, free: int = 1 << 30) -> None:
        self.free = free
        self.held: dict[int, Any] = {}
        self.capability: tuple[int, int] = (8, 9)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, Any]:
        assert device == 0
        major, minor = self.capability
        return Status(0), SimpleNamespace(major=major, minor=minor)

    def _allocate(self, size: int) -> tuple[Any, int | None]:
        if size > self.free:
            return Status(2, "cudaErrorMemoryAllocation"), None
        self.free -= size
        block = ctypes.create_string_buffer(size)
        self.held[ctypes.addressof(block)] = block
        return Status(0), ctypes.addressof(block)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, int | None]:
        assert flags == 0
        return self._allocate(size)

    def cudaMalloc(self, size: int) -> tuple[Any, int | None]:
        return self._allocate(size)

    def cudaFree(self, address: int) -> tuple[Any]:
        self.free += len(self.held.pop(address))
        return (Status(0),)

    cudaFreeHost = cudaFree

    def cudaStreamCreate(self) -> tuple[Any, int]:
        self.held[7] = b""
        return Status(0), 7

    def cudaStreamDestroy(self, stream: int) -> tuple[Any]:
        del self.held[stream]
        return (Status(0),)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        assert stream in self.held
        return (Status(0),)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[Any]:
        device, host = (target, source) if kind == 1 else (source, target)
        assert device in self.held
        assert stream in self.held
        assert any(start <= host and host + size <= start + len(block) for start, block in self.held.items())
        ctypes.memmove(target, source, size)
        return (Status(0),)


class Status(int):
    def __new__(cls, value: int, name: str = "cudaSuccess") -> "Status":
        status = super().__new__(cls, value)
        status.name = name
        return status

    name: str


class FakeEngine:
    """An engine of the bytes of an ONNX file, and a context of it."""

    refittable = True

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.num_io_tensors = len(self.inputs) + len(self.outputs)
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def create_execution_context(self) -> "FakeEngine":
        context = copy(self)
        context.addresses, context.shapes = {}, {}
        return context

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream == 7
        self.range = [(1, 1), (2, BATCH)][profile]
        return True

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return self.range[0] <= shape[0] <= self.range[1]

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        types = {"tensor(uint8)": np.uint8, "tensor(int32)": np.int32}
        inputs = {}
        for value in self.session.get_inputs():
            dtype = np.dtype(types[value.type])
            size = int(np.prod(self.shapes[value.name])) * dtype.itemsize
            raw = ctypes.string_at(self.addresses[value.name], size)
            inputs[value.name] = np.frombuffer(raw, dtype).reshape(self.shapes[value.name])
        for name, array in zip(self.outputs, self.session.run(None, inputs), strict=True):
            data = np.ascontiguousarray(array).tobytes()
            ctypes.memmove(self.addresses[name], data, len(data))
        return True

    def serialize(self) -> bytes:
        return self.data

    def create_engine_inspector(self) -> "FakeEngine":
        return self

    def get_engine_information(self, form: str) -> str:
        assert form == "JSON"
        layers = [{"Name": "weigh", "LayerType": "gemm", "Inputs": [{"DataType": "Float"}]}, "a name alone"]
        return json.dumps({"Layers": layers})


class FakeTensorRt:
    """Its Runtime refuses what is no ONNX file, as the real one does what is no engine."""

    class Logger:
        ERROR = "errors"

        def __init__(self, severity: str) -> None:
            self.severity = severity

    class ILogger:
        ERROR, INTERNAL_ERROR = "error", "internal error"

    ComputeCapability = SimpleNamespace(__members__={"CURRENT": 0, "SM75": 1, "SM80": 2, "SM89": 3, "SM120": 4})

    LayerInformationFormat = SimpleNamespace(JSON="JSON")

    class Runtime:
        def __init__(self, logger: object) -> None:
            assert isinstance(logger, (FakeTensorRt.Logger, FakeTensorRt.ILogger))

        def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
            return None if data == b"nothing" else FakeEngine(data)

    class Refitter:
        def __init__(self, engine: FakeEngine, logger: object) -> None:
            del logger
            self.engine, self.model = engine, onnx.load_from_string(engine.data)
            self.given: dict[str, onnx.TensorProto] = {}

        def refit_cuda_engine(self) -> bool:
            for one in self.model.graph.initializer:
                one.CopyFrom(self.given[one.name])
            self.engine.data = self.model.SerializeToString()
            return True

    class OnnxParserRefitter:
        """Takes weights by their names and sizes, and wants all that the engine has."""

        def __init__(self, refitter: "FakeTensorRt.Refitter", logger: object) -> None:
            del logger
            self.refitter = refitter
            self.errors: list[str] = []

        @property
        def num_errors(self) -> int:
            return len(self.errors)

        def get_error(self, index: int) -> SimpleNamespace:
            return SimpleNamespace(desc=lambda: self.errors[index])

        def refit_from_file(self, model: str) -> bool:
            known = {one.name: one for one in self.refitter.model.graph.initializer}
            for one in onnx.load(model).graph.initializer:
                if one.name in known and one.dims == known[one.name].dims:
                    self.refitter.given[one.name] = one
            if len(self.refitter.given) < len(known):
                self.errors.append(f"{len(self.refitter.given)} weights of {len(known)} were refitted")
            return not self.errors
