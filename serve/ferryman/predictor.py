"""From encoded pictures to typed answers in this process: preprocessing, session, results, and the time of each."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from ferryman.bundle import Bundle
from ferryman.errors import ImageError, TaskError, UsageError
from ferryman.preprocess import MAX_PIXELS, Geometry, choose_canvas, decode_image, fit_image, stack_inputs
from ferryman.results import (
    DEFAULT_SCORE_THRESHOLD,
    DEFAULT_TOP_K,
    Classification,
    Detections,
    Embedding,
    Outputs,
    Segmentation,
    check_explains,
    classification_from_outputs,
    detections_from_outputs,
    embedding_from_outputs,
)
from ferryman.runtimes import open_sessions
from ferryman.runtimes.base import DEFAULT, Session, Settings
from ferryman.segmenting import segmentation_from_outputs
from ferryman.specs import DETECTING, SEGMENTING, PreprocessSpec, Task

T = TypeVar("T")


@dataclass(frozen=True)
class Timings:
    """Milliseconds of each stage of one request; `queue_ms` is waiting for the engine, `total_ms` is the whole.

    encode_ms: making messages of the answer; None where none are made, or a server does not tell it apart from
    `postprocess_ms`
    """

    decode_ms: float
    resize_ms: float
    queue_ms: float
    compute_ms: float
    postprocess_ms: float
    total_ms: float
    encode_ms: float | None = None


@dataclass(frozen=True)
class Fitted:
    """Decoded and resized pictures of one request, and the milliseconds that it took.

    sizes: for each the index of the canvas size that it was fitted to
    """

    sizes: tuple[int, ...]
    canvases: tuple[NDArray[np.uint8], ...]
    geometries: tuple[Geometry, ...]
    decode_ms: float
    resize_ms: float


def fit_images(images: Sequence[bytes], specs: Sequence[PreprocessSpec], max_pixels: int = MAX_PIXELS) -> Fitted:
    """Decodes and resizes pictures, each to the one of the sizes that it wastes the least of.

    Raises ImageError for one that can't be decoded, UsageError for none.
    """
    if not images:
        raise UsageError("the request holds no image; send at least one")
    return join_fitted([fit_one(data, specs, max_pixels, number, len(images)) for number, data in enumerate(images, 1)])


def fit_one(
    data: bytes, specs: Sequence[PreprocessSpec], max_pixels: int = MAX_PIXELS, number: int = 1, count: int = 1
) -> Fitted:
    """`fit_images` for picture `number` of `count`, which an error's message names."""
    try:
        return _fit(data, specs, max_pixels)
    except ImageError as error:
        if count == 1:
            raise
        raise ImageError(f"image {number} of {count}: {error}") from error


def _fit(data: bytes, specs: Sequence[PreprocessSpec], max_pixels: int) -> Fitted:
    # A picture may be a thousand times its canvas: it is gone before the next one is decoded.
    start = time.perf_counter()
    image = decode_image(data, max_pixels)
    middle = time.perf_counter()
    size = choose_canvas((image.height, image.width), [spec.size for spec in specs])
    canvas, geometry = fit_image(image, specs[size])
    return Fitted((size,), (canvas,), (geometry,), (middle - start) * 1e3, (time.perf_counter() - middle) * 1e3)


def join_fitted(parts: Sequence[Fitted]) -> Fitted:
    """Pictures of one request that were fitted one by one."""
    if len(parts) == 1:
        return parts[0]
    return Fitted(
        tuple(size for part in parts for size in part.sizes),
        tuple(canvas for part in parts for canvas in part.canvases),
        tuple(geometry for part in parts for geometry in part.geometries),
        sum(part.decode_ms for part in parts),
        sum(part.resize_ms for part in parts),
    )


class Predictor:
    """An opened bundle and its target's loaded variants, one a size.

    sessions: in their place, one a size; they are closed with it
    Raises TaskError when asked for another task than the model's.
    """

    def __init__(
        self,
        bundle: Bundle,
        target: str | None = None,
        settings: Settings = DEFAULT,
        sessions: Sequence[Session] | None = None,
    ) -> None:
        self.bundle = bundle
        self.spec = bundle.spec
        self.sessions = open_sessions(bundle, target, settings) if sessions is None else tuple(sessions)

    @classmethod
    def open(cls, path: Path | str, target: str | None = None, settings: Settings = DEFAULT) -> Self:
        return cls(Bundle.open(path), target, settings)

    def classify(
        self, images: Sequence[bytes], top_k: int = DEFAULT_TOP_K, *, explain: bool = False
    ) -> tuple[list[Classification], Timings]:
        """The best classes of each encoded picture. explain: and where the model looked; see `check_explains`"""
        answer = partial(classification_from_outputs, spec=self.spec, top_k=top_k, explain=explain)
        return self._answer(("classification",), images, answer, explain)

    def detect(
        self, images: Sequence[bytes], score_threshold: float = DEFAULT_SCORE_THRESHOLD, *, explain: bool = False
    ) -> tuple[list[Detections], Timings]:
        """The objects in each encoded picture, boxes in its own pixels; of a model with masks too.

        explain: and where the model looked for each of them; see `check_explains`
        """
        answer = partial(detections_from_outputs, spec=self.spec, score_threshold=score_threshold, explain=explain)
        return self._answer(DETECTING, images, answer, explain)

    def embed(self, images: Sequence[bytes], *, explain: bool = False) -> tuple[list[Embedding], Timings]:
        """The embeddings of each encoded picture. explain: and where the model looked; see `check_explains`"""
        return self._answer(("embedding",), images, partial(embedding_from_outputs, explain=explain), explain)

    def segment(
        self, images: Sequence[bytes], score_threshold: float | None = None
    ) -> tuple[list[Segmentation], Timings]:
        """The segments of each encoded picture, masks at its own size; see `segmentation_from_outputs`."""
        answer = partial(segmentation_from_outputs, spec=self.spec, score_threshold=score_threshold)
        return self._answer(SEGMENTING, images, answer)

    def check_task(self, *tasks: Task) -> None:
        """Raises TaskError unless the model's task is one of these."""
        if self.spec.task not in tasks:
            raise TaskError(f"{self.bundle.name} is a {self.spec.task} model and can't answer {tasks[0]} requests")

    def _answer(
        self,
        tasks: tuple[Task, ...],
        images: Sequence[bytes],
        answer: Callable[[Outputs, int, Geometry], T],
        explain: bool = False,
    ) -> tuple[list[T], Timings]:
        self.check_task(*tasks)
        if explain:
            check_explains(self.spec, self.bundle.name)
        start = time.perf_counter()
        fitted = fit_images(images, [session.spec.preprocess for session in self.sessions])
        batches: dict[int, list[int]] = {}
        for index, size in enumerate(fitted.sizes):
            batches.setdefault(size, []).append(index)
        inputs = {
            size: stack_inputs(
                [fitted.canvases[index] for index in indices],
                [fitted.geometries[index] for index in indices],
                self.spec.input_names,
            )
            for size, indices in batches.items()
        }
        before = time.perf_counter()
        outputs = {size: self.sessions[size].run(batch) for size, batch in inputs.items()}
        after = time.perf_counter()
        answers = [
            answer(outputs[size], batches[size].index(index), fitted.geometries[index])
            for index, size in enumerate(fitted.sizes)
        ]
        end = time.perf_counter()
        return answers, Timings(
            decode_ms=fitted.decode_ms,
            resize_ms=fitted.resize_ms,
            queue_ms=0.0,
            compute_ms=(after - before) * 1e3,
            postprocess_ms=(end - after) * 1e3,
            total_ms=(end - start) * 1e3,
        )

    def close(self) -> None:
        for session in self.sessions:
            session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
