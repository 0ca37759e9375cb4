"""The runtimes that there are. A new one is a file beside this one and a row below."""

from ferryman.bundle import Bundle
from ferryman.errors import EngineError
from ferryman.runtimes.base import Runtime, Session
from ferryman.runtimes.onnxruntime import OnnxRuntime

RUNTIMES: dict[str, Runtime] = {"onnxruntime": OnnxRuntime()}


def open_session(bundle: Bundle, target: str | None = None, threads: int | None = None) -> Session:
    """Loads a bundle's variant, by default its first. Raises EngineError when its runtime is not there."""
    variant = bundle.variant(target)
    runtime = RUNTIMES.get(variant.target.runtime)
    if runtime is None:
        raise EngineError(f"{variant.target}: this version of Ferryman knows {', '.join(RUNTIMES)}; upgrade it")
    why = runtime.missing()
    if why is not None:
        raise EngineError(f"{variant.target} can't run here: {why}")
    return runtime.load(bundle.file(variant.path), variant.target, bundle.spec, threads)
