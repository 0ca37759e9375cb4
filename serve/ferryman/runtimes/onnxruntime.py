"""ONNX Runtime."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from numpy.typing import NDArray

from ferryman.errors import EngineError
from ferryman.runtimes.base import Arrays, Runtime, Session
from ferryman.specs import ModelSpec, Target

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_PROVIDERS = {"cpu": "CPUExecutionProvider"}


class OnnxRuntime(Runtime):
    name = "onnxruntime"

    def missing(self) -> str | None:
        return None  # a dependency of the core

    def version(self) -> str:
        import onnxruntime

        return onnxruntime.__version__

    def devices(self) -> tuple[str, ...]:
        import onnxruntime

        available = onnxruntime.get_available_providers()
        return tuple(device for device, provider in _PROVIDERS.items() if provider in available)

    def load(self, path: Path, target: Target, spec: ModelSpec, threads: int | None = None) -> Session:
        import onnxruntime

        if target.device not in _PROVIDERS:
            raise EngineError(f"{target}: this version of Ferryman drives ONNX Runtime on {', '.join(_PROVIDERS)}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; its warnings speak of graph optimisations, and go to stderr
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            session = onnxruntime.InferenceSession(path, options, providers=[_PROVIDERS[target.device]])
        # ONNX Runtime's exceptions share no base class but Exception.
        except Exception as error:
            raise EngineError(f"ONNX Runtime can't load {path}: {_one_line(error)}") from error
        names = (
            tuple(value.name for value in session.get_inputs()),
            tuple(value.name for value in session.get_outputs()),
        )
        if names != (spec.input_names, spec.output_names):
            raise EngineError(
                f"{path} has inputs and outputs {names}, expected {spec.input_names}, {spec.output_names}"
            )
        return OnnxRuntimeSession(spec, session)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class OnnxRuntimeSession(Session):
    def __init__(self, spec: ModelSpec, session: "InferenceSession") -> None:
        super().__init__(spec)
        self._session: InferenceSession | None = session

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        session = self._session
        if session is None:  # closed by another thread after the check
            raise EngineError("the session is closed")
        names = self.spec.output_names
        try:
            outputs = session.run(list(names), dict(inputs))
        except Exception as error:  # see load
            raise EngineError(
                f"ONNX Runtime failed on a batch of {len(inputs['image'])}: {_one_line(error)}"
            ) from error
        return dict(zip(names, cast("list[NDArray[Any]]", outputs), strict=True))

    def _close(self) -> None:
        self._session = None
