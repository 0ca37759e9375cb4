"""ONNX Runtime, on each of its execution providers that `providers` has a row for."""

import json
import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from ferryman.attest import Attestation, astray, attestation
from ferryman.device import read_device, saturates
from ferryman.errors import EngineError
from ferryman.runtimes.base import Arrays, Runtime, Session, Settings
from ferryman.runtimes.hardware import name_hardware
from ferryman.runtimes.providers import PROVIDERS, Provider
from ferryman.runtimes.tensorrt import Cuda, has_gpu
from ferryman.specs import ModelSpec, Target

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# Of a graph's products by precision, written into the file where a compiled kernel hides them; JSON.
PRODUCTS = "ferryman.products"


# The smallest ONNX file: y = x + x, one number each.
PROBE = (
    b'\x08\x08:5\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)


class OnnxRuntime(Runtime):
    name = "onnxruntime"
    known: ClassVar = {device: provider.precisions for device, provider in PROVIDERS.items()}

    def missing(self) -> str | None:
        # A dependency of the core, but whoever changes one wheel of it for another may be left with none.
        return None if find_spec("onnxruntime") else "ONNX Runtime is not installed: pip install onnxruntime"

    def version(self) -> str:
        import onnxruntime

        return onnxruntime.__version__

    def devices(self) -> tuple[str, ...]:
        return tuple(device for device in PROVIDERS if self._absent(device) is None)

    def accelerator(self, device: str) -> str:
        provider = PROVIDERS[device]
        if provider.nvidia:
            return f"{Cuda().name()}, driver {Cuda().driver()}"
        return name_hardware(provider.name) if provider.apart else ""

    def _absent(self, device: str) -> str | None:
        import onnxruntime

        provider = PROVIDERS[device]
        if provider.machines and platform.machine() not in provider.machines:
            return f"it is for processors called {provider.machines[0]}, and this one is {platform.machine()}"
        if provider.name not in onnxruntime.get_available_providers():
            return f"the ONNX Runtime that is installed has no {provider.name}: {provider.install}"
        if provider.nvidia and not has_gpu():
            return "CUDA finds no NVIDIA GPU; is there one, and cuda-bindings (pip install 'ferryman[gpu]')?"
        why = None if provider.name == "CPUExecutionProvider" else why_not_started(provider.name)
        return (
            None
            if why is None
            else f"ONNX Runtime can't start {provider.name}: {why}; it comes with: {provider.install}"
        )

    def _lacks(self, target: Target) -> str | None:
        if target.device == "openvino" and target.precision == "int8" and saturates(read_device().cpu_features):
            return "OpenVINO cuts off sums of int8 on this processor, AVX2 without VNNI; openvino-cpu-int8 sees to that"
        return None

    def _load(self, path: Path, target: Target, spec: ModelSpec, settings: Settings) -> Session:
        source = Source(path, PROVIDERS[target.device], target, spec, settings)
        session = source.open()
        names = (
            tuple(value.name for value in session.get_inputs()),
            tuple(value.name for value in session.get_outputs()),
        )
        if names != (spec.input_names, spec.output_names):
            raise EngineError(
                f"{path} has inputs and outputs {names}, expected {spec.input_names}, {spec.output_names}"
            )
        return OnnxRuntimeSession(source, session)


@cache
def why_not_started(name: str) -> str | None:
    """Why a provider can't be had though it was built in: no such device, a library that is missing; else None."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(PROBE, options, providers=[name], enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - they share no other base class
        return _one_line(error)
    # One whose libraries are missing is left out with no more than a line on stderr.
    return None if name in session.get_providers() else "for the reason that it gave above"


@dataclass(frozen=True)
class Source:
    """What a session is made from."""

    path: Path
    provider: Provider
    target: Target
    spec: ModelSpec
    settings: Settings

    def open(self, profile: Path | None = None) -> "InferenceSession":
        """profile: a prefix for the file that the profiler writes. Raises EngineError."""
        import onnxruntime

        provider, threads = self.provider, self.settings.threads
        os.environ.update(provider.environment)
        own: dict[str, str] = {}
        try:
            own = {**provider.options, **provider.tune(self.path, self.target, self.spec)}
        except OSError as error:
            raise EngineError(f"ONNX Runtime can't load {self.path}: {error}") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; its warnings speak of graph optimisations, and go to stderr
        if threads is not None:
            options.intra_op_num_threads = 1 if provider.threads else threads
            own |= {provider.threads: str(threads)} if provider.threads else {}
        if provider.name == "CPUExecutionProvider" and saturates(read_device().cpu_features):
            # uint8 times uint8 for what is in 8 bits: slower, and never cut off.
            options.add_session_config_entry("session.x64quantprecision", "1")
        if provider.whole:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if provider.batch == 1:
            for name in {size for tensor in self.spec.inputs for size in tensor.shape if isinstance(size, str)}:
                options.add_free_dimension_override_by_name(name, 1)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        session = _open(self.path, options, provider.name, own)
        if provider.name not in session.get_providers():  # see why_not_started; options may fail where none did
            raise EngineError(
                f"ONNX Runtime can't load {self.path}: it left out {provider.name}, for the reason that it gave above"
            )
        return session


def _open(path: Path, options: Any, provider: str, own: Mapping[str, str]) -> "InferenceSession":
    import onnxruntime

    try:
        # Without `enable_fallback` a provider that fails is replaced by another, and ours is not what runs.
        return onnxruntime.InferenceSession(path, options, providers=[(provider, dict(own))], enable_fallback=0)
    # ONNX Runtime's exceptions share no base class but Exception.
    except Exception as error:
        raise EngineError(f"ONNX Runtime can't load {path}: {_one_line(error)}") from error


def _run(session: "InferenceSession", names: tuple[str, ...], inputs: Arrays, memory: str) -> dict[str, NDArray[Any]]:
    """memory: see `Provider`"""
    try:
        outputs = _run_bound(session, names, inputs, memory) if memory else session.run(list(names), dict(inputs))
    except Exception as error:  # see _open
        raise EngineError(f"ONNX Runtime failed on a batch of {len(inputs['image'])}: {_one_line(error)}") from error
    return dict(zip(names, cast("list[NDArray[Any]]", outputs), strict=True))


def _run_bound(session: "InferenceSession", names: tuple[str, ...], inputs: Arrays, memory: str) -> Any:
    import onnxruntime

    binding = session.io_binding()  # one a run: several threads may run at once
    for name, array in inputs.items():
        value = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), memory, 0)
        binding.bind_ortvalue_input(name, value)
    for name in names:
        binding.bind_output(name, memory)
    session.run_with_iobinding(binding)
    return binding.copy_outputs_to_cpu()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


_PRECISIONS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "uint8": "int8", "int8": "int8"}
_PRODUCTS = ("MatMul", "Gemm", "QGemm", "Conv")


def _describe_node(node: dict[str, Any], provider: str) -> tuple[str, str, bool]:
    """Kind and precision of a node that ran, and whether it is a matrix product with weights.

    A product's weights are of rank 2, and not listed when they were packed at loading; the products of attention have
    a second operand of rank 3 or 4. What another provider than `provider` ran is told as astray.
    """
    kind = str(node["op_name"])
    operands = [next(iter(operand.items())) for operand in node.get("input_type_shape", [])]
    dtype = operands[0][0] if operands else "none"
    product = any(word in kind for word in _PRODUCTS)
    if product and "Conv" not in kind:
        product = all(len(shape) < 3 for _, shape in operands[1:])
    integers = product and ("Integer" in kind or kind.startswith(("QLinear", "QGemm", "DynamicQuantize")))
    precision = "int8" if integers else _PRECISIONS.get(dtype, dtype)
    ran = str(node.get("provider", provider)).removesuffix("ExecutionProvider")
    return kind, precision if f"{ran}ExecutionProvider" == provider else astray(precision, ran), product


# On the processor a picture of a large model was slower in a batch of 8 than alone, by 8 % (ViT-B) to 10 % (DINOv2-S),
# since activations of 8 leave its caches; of a small one it was up to 1.4 times as fast. Pairs lost nothing in either,
# nor in DETR-R50 at 480x640, 4 % faster so; at 800x1066 they were 3 % slower than one by one.
_LARGE_BYTES, _PAIR = 16 * 2**20, 2
_LARGE_PIXELS = 600_000


def _choose_most(source: Source) -> int | None:
    """Pictures in one run, of which more go in parts; None for any number."""
    large = source.provider.name == "CPUExecutionProvider" and source.path.stat().st_size >= _LARGE_BYTES
    if not large or source.provider.batch is not None:
        return source.provider.batch
    height, width = source.spec.preprocess.size
    return 1 if height * width > _LARGE_PIXELS else _PAIR


class OnnxRuntimeSession(Session):
    """A graph whose batch is fixed at 1 runs picture by picture: one that finds a range of all values it is given."""

    def __init__(self, source: Source, session: "InferenceSession") -> None:
        super().__init__(source.spec)
        self._session: InferenceSession | None = session
        self._source = source
        self._most = 1 if session.get_inputs()[0].shape[0] == 1 else _choose_most(source)

    @property
    def largest_useful_batch(self) -> int | None:
        return self._most

    def attest(self, inputs: Arrays) -> Attestation:
        """ONNX Runtime tells what it runs only as it runs: the file is loaded once more, with its profiler on.

        Compiled kernels hide their products. What is in them is what the file tells of itself, or, where it tells
        nothing, what the processor runs of it; those of them that went astray were seen.
        """
        nodes = _profile(self._source, inputs)
        found = [_describe_node(node, self._source.provider.name) for node in nodes]
        if self._source.provider.compiles:
            found += [("product", precision, True) for precision in self._read_products(inputs)]
        return attestation(found)

    def _read_products(self, inputs: Arrays) -> list[str]:
        plain, session = replace(self._source, provider=PROVIDERS["cpu"]), self._session
        if session is None:
            raise EngineError("the session is closed")
        told = session.get_modelmeta().custom_metadata_map.get(PRODUCTS)
        if told is not None:
            return [precision for precision, count in json.loads(told).items() for _ in range(count)]
        found = [_describe_node(node, plain.provider.name) for node in _profile(plain, inputs)]
        return [precision for _, precision, product in found if product]

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        session, provider = self._session, self._source.provider
        if session is None:  # closed by another thread after the check
            raise EngineError("the session is closed")
        batch = len(inputs["image"])
        most = self._most or batch
        parts = [
            _run(
                session,
                self.spec.output_names,
                {name: array[start : start + most] for name, array in inputs.items()},
                provider.memory,
            )
            for start in range(0, batch, most)
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.spec.output_names}

    def _close(self) -> None:
        self._session = None


def _profile(source: Source, inputs: Arrays) -> list[dict[str, Any]]:
    """The nodes of one run of one picture."""
    with tempfile.TemporaryDirectory() as folder:
        session = replace(source, settings=Settings(threads=1)).open(Path(folder) / "profile")
        _run(session, source.spec.output_names, {name: array[:1] for name, array in inputs.items()}, "")
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [event["args"] for event in events if event["cat"] == "Node" and "op_name" in event["args"]]
    return [node for node in nodes if node["op_name"]]
