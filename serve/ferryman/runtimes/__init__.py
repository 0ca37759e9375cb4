"""The runtimes that there are. A new one is a file beside this one and a row below."""

from contextlib import ExitStack

from ferryman.bundle import Bundle
from ferryman.errors import EngineError, UsageError, propose
from ferryman.runtimes.base import DEFAULT, Runtime, Session, Settings
from ferryman.runtimes.onnxruntime import OnnxRuntime
from ferryman.runtimes.openvino import OpenVino
from ferryman.runtimes.tensorrt import TensorRt, TensorRtRtx
from ferryman.specs import Target

RUNTIMES: dict[str, Runtime] = {
    "onnxruntime": OnnxRuntime(),
    "openvino": OpenVino(),
    "tensorrt": TensorRt(),
    "tensorrtrtx": TensorRtRtx(),
}


def parse_target(text: str) -> Target:
    """A target that this version knows, on this machine or another. Raises UsageError that proposes the nearest."""
    known = {str(target): target for runtime in RUNTIMES.values() for target in runtime.targets()}
    if text not in known:
        near = propose(text, known) or f", which are {', '.join(known)}"
        raise UsageError(f"{text} is none of the targets that this version knows{near}")
    return known[text]


def why_not(target: Target) -> str | None:
    """Why a target's variants can't run here, or None when they can."""
    runtime = RUNTIMES.get(target.runtime)
    if runtime is None:
        return f"this version of Ferryman knows {', '.join(RUNTIMES)}; upgrade it"
    return runtime.why_not(target)


def find_runtime(target: Target) -> Runtime:
    """What executes a target's variants. Raises EngineError when they can't run here."""
    why = why_not(target)
    if why is not None:
        raise EngineError(f"{target} can't run here: {why}")
    return RUNTIMES[target.runtime]


def open_session(bundle: Bundle, target: str | None = None, index: int = 0, settings: Settings = DEFAULT) -> Session:
    """Loads a bundle's variant for a target, by default its first, of the size with that index in `specs`.

    Raises EngineError when it can't be loaded or can't run here.
    """
    variant = bundle.variants(target)[index]
    runtime = find_runtime(variant.target)
    return runtime.load(bundle.file(variant.path), variant.target, bundle.manifest.specs[index], settings)


def open_sessions(bundle: Bundle, target: str | None = None, settings: Settings = DEFAULT) -> tuple[Session, ...]:
    """Loads a bundle's variants for a target: one a size, in the order of `specs`; see `open_session`.

    When one can't be loaded none stays open.
    """
    with ExitStack() as opened:
        sessions = tuple(
            opened.enter_context(open_session(bundle, target, index, settings))
            for index in range(len(bundle.manifest.specs))
        )
        opened.pop_all()
    return sessions
