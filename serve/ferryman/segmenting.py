"""From masks of queries, or a map of classes, to the segments of the original picture."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ferryman.masks import Mask, Sampler, find_box
from ferryman.preprocess import Geometry
from ferryman.results import Outputs, Segment, Segmentation, check_finite, sizes_of
from ferryman.specs import ModelSpec

# Of DETR's queries, by default: facebookresearch/detr, models/segmentation.py, PostProcessPanoptic.
DEFAULT_QUERY_THRESHOLD = 0.85
SPECK_PIXELS = 4  # a segment of no more is dropped; the same file


def segmentation_from_outputs(
    outputs: Outputs, index: int, geometry: Geometry, spec: ModelSpec, score_threshold: float | None = None
) -> Segmentation:
    """Answer for image `index` of a batch: segments that do not overlap, highest score first.

    score_threshold: lowest score to answer; by default 0.85 for queries, and none for a map of classes
    """
    if spec.task == "segmentation":
        segments = _segments_from_queries(
            outputs,
            index,
            geometry,
            spec,
            DEFAULT_QUERY_THRESHOLD if score_threshold is None else score_threshold,
        )
    else:
        segments = _segments_from_map(outputs, index, geometry, spec, score_threshold or 0.0)
    return Segmentation(*sizes_of(geometry), tuple(sorted(segments, key=lambda segment: -segment.score)))


def _segments_from_queries(
    outputs: Outputs, index: int, geometry: Geometry, spec: ModelSpec, score_threshold: float
) -> list[Segment]:
    """DETR's panoptic merge; a stuff class's queries make one segment, with the highest of their scores."""
    logits, scores, labels = (outputs[name][index] for name in ("logits", "scores", "labels"))
    check_finite(scores, "scores")
    # A query whose best class is "no object" is none, however low the threshold.
    kept = np.flatnonzero((scores >= score_threshold) & (logits.argmax(axis=-1) < len(spec.labels)))
    masks = outputs["masks"][index][kept]
    check_finite(masks, "masks")
    sampler = Sampler.of(geometry, spec.preprocess.size)
    groups = group_stuff(labels[kept], spec.stuff)
    owners = merge_queries(masks, groups, sampler)
    segments: list[Segment] = []
    for group in np.unique(owners[owners >= 0]):
        members = kept[groups == group]
        best = members[scores[members].argmax()]
        segments.append(_segment(owners == group, int(labels[best]), float(scores[best]), spec))
    return segments


def group_stuff(labels: NDArray[np.int64], stuff: Sequence[int]) -> NDArray[np.intp]:
    """For each query the first one that it is one segment with: itself, or the first of its class if that is stuff."""
    groups = np.arange(len(labels))
    for class_id in set(labels.tolist()) & set(stuff):
        same = np.flatnonzero(labels == class_id)
        groups[same] = same[0]
    return groups


def merge_queries(masks: NDArray[np.floating], groups: NDArray[np.intp], sampler: Sampler) -> NDArray[np.intp]:
    """Every pixel's segment: the group of the query whose mask is strongest there.

    Source: Carion et al. 2020, section 4.4: the highest mask logit takes the pixel, and specks are dropped until
    there are none; their pixels go to the next strongest. Queries of one group stay together while others are
    dropped; the authors' code separates them then.

    masks: (queries, rows, columns) logits; groups: (queries,), see `group_stuff`
    Returns (height, width), -1 everywhere when there is no query.
    """
    remaining = np.arange(len(groups))
    while True:
        strongest = np.full((len(sampler.y), len(sampler.x)), -np.inf, dtype=np.float32)
        owners = np.full(strongest.shape, -1, dtype=np.intp)
        # One mask at a time: all of them at a camera's size would be gigabytes.
        for query in remaining:
            values = sampler.bilinear(masks[query])
            stronger = values > strongest
            owners[stronger] = groups[query]
            np.maximum(strongest, values, out=strongest)
        areas = np.bincount(owners[owners >= 0], minlength=len(groups))
        specks = (areas <= SPECK_PIXELS)[groups[remaining]]
        remaining, dropped = remaining[~specks], remaining[specks]
        if not areas[groups[dropped]].any():  # none, or only such as have no pixel
            return owners


def _segments_from_map(
    outputs: Outputs, index: int, geometry: Geometry, spec: ModelSpec, score_threshold: float
) -> list[Segment]:
    """A segment a class that is there; its score is the mean probability over its pixels."""
    check_finite(outputs["confidences"][index], "confidences")
    sampler = Sampler.of(geometry, spec.preprocess.size)
    classes = sampler.nearest(outputs["classes"][index])
    confidences = sampler.nearest(outputs["confidences"][index]).astype(np.float32)
    segments: list[Segment] = []
    for class_id in np.unique(classes):
        inside = classes == class_id
        score = float(confidences[inside].mean(dtype=np.float64))
        if score >= score_threshold:
            segments.append(_segment(inside, int(class_id), score, spec))
    return segments


def _segment(inside: NDArray[np.bool_], class_id: int, score: float, spec: ModelSpec) -> Segment:
    return Segment(spec.labels[class_id], class_id, score, find_box(inside), Mask.of(inside))
