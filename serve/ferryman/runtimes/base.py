"""What can execute variants (Runtime), and one loaded variant (Session)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

from numpy.typing import NDArray

from ferryman.attest import Attestation
from ferryman.engines import EngineFacts
from ferryman.errors import EngineError, TensorError, UsageError
from ferryman.specs import ModelSpec, Target

Arrays = Mapping[str, NDArray[Any]]
Hint = Literal["latency", "throughput"]
MAX_PARALLEL = 1024  # of threads and of streams; runtimes take any number, and fail in ways of their own


@dataclass(frozen=True)
class Settings:
    """How a variant is run; none of it changes its answers. A runtime that has no such thing ignores a setting.

    threads: of the CPU, None for all
    streams: runs that go on side by side and share the threads, None for what suits the hint
    hint: what to be good at: one answer soon, or many answers
    Raises UsageError for threads or streams outside 1 to `MAX_PARALLEL`.
    """

    threads: int | None = None
    streams: int | None = None
    hint: Hint = "latency"

    def __post_init__(self) -> None:
        for name, number in (("threads", self.threads), ("streams", self.streams)):
            if number is not None and not 1 <= number <= MAX_PARALLEL:
                raise UsageError(f"{name} must be 1 to {MAX_PARALLEL}, got {number}")


DEFAULT = Settings()


class Session(ABC):
    """One loaded variant. `run` may be called from several threads at once; after `close` it raises EngineError.

    A subclass implements `_run`, `_close` and `attest`; `_run` may take for granted that inputs fit the spec.
    engine_sha256: of the engine that it runs; None where the variant's own file is what runs
    """

    engine_sha256: str | None = None

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.closed = False

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Answers for one batch: inputs and outputs as `spec` names, types and shapes them.

        Raises TensorError for inputs that don't fit the spec, EngineError when the runtime fails.
        """
        if self.closed:
            raise EngineError("the session is closed")
        check_inputs(inputs, self.spec)
        try:
            return self._run(inputs)
        except MemoryError as error:
            raise EngineError(f"there is no memory for a batch of {len(inputs['image'])}: {error}") from error

    def close(self) -> None:
        """Frees the variant; calling it twice is fine."""
        if not self.closed:
            self.closed = True
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def largest_useful_batch(self) -> int | None:
        """How many images can gain from being run together, None where only measuring tells."""
        return None

    @abstractmethod
    def attest(self, inputs: Arrays) -> Attestation:
        """What the loaded variant computes in which precision; `inputs`: a batch, for runtimes that tell as they run.

        Raises EngineError when the runtime does not tell.
        """

    @abstractmethod
    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]: ...

    @abstractmethod
    def _close(self) -> None: ...


class Runtime(ABC):
    """What executes variants of the targets named `name`-DEVICE-PRECISION.

    A subclass implements the abstract methods; `_load` may take for granted that `why_not` had nothing to say.
    """

    name: ClassVar[str]
    known: ClassVar[Mapping[str, tuple[str, ...]]]  # devices that it is driven on, and their precisions

    def targets(self) -> tuple[Target, ...]:
        """All that it is driven as, on this machine or another."""
        return tuple(
            Target(runtime=self.name, device=device, precision=precision)
            for device, precisions in self.known.items()
            for precision in precisions
        )

    def why_not(self, target: Target) -> str | None:
        """Why a target's variants can't run here, or None when they can."""
        why = self.missing()
        if why is not None:
            return why
        if target.device not in self.known:
            return f"this version of Ferryman drives {self.name} on {', '.join(self.known)}"
        return self._absent(target.device) or self._lacks(target)

    def load(self, path: Path, target: Target, spec: ModelSpec, settings: Settings = DEFAULT) -> Session:
        """Loads a variant's main file. Raises EngineError when it can't be loaded, or the target can't run here."""
        why = self.why_not(target)
        if why is not None:
            raise EngineError(f"{target} can't run here: {why}")
        return self._load(path, target, spec, settings)

    def accelerator(self, device: str) -> str:
        """Name and driver of a device that is not the processor, as far as they bear on answers; else empty."""
        del device
        return ""

    def engine(self, path: Path, target: Target) -> EngineFacts | None:
        """What was built of a variant's main file on this device, and is loaded instead; None where nothing is.

        Raises EngineError when there is none yet.
        """
        del path, target

    def loaded_digest(self, path: Path, target: Target, sha256: str) -> str:
        """SHA-256 of what is loaded for a variant, whose main file at `path` has the digest `sha256`: here that file.

        Raises EngineError when there is nothing to load.
        """
        engine = self.engine(path, target)
        return sha256 if engine is None else engine.sha256

    def _absent(self, device: str) -> str | None:
        """Why a device that it is driven on is not there, or None when it is."""
        if device in self.devices():
            return None
        return f"{self.name} finds no such device here, only {', '.join(self.devices()) or 'none at all'}"

    def _lacks(self, target: Target) -> str | None:
        """Why a device that is there can't run this precision."""
        del target
        return None

    @abstractmethod
    def missing(self) -> str | None:
        """Why it can't be used here, or None when it can."""

    @abstractmethod
    def version(self) -> str:
        """The installed version."""

    @abstractmethod
    def devices(self) -> tuple[str, ...]:
        """Devices of this machine that it can use, in the words of targets: `cpu`, `cuda` ..."""

    @abstractmethod
    def _load(self, path: Path, target: Target, spec: ModelSpec, settings: Settings) -> Session: ...


def check_inputs(inputs: Arrays, spec: ModelSpec) -> None:
    """Raises TensorError unless `inputs` are exactly the spec's, with one batch size of 1 or more throughout."""
    if set(inputs) != set(spec.input_names):
        raise TensorError(
            f"the model takes {', '.join(spec.input_names)}, got {', '.join(sorted(inputs)) or 'nothing'}"
        )
    sizes: dict[str, tuple[str, int]] = {}
    for tensor in spec.inputs:
        array = inputs[tensor.name]
        shape, wanted_shape = array.shape, tensor.shape
        fits = array.dtype == tensor.dtype and len(shape) == len(wanted_shape)
        for size, wanted in zip(shape, wanted_shape, strict=False):
            if isinstance(wanted, str):
                first, known = sizes.setdefault(wanted, (tensor.name, size))
                if size != known:
                    raise TensorError(f"{wanted} is {known} in input {first} and {size} in input {tensor.name}")
                fits = fits and size > 0
            elif size != wanted:
                fits = False
        if not fits:
            expected = f"{tensor.dtype} ({', '.join(map(str, wanted_shape))})"
            given = f"{array.dtype} ({', '.join(map(str, shape))})"
            raise TensorError(f"input {tensor.name} must be {expected}, got {given}")
