"""The runtimes that there are. A new one is a file beside this one and a row below."""

from contextlib import ExitStack

from ferryman.bundle import Bundle
from ferryman.errors import EngineError
from ferryman.runtimes.base import Runtime, Session
from ferryman.runtimes.onnxruntime import OnnxRuntime

RUNTIMES: dict[str, Runtime] = {"onnxruntime": OnnxRuntime()}


def open_sessions(bundle: Bundle, target: str | None = None, threads: int | None = None) -> tuple[Session, ...]:
    """Loads a bundle's variants for a target, by default its first: one a size, in the order of `specs`.

    Raises EngineError when the runtime is not there or one can't be loaded; none stays open then.
    """
    variants = bundle.variants(target)
    runtime = RUNTIMES.get(variants[0].target.runtime)
    if runtime is None:
        raise EngineError(f"{variants[0].target}: this version of Ferryman knows {', '.join(RUNTIMES)}; upgrade it")
    why = runtime.missing()
    if why is not None:
        raise EngineError(f"{variants[0].target} can't run here: {why}")
    with ExitStack() as opened:
        sessions = tuple(
            opened.enter_context(runtime.load(bundle.file(variant.path), variant.target, spec, threads))
            for variant, spec in zip(variants, bundle.manifest.specs, strict=True)
        )
        opened.pop_all()
    return sessions
