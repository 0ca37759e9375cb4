"""ONNX Runtime."""

import json
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from ferryman.attest import Attestation, attestation
from ferryman.device import read_device
from ferryman.errors import EngineError
from ferryman.runtimes.base import Arrays, Runtime, Session, Settings
from ferryman.specs import ModelSpec, Target

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_PROVIDERS = {"cpu": "CPUExecutionProvider"}


class OnnxRuntime(Runtime):
    name = "onnxruntime"
    known: ClassVar = {"cpu": ("fp32", "int8")}

    def missing(self) -> str | None:
        return None  # a dependency of the core

    def version(self) -> str:
        import onnxruntime

        return onnxruntime.__version__

    def devices(self) -> tuple[str, ...]:
        import onnxruntime

        available = onnxruntime.get_available_providers()
        return tuple(device for device, provider in _PROVIDERS.items() if provider in available)

    def _load(self, path: Path, target: Target, spec: ModelSpec, settings: Settings) -> Session:
        provider = _PROVIDERS[target.device]
        exact = target.precision == "int8" and saturates(read_device().cpu_features)
        session = _open(path, _choose_options(settings, exact), provider)
        names = (
            tuple(value.name for value in session.get_inputs()),
            tuple(value.name for value in session.get_outputs()),
        )
        if names != (spec.input_names, spec.output_names):
            raise EngineError(
                f"{path} has inputs and outputs {names}, expected {spec.input_names}, {spec.output_names}"
            )
        return OnnxRuntimeSession(spec, session, path, provider, exact)


def saturates(features: Collection[str]) -> bool:
    """Whether a processor cuts off at 16 bits what it adds up of uint8 times int8: those with AVX2 but without VNNI."""
    return "avx2" in features and not {"avx_vnni", "avx512_vnni"} & set(features)


def _choose_options(settings: Settings, exact: bool) -> Any:  # SessionOptions, which the package does not type
    """exact: multiplies uint8 by uint8, which is slower and never cut off"""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings speak of graph optimisations, and go to stderr
    if settings.threads is not None:
        options.intra_op_num_threads = settings.threads
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _open(path: Path, options: Any, provider: str) -> "InferenceSession":
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(path, options, providers=[provider])
    # ONNX Runtime's exceptions share no base class but Exception.
    except Exception as error:
        raise EngineError(f"ONNX Runtime can't load {path}: {_one_line(error)}") from error


def _run(session: "InferenceSession", names: tuple[str, ...], inputs: Arrays) -> dict[str, NDArray[Any]]:
    try:
        outputs = session.run(list(names), dict(inputs))
    except Exception as error:  # see _open
        raise EngineError(f"ONNX Runtime failed on a batch of {len(inputs['image'])}: {_one_line(error)}") from error
    return dict(zip(names, cast("list[NDArray[Any]]", outputs), strict=True))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


_PRECISIONS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "uint8": "int8", "int8": "int8"}
_PRODUCTS = ("MatMul", "Gemm", "QGemm", "Conv")


def _describe_node(node: dict[str, Any]) -> tuple[str, str, bool]:
    """Kind and precision of a node that ran, and whether it is a matrix product with weights.

    A product's weights are of rank 2, and not listed when they were packed at loading; the products of attention have
    a second operand of rank 3 or 4.
    """
    kind = str(node["op_name"])
    operands = [next(iter(operand.items())) for operand in node.get("input_type_shape", [])]
    dtype = operands[0][0] if operands else "none"
    product = any(word in kind for word in _PRODUCTS)
    if product and "Conv" not in kind:
        product = all(len(shape) < 3 for _, shape in operands[1:])
    integers = product and ("Integer" in kind or kind.startswith(("QLinear", "QGemm", "DynamicQuantize")))
    return kind, "int8" if integers else _PRECISIONS.get(dtype, dtype), product


class OnnxRuntimeSession(Session):
    """A graph whose batch is fixed at 1 runs picture by picture: one that finds a range of all values it is given.

    exact: see `_choose_options`
    """

    def __init__(
        self, spec: ModelSpec, session: "InferenceSession", path: Path, provider: str, exact: bool = False
    ) -> None:
        super().__init__(spec)
        self._session: InferenceSession | None = session
        self._path, self._provider, self._exact = path, provider, exact
        self._alone = session.get_inputs()[0].shape[0] == 1

    def attest(self, inputs: Arrays) -> Attestation:
        """ONNX Runtime tells what it runs only as it runs: the file is loaded once more, with its profiler on."""
        options = _choose_options(Settings(threads=1), self._exact)
        options.enable_profiling = True
        with tempfile.TemporaryDirectory() as folder:
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = _open(self._path, options, self._provider)
            _run(session, self.spec.output_names, inputs)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        nodes = [event["args"] for event in events if event["cat"] == "Node" and "op_name" in event["args"]]
        return attestation([_describe_node(node) for node in nodes if node["op_name"]])

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        session = self._session
        if session is None:  # closed by another thread after the check
            raise EngineError("the session is closed")
        names, count = self.spec.output_names, len(inputs["image"])
        if not self._alone or count == 1:
            return _run(session, names, inputs)
        pictures = ({name: array[index : index + 1] for name, array in inputs.items()} for index in range(count))
        answers = [_run(session, names, picture) for picture in pictures]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in names}

    def _close(self) -> None:
        self._session = None
