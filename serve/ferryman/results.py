"""Typed answers, made from a graph's outputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferryman.attention import Attention
from ferryman.errors import EngineError, UsageError
from ferryman.masks import Mask
from ferryman.preprocess import Geometry
from ferryman.specs import ModelSpec

DEFAULT_SCORE_THRESHOLD = 0.5
DEFAULT_TOP_K = 5
_MANY = 8192  # values of one output
Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Prediction:
    """One class of an image. score: probability in [0, 1]."""

    label: str
    class_id: int
    score: float


@dataclass(frozen=True)
class Classification:
    """The best classes of one image, best first.

    size: (width, height) of the original; canvas: likewise of the size that the model saw; both in pixels
    attention: where the model looked, None unless that was asked for
    """

    size: tuple[int, int]
    canvas: tuple[int, int]
    predictions: tuple[Prediction, ...]
    attention: Attention | None = None


@dataclass(frozen=True)
class Detection:
    """One object. score: probability in [0, 1]; box_xyxy: left, top, right, bottom in pixels of the original.

    attention: where its query looked, None unless that was asked for
    """

    label: str
    class_id: int
    score: float
    box_xyxy: tuple[float, float, float, float]
    attention: Attention | None = None


@dataclass(frozen=True)
class Detections:
    """The objects of one image, highest score first. size, canvas: as of a Classification."""

    size: tuple[int, int]
    canvas: tuple[int, int]
    detections: tuple[Detection, ...]


@dataclass(frozen=True)
class Embedding:
    """cls: (dim,) float32; patches: (rows, columns, dim) float32; size, canvas: as of a Classification.

    attention: where the class token looked, None unless that was asked for
    """

    size: tuple[int, int]
    canvas: tuple[int, int]
    cls: NDArray[np.float32] = field(compare=False)
    patches: NDArray[np.float32] = field(compare=False)
    attention: Attention | None = None


@dataclass(frozen=True)
class Segment:
    """One object, or all of one kind of stuff. score: probability in [0, 1]

    box_xyxy: edges of its mask, left, top, right, bottom in pixels of the original; mask: at the original's size
    """

    label: str
    class_id: int
    score: float
    box_xyxy: tuple[float, float, float, float]
    mask: Mask


@dataclass(frozen=True)
class Segmentation:
    """The segments of one image, highest score first; no two overlap, and some pixels may belong to none.

    size, canvas: as of a Classification
    """

    size: tuple[int, int]
    canvas: tuple[int, int]
    segments: tuple[Segment, ...]


Result = Classification | Detections | Embedding | Segmentation


def sizes_of(geometry: Geometry) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) of the original and of the canvas."""
    (height, width), (canvas_height, canvas_width) = geometry.original_size, geometry.canvas_size
    return (width, height), (canvas_width, canvas_height)


def check_finite(array: NDArray[Any], name: str) -> None:
    """Raises EngineError: an answer of NaN is none, and NaN scores would silently look like an empty picture."""
    if not np.isfinite(array).all():
        raise EngineError(f"the model's {name} for this image are NaN or infinite; run `ferryman verify` on its bundle")


def check_outputs(outputs: Outputs) -> None:
    """Raises EngineError as `check_finite`, for all outputs of a batch; reads each once and allocates nothing."""
    for name, array in outputs.items():
        if array.dtype.kind != "f":
            continue
        # Of what is not finite the total never is; of what is finite it may not be.
        if array.size > _MANY:
            with np.errstate(over="ignore", invalid="ignore"):
                total = array.sum()
        else:  # BLAS takes more threads for more values, and warns of nothing
            flat = array.reshape(-1)
            total = np.vdot(flat, flat)
        if not isfinite(total):
            check_finite(array, name)


def check_explains(spec: ModelSpec, model: str) -> None:
    """Raises UsageError unless the model's graph answers where it looked. model: its name"""
    if not spec.explains:
        raise UsageError(
            f"{model} was exported without attention maps; export it with `ferryman export --explain` (ViT and DINOv2, "
            "DETR without masks) to see where it looks",
            "explain",
        )


def classification_from_outputs(
    outputs: Outputs,
    index: int,
    geometry: Geometry,
    spec: ModelSpec,
    top_k: int = DEFAULT_TOP_K,
    explain: bool = False,
) -> Classification:
    """Answer for image `index` of a batch; top_k is clamped to the number of classes.

    explain: with the attention, which the spec must have (`check_explains`)
    """
    probabilities = outputs["probabilities"][index]
    check_finite(probabilities, "probabilities")
    best = np.argsort(-probabilities, kind="stable")[: max(1, top_k)]
    predictions = tuple(Prediction(spec.labels[i], int(i), float(probabilities[i])) for i in best)
    return Classification(*sizes_of(geometry), predictions, _attention(outputs, index, geometry) if explain else None)


def detections_from_outputs(
    outputs: Outputs,
    index: int,
    geometry: Geometry,
    spec: ModelSpec,
    score_threshold: float = DEFAULT_SCORE_THRESHOLD,
    explain: bool = False,
) -> Detections:
    """Answer for image `index` of a batch: the queries whose score is at least `score_threshold`.

    explain: see `classification_from_outputs`
    """
    scores = outputs["scores"][index]
    check_finite(scores, "scores")
    check_finite(outputs["boxes"][index], "boxes")
    kept = np.flatnonzero(scores >= score_threshold)
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    boxes = geometry.boxes_to_original(outputs["boxes"][index][kept].astype(np.float32))
    labels = outputs["labels"][index][kept]
    attention: list[Attention | None] = [None] * len(kept)
    if explain:
        check_finite(outputs["attention"][index], "attention maps")
        attention = [Attention.of(grid, geometry) for grid in outputs["attention"][index][kept]]
    return Detections(
        *sizes_of(geometry),
        tuple(
            Detection(
                spec.labels[int(label)],
                int(label),
                float(score),
                (float(x1), float(y1), float(x2), float(y2)),
                looked,
            )
            for label, score, (x1, y1, x2, y2), looked in zip(labels, scores[kept], boxes, attention, strict=True)
        ),
    )


def embedding_from_outputs(outputs: Outputs, index: int, geometry: Geometry, explain: bool = False) -> Embedding:
    """Answer for image `index` of a batch. explain: see `classification_from_outputs`"""
    cls, patches = outputs["cls"][index], outputs["patches"][index]
    check_finite(cls, "class token")
    check_finite(patches, "patches")
    attention = _attention(outputs, index, geometry) if explain else None
    return Embedding(*sizes_of(geometry), cls.astype(np.float32), patches.astype(np.float32), attention)


def _attention(outputs: Outputs, index: int, geometry: Geometry) -> Attention:
    """Where the model looked in the picture as a whole."""
    grid = outputs["attention"][index]
    check_finite(grid, "attention maps")
    return Attention.of(grid, geometry)
