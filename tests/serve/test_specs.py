"""Facts are checked when they are built; nothing wrong gets as far as a session."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from ferryman.specs import (
    ModelSpec,
    PreprocessSpec,
    Target,
    TensorSpec,
    add_attention,
    classification_spec,
    detection_spec,
)

from .toy import SPECS

WRONG_PREPROCESSING: dict[str, tuple[dict[str, Any], str]] = {
    "crop without edge": ({"fit": "crop"}, "shortest_edge belongs to fit='crop'"),
    "edge without crop": ({"fit": "pad", "shortest_edge": 32}, "shortest_edge belongs to fit='crop'"),
    "edge below the canvas": ({"fit": "crop", "shortest_edge": 31}, "shortest_edge 31 is below the canvas"),
    "no size": ({"size": (0, 32)}, "greater than or equal to 1"),
    "too large": ({"size": (32, 16385)}, "less than or equal to 16384"),
    "std of 0": ({"std": (1, 0, 1)}, "std must be above 0"),
    "std of NaN": ({"std": (1, math.nan, 1)}, "finite number"),
    "infinite mean": ({"mean": (math.inf, 0, 0)}, "finite number"),
    "grey mean": ({"mean": (0.5,)}, "Field required"),
    "padding of 256": ({"fit": "pad", "pad_value": (0, 0, 256)}, "pad_value must lie in 0..255"),
    "unknown kernel": ({"interpolation": "area"}, "'nearest', 'bilinear'"),
    "unknown field": ({"sizes": (1, 2)}, "Extra inputs are not permitted"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_PREPROCESSING.values(), ids=WRONG_PREPROCESSING)
def test_wrong_preprocessing(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PreprocessSpec.model_validate({"size": (32, 32), "fit": "stretch"} | change)


def test_the_contract_of_each_task() -> None:
    labels = ("cat", "dog")
    classifier = classification_spec(PreprocessSpec(size=(32, 48), fit="stretch"), labels)
    assert classifier.input_names == ("image",)
    assert [tensor.shape for tensor in classifier.outputs] == [("batch", 2), ("batch", 2)]
    detector = detection_spec(PreprocessSpec(size=(32, 48), fit="pad"), labels, queries=7)
    assert detector.inputs[0].shape == ("batch", 32, 48, 3)
    assert {tensor.name: tensor.shape for tensor in detector.outputs} == {
        "logits": ("batch", 7, 3),
        "boxes": ("batch", 7, 4),
        "scores": ("batch", 7),
        "labels": ("batch", 7),
    }
    ranked = detection_spec(PreprocessSpec(size=(32, 48), fit="stretch"), labels, queries=7, ranked=True)
    assert ranked.outputs[0].shape == ("batch", 7, 2)
    assert ranked.outputs[1:] == detector.outputs[1:]
    for spec in (classifier, detector, ranked, SPECS["toy-embedder"]):
        assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec


def test_attention_is_an_optional_last_output() -> None:
    for toy, shape in (
        ("toy-classifier", ("batch", 2, 3)),
        ("toy-detector", ("batch", 3, 2, 3)),
        ("toy-embedder", ("batch", 4, 4)),
    ):
        plain = SPECS[toy]
        spec = add_attention(plain, (shape[-2], shape[-1]))
        assert (plain.explains, spec.explains) == (False, True)
        assert spec.outputs == (*plain.outputs, _output("attention", *shape))
        assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec
    ranked = detection_spec(PreprocessSpec(size=(32, 48), fit="stretch"), ("cat",), queries=7, ranked=True)
    for spec, grid in ((SPECS["toy-embedder"], (4, 5)), (ranked, (2, 3)), (add_attention(DETECTOR, (2, 3)), (2, 3))):
        with pytest.raises(ValidationError, match="outputs of "):
            add_attention(spec, grid)


def _output(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec.model_validate({"name": name, "dtype": dtype, "shape": shape})


DETECTOR = SPECS["toy-detector"]
BREACHES: dict[str, tuple[str, dict[str, Any], str]] = {
    "no probabilities": ("toy-classifier", {"outputs": (_output("logits", "batch", 4),)}, "probabilities"),
    "other order": ("toy-classifier", {"outputs": SPECS["toy-classifier"].outputs[::-1]}, "must be logits"),
    "more classes than labels": (
        "toy-classifier",
        {"outputs": (_output("logits", "batch", 5), _output("probabilities", "batch", 5))},
        "classes 4",
    ),
    "no labels": ("toy-classifier", {"labels": ()}, "classification with 0 labels"),
    "another canvas": (
        "toy-classifier",
        {"preprocess": PreprocessSpec(size=(32, 33), fit="stretch")},
        "width 33",
    ),
    "float image": (
        "toy-classifier",
        {"inputs": (_output("image", "batch", 32, 32, 3),)},
        "must be image uint8",
    ),
    "fixed batch": (
        "toy-classifier",
        {"outputs": (_output("logits", 1, 4), _output("probabilities", 1, 4))},
        r"got logits float32 \(1, 4\)",
    ),
    "no mask": ("toy-detector", {"inputs": DETECTOR.inputs[:1]}, "valid_size int32"),
    "no object as a label": (
        "toy-detector",
        {"labels": (*DETECTOR.labels, "no object")},
        r"classes \+ 1 6",
    ),
    "detector that crops": (
        "toy-detector",
        {"preprocess": PreprocessSpec(size=(32, 32), fit="crop", shortest_edge=32)},
        "detection needs fit='pad', or 'stretch' to the canvas",
    ),
    "detector that stretches and crops": (
        "toy-detector",
        {"preprocess": PreprocessSpec(size=(32, 32), fit="stretch", stretch_to=(40, 40))},
        "a crop would lose objects",
    ),
    "ranked with no object": ("toy-detector", {"ranked": True}, r"classes \+ 1 4"),
    "ranked classes": ("toy-classifier", {"ranked": True}, "belong to detection, not to classification"),
    "queries that differ": (
        "toy-detector",
        {"outputs": (*DETECTOR.outputs[:2], _output("scores", "batch", 4), DETECTOR.outputs[3])},
        "queries 3",
    ),
    "attention of other queries": (
        "toy-detector",
        {"outputs": (*DETECTOR.outputs, _output("attention", "batch", 4, 2, 2))},
        r"attention float32 \(batch, queries, rows, columns\)",
    ),
    "attention first": (
        "toy-classifier",
        {"outputs": (_output("attention", "batch", 2, 2), *SPECS["toy-classifier"].outputs)},
        "must be logits",
    ),
    "boxes of 5": (
        "toy-detector",
        {"outputs": (DETECTOR.outputs[0], _output("boxes", "batch", 3, 5), *DETECTOR.outputs[2:])},
        "boxes float32",
    ),
    "embedder with labels": ("toy-embedder", {"labels": ("a",)}, "embedding with 1 labels"),
    "embedder without patches": ("toy-embedder", {"outputs": SPECS["toy-embedder"].outputs[:1]}, "patches"),
}


@pytest.mark.parametrize(("toy", "change", "message"), BREACHES.values(), ids=BREACHES)
def test_breaches_of_the_contract(toy: str, change: dict[str, Any], message: str) -> None:
    facts = {name: getattr(SPECS[toy], name) for name in ModelSpec.model_fields}
    with pytest.raises(ValidationError, match=message):
        ModelSpec.model_validate(facts | change)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "onnxruntime",
        "onnxruntime-cpu",
        "onnxruntime-cpu-fp64",
        "onnxruntime-cpu-fp32-x",
        "-cpu-fp32",
        "ONNXRuntime-cpu-fp32",
        "onnxruntime-cpu-fp32\n",
        "../onnxruntime-cpu-fp32",
    ],
)
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(ValueError, match="RUNTIME-DEVICE-PRECISION"):
        Target.parse(text)


def test_targets() -> None:
    target = Target.parse("tensorrt-gpu-fp16")
    assert (target.runtime, target.device, target.precision, str(target)) == (
        "tensorrt",
        "gpu",
        "fp16",
        "tensorrt-gpu-fp16",
    )


@pytest.mark.parametrize("field", ["runtime", "device", "precision"])
def test_no_part_of_a_target_leads_elsewhere(field: str) -> None:
    """A target names the certificate's file: out of a manifest as well it must be words."""
    facts = {"runtime": "onnxruntime", "device": "cpu", "precision": "fp32"}
    with pytest.raises(ValidationError, match="String should match pattern"):
        Target.model_validate(facts | {field: "x/../../../secret"})
