"""Frozen facts about models: tensors, preprocessing, task. Validated when built; no input or output here."""

import re
from collections.abc import Mapping
from functools import cached_property, partial
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Task = Literal["classification", "detection", "embedding", "segmentation", "semantic-segmentation"]
DType = Literal["uint8", "int32", "int64", "float16", "float32"]
# Whose models answer what is asked of them: with objects' boxes, with segments.
DETECTING: tuple[Task, ...] = ("detection", "segmentation")
SEGMENTING: tuple[Task, ...] = ("segmentation", "semantic-segmentation")
MAX_MAP_CLASSES = 256  # a semantic map holds a class a byte
Fraction = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, le=16384)]


class Facts(BaseModel):
    """Base of all facts: frozen, compared by value; unknown fields, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TensorSpec(Facts):
    """One input or output of a graph. `shape` holds fixed sizes and names of dynamic dimensions."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    dtype: DType
    shape: tuple[Annotated[int, Field(ge=1)] | str, ...]


class PreprocessSpec(Facts):
    """How a picture becomes the graph's `image`: one uint8 canvas of `size`, RGB.

    size: (height, width) of the canvas in pixels
    fit: what the resize does to a picture of another aspect ratio
        stretch  both sides to the canvas's, or to `stretch_to` and the centre is cut out; the aspect ratio changes
        crop     the shorter side to `shortest_edge`, then the centre is cut out
        pad      the largest size that fits, at the top left; `pad_value` fills the rest
    shortest_edge: in pixels, for `crop` alone; at least the canvas's longer side
    stretch_to: (height, width) in pixels, for `stretch` alone; each at least the canvas's
    crop_rounding: of half a pixel at the crop's top left, down as transformers does, or to even as torchvision does
    interpolation: Pillow's kernel of that name; shrinking is antialiased
    mean, std: per RGB channel, of pixel values scaled to [0, 1]; applied inside the graph
    """

    size: tuple[Side, Side]
    fit: Literal["stretch", "crop", "pad"]
    shortest_edge: Side | None = None
    stretch_to: tuple[Side, Side] | None = None
    crop_rounding: Literal["down", "even"] = "down"
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
        if self.stretch_to is not None:
            if self.fit != "stretch":
                raise ValueError("stretch_to belongs to fit='stretch' and to nothing else")
            if self.stretch_to[0] < self.size[0] or self.stretch_to[1] < self.size[1]:
                raise ValueError(f"stretch_to {self.stretch_to} is below the canvas of {self.size}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0, got {self.std}")
        if not all(0 <= value <= 255 for value in self.pad_value):
            raise ValueError(f"pad_value must lie in 0..255, got {self.pad_value}")
        return self


class ModelSpec(Facts):
    """What a model takes and answers: the graph contract for its task, its preprocessing, its labels.

    labels: one name a class, without the "no object" class; empty for embeddings
    stuff: for segmentation, the classes that have no instances (sky, grass): one segment each in a picture
    ranked: a detector's answers are its best pairs of a query and a class, not one a query; see `_CONTRACT`
    """

    task: Task
    preprocess: PreprocessSpec
    labels: tuple[str, ...]
    stuff: tuple[Annotated[int, Field(ge=0)], ...] = ()
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranked: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.task == "embedding") == bool(self.labels):
            raise ValueError(f"{self.task} with {len(self.labels)} labels")
        crops = self.preprocess.fit == "crop" or self.preprocess.stretch_to is not None
        if self.task in DETECTING and crops:
            raise ValueError(f"{self.task} needs fit='pad', or 'stretch' to the canvas: a crop would lose objects")
        if self.ranked and self.task != "detection":
            raise ValueError(f"ranked answers belong to detection, not to {self.task}")
        if self.stuff and (self.task != "segmentation" or max(self.stuff) >= len(self.labels)):
            raise ValueError(f"stuff must be classes of a segmentation model, got {self.stuff} for {self.task}")
        if self.task == "semantic-segmentation" and crops:
            raise ValueError("semantic-segmentation needs a fit that cuts nothing away: every pixel gets a class")
        if self.task == "semantic-segmentation" and len(self.labels) > MAX_MAP_CLASSES:
            raise ValueError(f"a semantic map holds up to {MAX_MAP_CLASSES} classes, got {len(self.labels)}")
        height, width = self.preprocess.size
        classes = len(self.labels)
        sizes: dict[str, int | str] = {"batch": "batch", "height": height, "width": width, "classes": classes}
        sizes["classes + 1"] = classes if self.ranked else classes + 1
        takes, answers = _CONTRACT[self.task]
        if self.explains and self.task in _ATTENTION and not self.ranked:
            answers = (*answers, _ATTENTION[self.task])
        for kind, tensors, contract in (("inputs", self.inputs, takes), ("outputs", self.outputs, answers)):
            if len(tensors) != len(contract) or not all(map(partial(_fits, sizes=sizes), tensors, contract)):
                known = ", ".join(f"{name} {size}" for name, size in sizes.items() if name != size)
                raise ValueError(
                    f"{kind} of {self.task} must be {_describe(contract)} with {known}; got {_describe(tensors)}"
                )
        return self

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.inputs)

    @cached_property
    def output_names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.outputs)

    @cached_property
    def output_dtypes(self) -> Mapping[str, DType]:
        return {tensor.name: tensor.dtype for tensor in self.outputs}

    @property
    def explains(self) -> bool:
        """Whether the graph also answers where the model looked; see `_ATTENTION`."""
        return "attention" in self.output_names


def _tensor(name: str, dtype: DType, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


# The graph contract: inputs and outputs of each task. A dimension's name stands for one size throughout.
# A detector that scores each class by itself (sigmoid) has no "no object" class: its `classes + 1` is `classes`, and
# its answers are ranked, best first, over all pairs of a query and a class. "queries" then counts those answers; each
# repeats its query's logits and box, so that logits[i, labels[i]] is the logit of scores[i].
_IMAGE = _tensor("image", "uint8", "batch", "height", "width", 3)
_VALID_SIZE = _tensor("valid_size", "int32", "batch", 2)
_DETECTIONS = (
    _tensor("logits", "float32", "batch", "queries", "classes + 1"),
    _tensor("boxes", "float32", "batch", "queries", 4),
    _tensor("scores", "float32", "batch", "queries"),
    _tensor("labels", "int64", "batch", "queries"),
)
_CONTRACT: dict[Task, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]] = {
    "classification": (
        (_IMAGE,),
        (_tensor("logits", "float32", "batch", "classes"), _tensor("probabilities", "float32", "batch", "classes")),
    ),
    "detection": (
        (_IMAGE, _VALID_SIZE),
        _DETECTIONS,
    ),
    # masks: logits at the mask head's own stride. Probabilities in a byte would be a tie wherever two queries are
    # sure of a pixel; upsampling and merging them is cheaper outside, where the unlikely queries are gone.
    "segmentation": (
        (_IMAGE, _VALID_SIZE),
        (*_DETECTIONS, _tensor("masks", "float16", "batch", "queries", "rows", "columns")),
    ),
    # The best class of every pixel of the canvas, and its probability.
    "semantic-segmentation": (
        (_IMAGE,),
        (
            _tensor("classes", "uint8", "batch", "height", "width"),
            _tensor("confidences", "float16", "batch", "height", "width"),
        ),
    ),
    "embedding": (
        (_IMAGE,),
        (_tensor("cls", "float32", "batch", "dim"), _tensor("patches", "float32", "batch", "rows", "columns", "dim")),
    ),
}

# Of some tasks, last where it is there: the weights of the last attention, the mean over its heads, on the grid of
# cells that covers the canvas. Of a picture as a whole, or of each query; in [0, 1], and at most 1 in all: what a class
# token gives to itself and to registers is left out. Ranked answers repeat queries and have none.
_ATTENTION: dict[Task, TensorSpec] = {
    "classification": _tensor("attention", "float32", "batch", "rows", "columns"),
    "embedding": _tensor("attention", "float32", "batch", "rows", "columns"),
    "detection": _tensor("attention", "float32", "batch", "queries", "rows", "columns"),
}


def _fits(tensor: TensorSpec, contract: TensorSpec, sizes: dict[str, int | str]) -> bool:
    """Whether a tensor is what the contract says; `sizes` of named dimensions grow with the first use of each."""
    if (tensor.name, tensor.dtype, len(tensor.shape)) != (contract.name, contract.dtype, len(contract.shape)):
        return False
    return all(
        size == (sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted)
        for size, wanted in zip(tensor.shape, contract.shape, strict=True)
    )


def _describe(tensors: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{t.name} {t.dtype} ({', '.join(map(str, t.shape))})" for t in tensors) or "none"


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


def detection_spec(
    preprocess: PreprocessSpec, labels: tuple[str, ...], queries: int, *, ranked: bool = False
) -> ModelSpec:
    """The graph contract of a detector with these labels and that many queries.

    ranked: of one with sigmoid scores, whose `queries` are its best pairs of a query and a class
    """
    scored = len(labels) + (not ranked)
    return ModelSpec(
        task="detection",
        preprocess=preprocess,
        labels=labels,
        inputs=(_image(preprocess), _VALID_SIZE),
        outputs=_detections(queries, scored),
        ranked=ranked,
    )


def embedding_spec(preprocess: PreprocessSpec, dim: int, grid: tuple[int, int]) -> ModelSpec:
    """The graph contract of an encoder of that width and grid of patches, (rows, columns)."""
    return ModelSpec(
        task="embedding",
        preprocess=preprocess,
        labels=(),
        inputs=(_image(preprocess),),
        outputs=(
            TensorSpec(name="cls", dtype="float32", shape=("batch", dim)),
            TensorSpec(name="patches", dtype="float32", shape=("batch", *grid, dim)),
        ),
    )


def segmentation_spec(
    preprocess: PreprocessSpec,
    labels: tuple[str, ...],
    queries: int,
    grid: tuple[int, int],
    stuff: tuple[int, ...] = (),
) -> ModelSpec:
    """The graph contract of a detector whose queries have masks of (rows, columns). stuff: see ModelSpec."""
    masks = TensorSpec(name="masks", dtype="float16", shape=("batch", queries, *grid))
    return ModelSpec(
        task="segmentation",
        preprocess=preprocess,
        labels=labels,
        stuff=stuff,
        inputs=(_image(preprocess), _VALID_SIZE),
        outputs=(*_detections(queries, len(labels) + 1), masks),
    )


def semantic_spec(preprocess: PreprocessSpec, labels: tuple[str, ...]) -> ModelSpec:
    """The graph contract of a model that gives every pixel of the canvas one of these classes."""
    shape = ("batch", *preprocess.size)
    return ModelSpec(
        task="semantic-segmentation",
        preprocess=preprocess,
        labels=labels,
        inputs=(_image(preprocess),),
        outputs=(
            TensorSpec(name="classes", dtype="uint8", shape=shape),
            TensorSpec(name="confidences", dtype="float16", shape=shape),
        ),
    )


def add_attention(spec: ModelSpec, grid: tuple[int, int]) -> ModelSpec:
    """The same contract with the `attention` output on a grid of (rows, columns).

    Raises ValueError for a task that has none, for ranked answers, and for another grid than an embedding's patches.
    """
    queries = spec.outputs[0].shape[1:2] if spec.task == "detection" else ()
    attention = _tensor("attention", "float32", "batch", *queries, *grid)
    facts = {name: getattr(spec, name) for name in ModelSpec.model_fields}
    return ModelSpec.model_validate(facts | {"outputs": (*spec.outputs, attention)})


def _detections(queries: int, scored: int) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec(name="logits", dtype="float32", shape=("batch", queries, scored)),
        TensorSpec(name="boxes", dtype="float32", shape=("batch", queries, 4)),
        TensorSpec(name="scores", dtype="float32", shape=("batch", queries)),
        TensorSpec(name="labels", dtype="int64", shape=("batch", queries)),
    )


def _image(preprocess: PreprocessSpec) -> TensorSpec:
    return TensorSpec(name="image", dtype="uint8", shape=("batch", *preprocess.size, 3))


# A target names files and folders: nothing in it may lead elsewhere.
_WORD, _PRECISION = "[a-z0-9]+", "fp32|fp16|bf16|int8|fp8"
_TARGET = re.compile(f"({_WORD})-({_WORD})-({_PRECISION})")


class Target(Facts):
    """Runtime, device and precision of a variant; written `onnxruntime-cpu-fp32`."""

    runtime: Annotated[str, Field(pattern=f"^({_WORD})$")]
    device: Annotated[str, Field(pattern=f"^({_WORD})$")]
    precision: Annotated[str, Field(pattern=f"^({_PRECISION})$")]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError when `text` is not RUNTIME-DEVICE-PRECISION."""
        match = _TARGET.fullmatch(text)
        if match is None:
            raise ValueError(f"target {text!r} is not RUNTIME-DEVICE-PRECISION, such as onnxruntime-cpu-fp32")
        return cls(runtime=match[1], device=match[2], precision=match[3])

    def __str__(self) -> str:
        return f"{self.runtime}-{self.device}-{self.precision}"
