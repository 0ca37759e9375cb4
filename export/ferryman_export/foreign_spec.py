"""`--onnx-spec FILE`: what someone else's ONNX file takes and answers, as its user wrote it down."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ferryman.specs import Facts, PreprocessSpec


class ForeignInput(Facts):
    """name: of the graph's input that takes the image, the only one
    layout: (batch, 3, height, width) or (batch, height, width, 3), RGB; dtype: of its values
    normalize: whether the preprocessing's mean and deviation must be applied before it; otherwise it gets pixel values
    of 0 to 255
    """

    name: str
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "uint8"] = "float32"
    normalize: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.normalize and self.dtype == "uint8":
            raise ValueError("normalised values are no uint8: set normalize to false or dtype to float32")
        return self


class ClassificationOutputs(Facts):
    """logits: name of the output (batch, classes), before any softmax."""

    logits: str


class DetectionOutputs(Facts):
    """logits: name of the output with the class scores before softmax or sigmoid, (batch, queries, classes), for
    softmax (batch, queries, classes + 1) where `no_object` is the index of "no object"
    boxes: name of the output (batch, queries, 4)
    box_unit: what 1 is: the whole image's width and height, or a pixel of it
    """

    logits: str
    boxes: str
    scores: Literal["softmax", "sigmoid"]
    no_object: Annotated[int, Field(ge=0)] | None = None
    box_format: Literal["cxcywh", "xyxy"]
    box_unit: Literal["image", "pixel"]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.scores == "softmax") != (self.no_object is not None):
            raise ValueError("no_object belongs to scores='softmax' and to nothing else")
        return self


class ForeignSpec(Facts):
    """The whole file; task and outputs must fit each other."""

    task: Literal["classification", "detection"]
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    preprocess: PreprocessSpec
    input: ForeignInput
    outputs: DetectionOutputs | ClassificationOutputs

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.outputs, DetectionOutputs) != (self.task == "detection"):
            raise ValueError(f"the outputs are not those of {self.task}")
        if isinstance(self.outputs, DetectionOutputs):
            if (self.outputs.no_object or 0) > len(self.labels):
                raise ValueError(f"no_object {self.outputs.no_object} is not among {len(self.labels) + 1} classes")
            if self.preprocess.fit != "pad":
                raise ValueError("detection needs fit='pad': boxes are relative to the valid area")
        return self
