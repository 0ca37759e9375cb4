"""From outputs to segments: merging of stuff, specks, padding, maps of classes, and answers that are none."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ferryman.drawing import draw_segmentation
from ferryman.errors import EngineError
from ferryman.golden import GoldenSamples, Tensors
from ferryman.mask_parity import compare_all_masks, compare_masks
from ferryman.parity import TOLERANCES, check_parity
from ferryman.preprocess import Geometry, fit_image
from ferryman.results import Segmentation
from ferryman.segmenting import segmentation_from_outputs
from ferryman.specs import ModelSpec, PreprocessSpec, segmentation_spec, semantic_spec

LABELS = ("cat", "dog", "sky")
CANVAS, GRID = (32, 32), (8, 8)
PANOPTIC = segmentation_spec(PreprocessSpec(size=CANVAS, fit="pad"), LABELS, 4, GRID, stuff=(2,))
SEMANTIC = semantic_spec(PreprocessSpec(size=CANVAS, fit="stretch"), LABELS)
WHOLE = Geometry(CANVAS, CANVAS, (0.0, 0.0, 32.0, 32.0), CANVAS)
TOLERANCE = TOLERANCES["fp32"]


def queries(*facts: tuple[int, float, tuple[slice, slice]], background: float = -4.0) -> dict[str, NDArray[Any]]:
    """Outputs of one image: per query its class (3 for no object), score, and the cells that are its own."""
    count = len(facts)
    logits = np.full((1, count, 4), 0.0, dtype=np.float32)
    masks = np.full((1, count, *GRID), background, dtype=np.float16)
    for query, (label, _, (rows, columns)) in enumerate(facts):
        logits[0, query, label] = 3.0
        masks[0, query, rows, columns] = 4.0 + query / 64
    return {
        "logits": logits,
        "boxes": np.zeros((1, count, 4), dtype=np.float32),
        "scores": np.array([[score for _, score, _ in facts]], dtype=np.float32),
        "labels": np.array([[min(label, 2) for label, _, _ in facts]], dtype=np.int64),
        "masks": masks,
    }


LEFT, RIGHT = (slice(None), slice(0, 4)), (slice(None), slice(4, 8))
TOP_LEFT, BOTTOM_LEFT = (slice(0, 4), slice(0, 4)), (slice(4, 8), slice(0, 4))
NOWHERE = (slice(0, 0), slice(0, 0))


def answer(outputs: dict[str, Any], geometry: Geometry = WHOLE, spec: ModelSpec = PANOPTIC, **k: Any) -> Segmentation:
    found = segmentation_from_outputs(outputs, 0, geometry, spec, **k)
    overlaps = sum((segment.mask.to_array().astype(int) for segment in found.segments), np.zeros((1, 1), int))
    assert overlaps.max() <= 1
    return found


def facts(found: Segmentation) -> list[tuple[str, float, int]]:
    return [(s.label, round(s.score, 2), s.mask.area) for s in found.segments]


def test_things_stay_apart_and_stuff_becomes_one() -> None:
    things = queries((0, 0.9, TOP_LEFT), (0, 0.95, BOTTOM_LEFT), (1, 0.99, RIGHT))
    assert facts(answer(things)) == [("dog", 0.99, 512), ("cat", 0.95, 256), ("cat", 0.9, 256)]
    stuff = queries((2, 0.9, TOP_LEFT), (2, 0.95, BOTTOM_LEFT), (1, 0.99, RIGHT))
    found = answer(stuff)
    assert facts(found) == [("dog", 0.99, 512), ("sky", 0.95, 512)]
    assert found.segments[1].box_xyxy == (0.0, 0.0, 16.0, 32.0)
    assert found.size == (32, 32)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(None, ["dog"]), (0.5, ["dog", "cat"]), (0.0, ["dog", "cat"]), (1.0, [])],
)
def test_threshold_and_no_object(threshold: float | None, expected: list[str]) -> None:
    outputs = queries((0, 0.6, LEFT), (1, 0.9, RIGHT), (3, 0.84, LEFT))
    assert [segment.label for segment in answer(outputs, score_threshold=threshold).segments] == expected


def test_specks_go_to_the_next_strongest() -> None:
    """A picture of the masks' own size: the speck's four pixels are dropped, five would stay."""
    small = Geometry(GRID, CANVAS, (0.0, 0.0, 8.0, 8.0), CANVAS)
    speck = queries((0, 0.9, (slice(None), slice(None))), (1, 0.95, (slice(0, 2), slice(0, 2))))
    assert facts(answer(speck, small)) == [("cat", 0.9, 64)]
    larger = queries((0, 0.9, (slice(None), slice(None))), (1, 0.95, (slice(0, 1), slice(0, 5))))
    assert facts(answer(larger, small)) == [("dog", 0.95, 5), ("cat", 0.9, 59)]
    # Two halves of the sky stay one while the speck between them goes, which the authors' code would part.
    sky = queries((2, 0.9, LEFT), (2, 0.95, RIGHT), (1, 0.99, (slice(0, 2), slice(3, 5))))
    assert facts(answer(sky, small)) == [("sky", 0.95, 64)]
    only = queries((0, 0.9, NOWHERE))
    assert facts(answer(only, Geometry((2, 2), CANVAS, (0.0, 0.0, 2.0, 2.0), CANVAS))) == []


@pytest.mark.parametrize("size", [(40, 16), (16, 40), (1, 1), (300, 7)], ids=str)
def test_padding_is_left_out(size: tuple[int, int]) -> None:
    """The right half of the picture, whatever part of the canvas that is."""
    width, height = size
    _, geometry = fit_image(Image.new("RGB", size), PANOPTIC.preprocess)
    valid_width = geometry.valid_size[1]
    x = (np.arange(8) + 0.5) * 4
    right = np.broadcast_to(np.where(x > valid_width / 2, 4.0, -4.0), GRID)
    outputs = queries((0, 0.9, NOWHERE), (1, 0.95, NOWHERE))
    outputs["masks"][0] = np.stack((-right, right))
    found = answer(outputs, geometry)
    assert found.size == size
    area = sum(segment.mask.area for segment in found.segments)
    assert area == (width * height if width * height > 4 else 0)
    if width > 8 and valid_width >= 16:
        # Within a cell of the middle.
        assert found.segments[0].box_xyxy[0] == pytest.approx(width / 2, abs=4 * width / valid_width)


def test_map_of_classes() -> None:
    classes = np.zeros((1, *CANVAS), dtype=np.uint8)
    classes[0, :, 16:] = 2
    confidences = np.full((1, *CANVAS), 0.75, dtype=np.float16)
    confidences[0, :, 16:] = 0.5
    outputs = {"classes": classes, "confidences": confidences}
    wide = Geometry((10, 100), CANVAS, (0.0, 0.0, 100.0, 10.0), CANVAS)
    assert facts(answer(outputs, wide, SEMANTIC)) == [("cat", 0.75, 500), ("sky", 0.5, 500)]
    assert facts(answer(outputs, wide, SEMANTIC, score_threshold=0.6)) == [("cat", 0.75, 500)]
    confidences[0, 0, 0] = np.nan
    with pytest.raises(EngineError, match="confidences for this image are NaN"):
        answer(outputs, wide, SEMANTIC)


@pytest.mark.parametrize("name", ["scores", "masks"])
def test_nan_is_no_answer(name: str) -> None:
    outputs = queries((0, 0.9, LEFT), (1, 0.95, RIGHT))
    outputs[name][0, 0] = np.nan
    if name == "masks":
        outputs["scores"][0, 0] = 0.95
    with pytest.raises(EngineError, match=f"the model's {name} for this image are NaN"):
        answer(outputs)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (40, 30), (2000, 8), (8, 2000)], ids=str)
def test_drawing(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (90, 90, 90))
    height_width = (size[1], size[0])
    geometry = Geometry(height_width, CANVAS, (0.0, 0.0, float(size[0]), float(size[1])), CANVAS)
    found = segmentation_from_outputs(queries((0, 0.9, LEFT), (1, 0.95, RIGHT)), 0, geometry, PANOPTIC)
    drawn = draw_segmentation(picture, found)
    assert drawn.width >= size[0]
    assert drawn.height >= size[1]
    if found.segments:
        assert len(np.unique(np.asarray(drawn).reshape(-1, 3), axis=0)) > 2


def single(outputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: array[0] for name, array in outputs.items()}


def test_parity_of_masks() -> None:
    wanted = single(queries((0, 0.9, LEFT), (1, 0.95, RIGHT), (1, 0.1, NOWHERE)))
    assert compare_masks(wanted, wanted, TOLERANCE) == (1.0, 1.0)
    # Query 0 loses a row to query 1: 4 of 64 cells go to another, and its mask loses what the other's gains.
    masks = wanted["masks"].copy()
    masks[0, 0, :4], masks[1, 0, :4] = -4, 5
    pixels, iou = compare_masks(wanted | {"masks": masks}, wanted, TOLERANCE)
    assert (pixels, iou) == (60 / 64, 60 / 68)
    # A tie within the rounding of float16 is none of the variant's faults, nor is a query of no consequence.
    tied = {**wanted, "masks": wanted["masks"].copy()}
    tied["masks"][1, :, 0] = tied["masks"][0, :, 0]
    other = {**tied, "masks": tied["masks"].copy()}
    other["masks"][1, :, 0] += np.float16(0.004)
    other["masks"][2] = 9
    assert compare_masks(other, tied, TOLERANCE) == (1.0, 1.0)
    nothing = {**wanted, "scores": wanted["scores"] * 0}
    assert compare_masks(other, nothing, TOLERANCE) == (1.0, 1.0)
    references = {name: array[None] for name, array in wanted.items()}
    found = [("sample a (batch 1, slot 0)", 0, wanted), ("sample a (batch 2, slot 1)", 0, wanted | {"masks": masks})]
    pixels, iou, problems = compare_all_masks(found, references, TOLERANCE)
    assert (pixels, iou) == (60 / 64, 60 / 68)
    assert problems == [
        "93.7500% of the pixels agree at sample a (batch 2, slot 1), fewer than 99.9000%",
        "the masks' IoU is 0.8824 at sample a (batch 2, slot 1), below 0.99",
    ]


def test_parity_report() -> None:
    """Of a variant that shifts every mask by a cell."""
    outputs = queries((0, 0.9, LEFT), (1, 0.95, RIGHT), (2, 0.9, TOP_LEFT), (1, 0.1, NOWHERE))
    count = 3
    inputs = {
        "image": np.zeros((count, *CANVAS, 3), dtype=np.uint8),
        "valid_size": np.full((count, 2), 32, dtype=np.int32),
    }
    golden = GoldenSamples(tuple("abc"), inputs, {k: np.repeat(v, count, axis=0) for k, v in outputs.items()})

    def run(batch: Tensors) -> Tensors:
        return {name: np.repeat(array, len(batch["image"]), axis=0) for name, array in outputs.items()}

    def shift(batch: Tensors) -> Tensors:
        answers = run(batch)
        return answers | {"masks": np.roll(answers["masks"], 1, axis=-1)}

    report = check_parity(run, golden, PANOPTIC, TOLERANCE, "toy", "1")
    assert report.passed
    assert (report.matched_detections, report.pixel_agreement, report.mask_iou) == (1.0, 1.0, 1.0)
    report = check_parity(shift, golden, PANOPTIC, TOLERANCE, "toy", "1")
    assert (report.matched_detections, report.passed) == (1.0, False)
    first, *_, pixels, iou = report.failures
    assert first.startswith("output masks, sample")
    assert "the logits agree and what is made of them does not: look at the mask head" in first
    assert "of the pixels agree at sample a (batch 1, slot 0), fewer than" in pixels
    assert iou.startswith("the masks' IoU is")


def test_parity_of_maps() -> None:
    wanted = {"classes": np.zeros((10, 10), dtype=np.uint8)}
    found = {"classes": np.eye(10, dtype=np.uint8)}
    assert compare_masks(found, wanted, TOLERANCE) == (0.9, None)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(
            lambda: semantic_spec(PreprocessSpec(size=(32, 32), fit="crop", shortest_edge=40), LABELS),
            "cuts nothing away",
            id="crop",
        ),
        pytest.param(
            lambda: semantic_spec(PreprocessSpec(size=(32, 32), fit="pad"), tuple(map(str, range(257)))),
            "up to 256 classes, got 257",
            id="classes",
        ),
        pytest.param(
            lambda: segmentation_spec(PreprocessSpec(size=(32, 32), fit="crop", shortest_edge=32), LABELS, 4, GRID),
            "segmentation needs fit='pad', or 'stretch'",
            id="fit",
        ),
        pytest.param(
            lambda: segmentation_spec(PreprocessSpec(size=(32, 32), fit="pad"), LABELS, 4, GRID, stuff=(3,)),
            "stuff must be classes of a segmentation model",
            id="stuff",
        ),
    ],
)
def test_specs_that_can_not_be(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
