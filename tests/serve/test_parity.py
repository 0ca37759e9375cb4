"""Parity passes what is equal, and names output, sample, error and limit of what is not, with the right hint."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ferryman.errors import ParityError
from ferryman.golden import GoldenSamples, Tensors
from ferryman.manifest import Tolerance
from ferryman.parity import BATCHES, TOLERANCES, ParityReport, check_parity, count_runs
from ferryman.preprocess import preprocess_image, stack_inputs

from .toy import SPECS, make_picture, toy_reference

Spoil = Callable[[Tensors, Mapping[str, NDArray[Any]]], Tensors]
LIMIT = 1e-4
# Pictures of all aspect ratios, so that the detector's canvas is padded at the right, at the foot and not at all.
PICTURES = [
    (200, 40, 30, 48, 30),
    (20, 240, 80, 30, 48),
    (90, 60, 250, 40, 40),
    (10, 10, 10, 64, 20),
    (250, 200, 40, 32, 32),
]


def make_golden(name: str, names: str = "abcde") -> GoldenSamples:
    spec = SPECS[name]
    fitted = [
        preprocess_image(make_picture((red, green, blue), width, height, seed=red), spec.preprocess)
        for red, green, blue, width, height in PICTURES
    ]
    inputs = stack_inputs([canvas for canvas, _ in fitted], [geometry for _, geometry in fitted], spec.input_names)
    return GoldenSamples(tuple(names), inputs, toy_reference(name, inputs))


GOLDEN = {name: make_golden(name) for name in SPECS}


def prove(name: str, spoil: Spoil | None = None, tolerance: Tolerance = TOLERANCES["fp32"]) -> ParityReport:
    """A runtime that computes what the toy computes, in NumPy, and then does something to it."""

    def run(inputs: Tensors) -> Tensors:
        outputs = toy_reference(name, inputs)
        return outputs if spoil is None else spoil(outputs, inputs)

    return check_parity(run, GOLDEN[name], SPECS[name], tolerance, "numpy-cpu-fp32", "1")


def add(outputs: Tensors, inputs: Mapping[str, NDArray[Any]], *, output: str, error: float) -> Tensors:
    """One value of sample c is off, wherever it stands in a batch."""
    del inputs
    reference = GOLDEN["toy-detector" if "boxes" in outputs else "toy-classifier"].outputs[output][2]
    changed = outputs[output].copy()
    for row in changed:
        if np.allclose(row, reference, atol=1e-6):
            row.flat[1] += error
    return outputs | {output: changed.astype(np.float32)}


@pytest.mark.parametrize("name", SPECS)
def test_what_is_equal_passes(name: str) -> None:
    report = prove(name)
    report.raise_for_failures()
    assert report.passed
    assert len(report.errors) == len(SPECS[name].outputs) * 5
    assert max(error.max_abs for error in report.errors) < 1e-6
    assert min(error.cosine for error in report.errors) > 0.999999
    assert report.batches == BATCHES
    task = SPECS[name].task
    assert report.top1_agreement == (1.0 if task == "classification" else None)
    assert report.matched_detections == (1.0 if task == "detection" else None)
    assert (report.detections > 0) == (task == "detection")
    assert ParityReport.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize(
    ("name", "output"), [("toy-classifier", "probabilities"), ("toy-detector", "boxes"), ("toy-detector", "scores")]
)
def test_the_limit(name: str, output: str) -> None:
    assert prove(name, partial(add, output=output, error=0.97 * LIMIT)).passed
    failed = prove(name, partial(add, output=output, error=1.03 * LIMIT))
    (first, *_) = failed.failures
    assert f"output {output}, sample c (batch 1, slot 0): max abs error 0.00010" in first
    assert "is above 0.0001" in first
    wrong = [(error.output, error.sample) for error in failed.errors if not error.passed]
    assert wrong == [(output, "c")]
    with pytest.raises(ParityError, match=f"numpy-cpu-fp32 at 32x32 is out of tolerance: output {output}, sample c"):
        failed.raise_for_failures()


def test_an_error_just_above_the_limit_does_not_read_like_the_limit() -> None:
    (first, *_) = prove("toy-classifier", partial(add, output="probabilities", error=1.001 * LIMIT)).failures
    error, limit = first.split("max abs error ")[1].split(" - ")[0].split(" is above ")
    assert float(error) > float(limit)


def test_logits_are_recorded_without_limit() -> None:
    report = prove("toy-classifier", partial(add, output="logits", error=0.01))
    assert report.passed
    worst = max((error for error in report.errors if error.output == "logits"), key=lambda error: error.max_abs)
    assert worst.max_abs == pytest.approx(0.01, rel=1e-3)
    assert (worst.sample, worst.limit) == ("c", None)


def _set(output: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Spoil:
    return lambda outputs, inputs: outputs | {output: change(outputs[output])}


def _swap(order: tuple[int, ...]) -> Spoil:
    return _set("boxes", lambda boxes: boxes[..., order])


def _to_centres(boxes: NDArray[Any]) -> NDArray[Any]:
    corners = boxes.astype(np.float32)
    first, second = corners[..., :2], corners[..., 2:]
    return np.concatenate(((first + second) / 2, second - first), axis=-1)


def _leak_between_neighbours(outputs: Tensors, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
    """As if a layer normalised over the batch."""
    del inputs
    return {
        name: (array + 0.01 * (array.mean(axis=0) - array)).astype(np.float32) if name != "labels" else array
        for name, array in outputs.items()
    }


def _only_slot_4(outputs: Tensors, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
    """Right everywhere but in the last place of a batch of five, as a kernel's tail is."""
    del inputs
    wrong = outputs["scores"].copy()
    if len(wrong) == 5:
        wrong[4] += 0.01
    return outputs | {"scores": wrong}


def _without_mask(outputs: Tensors, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
    del outputs
    whole = np.full_like(inputs["valid_size"], 32)
    return toy_reference("toy-detector", {**inputs, "valid_size": whole})


def _wrong_mean(name: str) -> Spoil:
    def spoil(outputs: Tensors, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        del outputs
        return toy_reference(name, {**inputs, "image": inputs["image"].astype(np.float32) + 40})

    return spoil


def _bgr(outputs: Tensors, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
    del outputs
    return toy_reference("toy-classifier", {"image": inputs["image"][..., ::-1]})


def _permuted(outputs: Tensors, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
    del inputs
    return {name: array[:, ::-1] for name, array in outputs.items()}


BROKEN: dict[str, tuple[str, Spoil, str, str]] = {
    "batch-dependent": (
        "toy-detector",
        _leak_between_neighbours,
        r"output (boxes|scores), sample [a-e] \(batch [25], slot \d\): max abs error",
        "right alone and wrong in a batch",
    ),
    "one slot": (
        "toy-detector",
        _only_slot_4,
        r"output scores, sample [a-e] \(batch 5, slot 4\): max abs error 0.01 is above 0.0001",
        "right alone and wrong in a batch",
    ),
    "y before x": (
        "toy-detector",
        _swap((1, 0, 3, 2)),
        "output boxes, sample",
        "the boxes' columns are swapped: y1, x1, y2, x2 where x1, y1, x2, y2 belong",
    ),
    "corners swapped": (
        "toy-detector",
        _swap((2, 3, 0, 1)),
        "output boxes, sample",
        "columns are swapped: x2, y2, x1, y1 where",
    ),
    "x before y, pairwise": (
        "toy-detector",
        _swap((0, 2, 1, 3)),
        "output boxes, sample",
        "columns are swapped: x1, x2, y1, y2 where",
    ),
    "centre and size": (
        "toy-detector",
        _set("boxes", _to_centres),
        "output boxes, sample",
        "the boxes are centre and size where x1, y1, x2, y2 belong",
    ),
    "mask dropped": ("toy-detector", _without_mask, "sample [abd]", "padding mask is dropped or wrong"),
    "wrong mean, classifier": (
        "toy-classifier",
        _wrong_mean("toy-classifier"),
        "output prob",
        "mean, deviation and layout",
    ),
    "wrong mean, detector": ("toy-detector", _wrong_mean("toy-detector"), "output ", "mean, deviation and layout"),
    "BGR": ("toy-classifier", _bgr, "output probabilities, sample", "mean, deviation and layout"),
    "probabilities of another softmax": (
        "toy-classifier",
        _set("probabilities", lambda array: np.sqrt(array.astype(np.float32))),
        "output probabilities, sample",
        "look at the postprocessing",
    ),
    "classes off by one": (
        "toy-detector",
        _set("labels", lambda array: (array + 1) % 4),
        r"matched detections 0.0000 are below 1.0: first at sample [a-e] \(batch 1, slot 0\): class",
        "look at the postprocessing",
    ),
    "no object among the classes": (
        "toy-detector",
        _set("labels", lambda array: np.full_like(array, 4)),
        r"output labels names classes outside 0..3, first at sample a \(batch 1, slot 0\)",
        '"no object" included',
    ),
    "a class below 0": (
        "toy-detector",
        _set("labels", lambda array: array - 9),
        "output labels names classes outside 0..3",
        "",
    ),
    "NaN": (
        "toy-classifier",
        lambda outputs, inputs: outputs | {"logits": np.where(outputs["logits"] > -9, np.float32(np.nan), 0)},
        r"output logits holds 4 NaN or infinite values of 4, first at sample a \(batch 1, slot 0\)",
        "",
    ),
    "NaN for a neighbour": (
        "toy-classifier",
        lambda outputs, inputs: (
            outputs
            | {
                "logits": np.where(
                    (np.arange(len(outputs["logits"])) == 3)[:, None], np.float32(np.inf), outputs["logits"]
                )
            }
        ),
        r"output logits holds 4 NaN or infinite values of 20, first at sample d \(batch 5, slot 3\)",
        "",
    ),
    "one class less": (
        "toy-classifier",
        _set("probabilities", lambda array: array[:, :-1]),
        r"output probabilities is float32 \(1, 3\) at batch 1, expected float32 \(1, 4\)",
        "",
    ),
    "batch frozen": (
        "toy-classifier",
        _set("logits", lambda array: array[:1]),
        r"output logits is float32 \(1, 4\) at batch 2, expected float32 \(2, 4\)",
        "",
    ),
    "float64": (
        "toy-classifier",
        _set("logits", lambda array: array.astype(np.float64)),
        r"output logits is float64 \(1, 4\) at batch 1, expected float32",
        "",
    ),
    "an output missing": (
        "toy-detector",
        lambda outputs, inputs: {name: array for name, array in outputs.items() if name != "scores"},
        "the outputs are boxes, labels, logits, expected logits, boxes, scores, labels",
        "",
    ),
    "an output more": (
        "toy-classifier",
        lambda outputs, inputs: outputs | {"extra": outputs["logits"]},
        "the outputs are extra, logits, probabilities, expected",
        "",
    ),
    # Queries keep their places in DETR, so outputs are compared by position and a permutation is an error,
    # although the detections as a set are all there.
    "queries in another order": ("toy-detector", _permuted, "output (boxes|scores), sample", ""),
}


@pytest.mark.parametrize(("name", "spoil", "message", "hint"), BROKEN.values(), ids=BROKEN)
def test_broken_variants(name: str, spoil: Spoil, message: str, hint: str) -> None:
    report = prove(name, spoil)
    assert not report.passed
    with pytest.raises(ParityError, match=message) as caught:
        report.raise_for_failures()
    assert hint in report.failures[0]
    assert "\n" not in str(caught.value)
    assert ParityReport.model_validate_json(report.model_dump_json()) == report


def test_a_permutation_is_no_lost_detection() -> None:
    report = prove("toy-detector", _permuted)
    assert report.matched_detections == 1.0
    assert all(failure.startswith("output") for failure in report.failures)


@pytest.mark.parametrize(("precision", "missed", "passed"), [("fp32", 1, False), ("int8", 1, True), ("int8", 2, False)])
def test_of_few_detections_one_may_be_missed_below_fp32(precision: str, missed: int, passed: bool) -> None:
    """One of 15 is more than 2 %: it may be elsewhere in every batch, and a second one may not."""
    tolerance = TOLERANCES[precision].model_copy(update={"max_abs": {}, "max_rel": {}, "score_threshold": 0.0})
    reference = GOLDEN["toy-detector"].outputs["boxes"]

    def move(outputs: Tensors, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        boxes = outputs["boxes"].copy()
        for row in boxes:
            if np.allclose(row, reference[2], atol=1e-6):
                row[:missed] = [0.9, 0.9, 0.05, 0.05]
        return outputs | {"boxes": boxes}

    report = prove("toy-detector", move, tolerance)
    assert report.matched_detections is not None
    assert 0 < report.matched_detections < 0.98
    assert report.passed is passed, report.failures


def test_top_1_alone_can_fail() -> None:
    """Probabilities within a wide limit, and still another class on top."""
    wide = TOLERANCES["fp32"].model_copy(update={"max_abs": {"probabilities": 1.0}})
    report = prove("toy-classifier", _set("probabilities", lambda array: array[:, ::-1]), wide)
    assert report.top1_agreement == 0.0
    assert len(report.failures) == 1
    assert "top-1 agreement 0.0000 is below 1.0: first at sample a (batch 1, slot 0)" in report.failures[0]
    assert "in a batch: an output depends" not in report.failures[0]


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
def test_a_reference_of_nan_proves_nothing(value: float) -> None:
    """Compared with NaN every error is NaN, and NaN is above no limit."""
    golden = GOLDEN["toy-classifier"]
    outputs = {name: array.copy() for name, array in golden.outputs.items()}
    outputs["probabilities"][3, 1] = value
    broken = GoldenSamples(golden.names, golden.inputs, outputs)
    for run in (partial(toy_reference, "toy-classifier"), lambda inputs: outputs):
        report = check_parity(run, broken, SPECS["toy-classifier"], TOLERANCES["fp32"], "t", "1", batches=(5,))
        assert "the reference: output probabilities holds 1 NaN or infinite values" in report.failures[0]
        assert "first at sample d" in report.failures[0]


def test_every_sample_stands_in_every_slot() -> None:
    seen: list[tuple[int, ...]] = []
    index = {GOLDEN["toy-classifier"].inputs["image"][i].tobytes(): i for i in range(5)}
    done: list[int] = []

    def run(inputs: Tensors) -> Tensors:
        seen.append(tuple(index[image.tobytes()] for image in inputs["image"]))
        return toy_reference("toy-classifier", inputs)

    golden, spec = GOLDEN["toy-classifier"], SPECS["toy-classifier"]
    check_parity(run, golden, spec, TOLERANCES["fp32"], "t", "1", batches=(1, 2, 7), advance=done.append)
    for batch in (1, 2, 7):
        places = [(sample, slot) for window in seen if len(window) == batch for slot, sample in enumerate(window)]
        assert sorted(places) == [(sample, slot) for sample in range(5) for slot in range(batch)]
    assert sum(done) == count_runs(5, (1, 2, 7)) == 50


def test_only_the_first_failures_are_told() -> None:
    report = prove("toy-detector", _swap((1, 0, 3, 2)))
    assert len(report.failures) == 6
    with pytest.raises(ParityError, match=r"\(and 3 more\)$") as caught:
        report.raise_for_failures()
    errors = [float(part.split(" is above")[0]) for part in str(caught.value).split("max abs error ")[1:]]
    assert errors == sorted(errors, reverse=True)  # the worst first
