"""What a server answers, as the client gives it: results with their timings and with what answered."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from ferryman.errors import FerrymanError
from ferryman.predictor import Timings
from ferryman.specs import Task

T = TypeVar("T")


@dataclass(frozen=True)
class Answerer:
    """What answered. bundle_digest: SHA-256 of the bundle's manifest."""

    name: str
    version: int
    target: str
    bundle_digest: str


@dataclass(frozen=True)
class Answer(Generic[T]):
    """results: one an image, in the request's order; timings: inside the server, of the whole request."""

    results: tuple[T, ...]
    timings: Timings
    answerer: Answerer


@dataclass(frozen=True)
class Frame(Generic[T]):
    """A stream's answer to one frame: either an answer with one result, or the error that this frame met."""

    frame_id: int
    answer: Answer[T] | None
    error: FerrymanError | None

    @property
    def result(self) -> T:
        """The frame's result. Raises the frame's error where there is one."""
        if self.answer is None:
            raise self.error or FerrymanError(
                f"the server answered neither a result nor an error to frame {self.frame_id}"
            )
        return self.answer.results[0]


@dataclass(frozen=True)
class OutputParity:
    """The worst figures of one output over all golden samples and batches. limit: None where there is none."""

    output: str
    max_abs_error: float
    min_cosine: float
    limit: float | None


@dataclass(frozen=True)
class ModelFacts:
    """A served model.

    canvases: (width, height) of each size that pictures are fitted to; parity: measured at export
    certified: when the target was proved on the server's device
    """

    name: str
    version: int
    task: Task
    labels: tuple[str, ...]
    target: str
    runtime_version: str
    bundle_digest: str
    checkpoint: str
    checkpoint_digest: str
    parity: tuple[OutputParity, ...]
    created: str
    canvases: tuple[tuple[int, int], ...]
    certified: str
