"""How far two answers agree on which pixels belong to what."""

from collections.abc import Sequence

import numpy as np

from ferryman.golden import Tensors
from ferryman.manifest import Tolerance

# Of the largest magnitude of a picture's masks: where two queries are as near as this, or a query as near to 0,
# either answer is right. It is twice what float16 leaves of them.
NEAR_TIE = 2e-3


def compare_masks(answer: Tensors, reference: Tensors, tolerance: Tolerance) -> tuple[float, float | None]:
    """The share of pixels that both give to the same query or class, and the IoU of all masks together.

    answer, reference: of one image, a map's `classes`, or the `masks` of queries, of which those are compared that
    score above the tolerance's threshold; both at the resolution that the graph answers in
    The masks are compared together, not one by one: a single pixel of a mask of three would be a third of it.
    Returns 1 and 1 where the reference has no such query; a map has no IoU.
    """
    if "classes" in reference:
        return float((answer["classes"] == reference["classes"]).mean()), None
    kept = np.flatnonzero(reference["scores"] > tolerance.score_threshold)
    if not len(kept):
        return 1.0, 1.0
    found, wanted = answer["masks"][kept], reference["masks"][kept]
    found, wanted = found.astype(np.float32), wanted.astype(np.float32)
    slack = NEAR_TIE * float(np.abs(wanted).max())
    chosen = np.take_along_axis(wanted, found.argmax(axis=0)[None], axis=0)[0]
    pixels = float((chosen >= wanted.max(axis=0) - slack).mean())
    sure = np.abs(wanted) > slack
    union = int((sure & ((found > 0) | (wanted > 0))).sum())
    return pixels, int((sure & (found > 0) & (wanted > 0)).sum()) / union if union else 1.0


def compare_all_masks(
    answers: Sequence[tuple[str, int, Tensors]], references: Tensors, tolerance: Tolerance
) -> tuple[float, float | None, list[str]]:
    """The lowest agreement and IoU of any answer, and what is out of tolerance, in words.

    answers: where each was given, the sample's number, its outputs; references: arrays whose first dimension counts
    samples
    """
    lowest: tuple[float, float | None] = (1.0, None)
    pixels_at = iou_at = ""
    for where, sample, outputs in answers:
        pixels, iou = compare_masks(outputs, {name: array[sample] for name, array in references.items()}, tolerance)
        if pixels < lowest[0]:
            lowest, pixels_at = (pixels, lowest[1]), where
        if iou is not None and (lowest[1] is None or iou < lowest[1]):
            lowest, iou_at = (lowest[0], iou), where
    problems: list[str] = []
    pixels, iou = lowest
    if pixels < tolerance.pixel_agreement:
        problems.append(f"{pixels:.4%} of the pixels agree at {pixels_at}, fewer than {tolerance.pixel_agreement:.4%}")
    if iou is not None and iou < tolerance.mask_iou:
        problems.append(f"the masks' IoU is {iou:.4f} at {iou_at}, below {tolerance.mask_iou}")
    return pixels, iou, problems
