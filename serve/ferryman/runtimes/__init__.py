"""The runtimes that there are. A new one is a file beside this one and a row below."""

from contextlib import ExitStack

from ferryman.bundle import Bundle
from ferryman.errors import EngineError
from ferryman.runtimes.base import DEFAULT, Runtime, Session, Settings
from ferryman.runtimes.onnxruntime import OnnxRuntime
from ferryman.runtimes.openvino import OpenVino
from ferryman.specs import Target

RUNTIMES: dict[str, Runtime] = {"onnxruntime": OnnxRuntime(), "openvino": OpenVino()}


def find_runtime(target: Target) -> Runtime:
    """What executes a target's variants. Raises EngineError when this version has no such runtime, or it is missing."""
    runtime = RUNTIMES.get(target.runtime)
    if runtime is None:
        raise EngineError(f"{target}: this version of Ferryman knows {', '.join(RUNTIMES)}; upgrade it")
    why = runtime.missing()
    if why is not None:
        raise EngineError(f"{target} can't run here: {why}")
    return runtime


def open_sessions(bundle: Bundle, target: str | None = None, settings: Settings = DEFAULT) -> tuple[Session, ...]:
    """Loads a bundle's variants for a target, by default its first: one a size, in the order of `specs`.

    Raises EngineError when the runtime is not there or one can't be loaded; none stays open then.
    """
    variants = bundle.variants(target)
    runtime = find_runtime(variants[0].target)
    with ExitStack() as opened:
        sessions = tuple(
            opened.enter_context(runtime.load(bundle.file(variant.path), variant.target, spec, settings))
            for variant, spec in zip(variants, bundle.manifest.specs, strict=True)
        )
        opened.pop_all()
    return sessions
