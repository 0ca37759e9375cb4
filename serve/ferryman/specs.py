"""Frozen facts about models: tensors, preprocessing, task. Validated when built; no input or output here."""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Task = Literal["classification", "detection", "embedding"]
DType = Literal["uint8", "int32", "int64", "float32"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, le=16384)]


class Facts(BaseModel):
    """Base of all facts: frozen, compared by value, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(Facts):
    """One input or output of a graph. `shape` holds fixed sizes and names of dynamic dimensions."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    dtype: DType
    shape: tuple[Annotated[int, Field(ge=1)] | str, ...]


class PreprocessSpec(Facts):
    """How a picture becomes the graph's `image`: one uint8 canvas of `size`, RGB.

    size: (height, width) of the canvas in pixels
    fit: what the resize does to a picture of another aspect ratio
        stretch  both sides to the canvas's, the aspect ratio changes
        crop     the shorter side to `shortest_edge`, then the centre is cut out
        pad      the largest size that fits, at the top left; `pad_value` fills the rest
    shortest_edge: in pixels, for `crop` alone; at least the canvas's longer side
    interpolation: Pillow's kernel of that name; shrinking is antialiased
    mean, std: per RGB channel, of pixel values scaled to [0, 1]; applied inside the graph
    """

    size: tuple[Side, Side]
    fit: Literal["stretch", "crop", "pad"]
    shortest_edge: Side | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    pad_value: tuple[int, int, int] = (0, 0, 0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.fit == "crop") != (self.shortest_edge is not None):
            raise ValueError("shortest_edge belongs to fit='crop' and to nothing else")
        if self.shortest_edge is not None and self.shortest_edge < max(self.size):
            raise ValueError(f"shortest_edge {self.shortest_edge} is below the canvas of {self.size}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0, got {self.std}")
        if not all(0 <= value <= 255 for value in self.pad_value):
            raise ValueError(f"pad_value must lie in 0..255, got {self.pad_value}")
        return self


class ModelSpec(Facts):
    """What a model takes and answers: the graph contract for its task, its preprocessing, its labels.

    labels: one name a class, without the "no object" class; empty for embeddings
    """

    task: Task
    preprocess: PreprocessSpec
    labels: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.task == "embedding") == bool(self.labels):
            raise ValueError(f"{self.task} with {len(self.labels)} labels")
        if self.task == "detection" and self.preprocess.fit != "pad":
            raise ValueError("detection needs fit='pad': boxes are relative to the valid area")
        return self

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.outputs)


def classification_spec(preprocess: PreprocessSpec, labels: tuple[str, ...]) -> ModelSpec:
    """The graph contract of a classifier with these labels."""
    outputs = tuple(
        TensorSpec(name=name, dtype="float32", shape=("batch", len(labels))) for name in ("logits", "probabilities")
    )
    return ModelSpec(
        task="classification",
        preprocess=preprocess,
        labels=labels,
        inputs=(_image(preprocess),),
        outputs=outputs,
    )


def detection_spec(preprocess: PreprocessSpec, labels: tuple[str, ...], queries: int) -> ModelSpec:
    """The graph contract of a detector with these labels and that many queries."""
    return ModelSpec(
        task="detection",
        preprocess=preprocess,
        labels=labels,
        inputs=(_image(preprocess), TensorSpec(name="valid_size", dtype="int32", shape=("batch", 2))),
        outputs=(
            TensorSpec(name="logits", dtype="float32", shape=("batch", queries, len(labels) + 1)),
            TensorSpec(name="boxes", dtype="float32", shape=("batch", queries, 4)),
            TensorSpec(name="scores", dtype="float32", shape=("batch", queries)),
            TensorSpec(name="labels", dtype="int64", shape=("batch", queries)),
        ),
    )


def _image(preprocess: PreprocessSpec) -> TensorSpec:
    return TensorSpec(name="image", dtype="uint8", shape=("batch", *preprocess.size, 3))


_TARGET = re.compile(r"^([a-z0-9]+)-([a-z0-9]+)-(fp32|fp16|bf16|int8|fp8)$")


class Target(Facts):
    """Runtime, device and precision of a variant; written `onnxruntime-cpu-fp32`."""

    runtime: str
    device: str
    precision: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError when `text` is not RUNTIME-DEVICE-PRECISION."""
        match = _TARGET.match(text)
        if match is None:
            raise ValueError(f"target {text!r} is not RUNTIME-DEVICE-PRECISION, such as onnxruntime-cpu-fp32")
        return cls(runtime=match[1], device=match[2], precision=match[3])

    def __str__(self) -> str:
        return f"{self.runtime}-{self.device}-{self.precision}"
