"""An ONNX file of someone else's: its reference is ONNX Runtime on the file as it is, with NumPy around it.

PyTorch never sees it, so the manifest names its architecture "onnx".
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from ferryman.errors import CheckpointError, ExportError, UsageError
from ferryman.files import sha256_file
from ferryman.golden import Tensors
from ferryman.manifest import ONNX_ARCHITECTURE, SourceFacts
from ferryman.specs import ModelSpec, classification_spec, detection_spec
from ferryman_export.foreign_graph import build_graph
from ferryman_export.foreign_spec import DetectionOutputs, ForeignSpec
from ferryman_export.onnx import EXTERNAL_DATA_BYTES, check_graph, graph_metadata
from ferryman_export.spec_file import read_spec_file

_MIN_OPSET = 13  # Softmax and the others around the model as they are today
_DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}


@dataclass(frozen=True)
class ForeignModel:
    """source: facts for the manifest; spec: what the graph around the file must be; session: of the file as it is."""

    source: SourceFacts
    foreign: ForeignSpec
    spec: ModelSpec
    model: onnx.ModelProto
    session: onnxruntime.InferenceSession

    def answer(self, inputs: Tensors, advance: Callable[[int], None]) -> Tensors:
        """The reference's answers to every sample, each alone; see `reference.reference_outputs`."""
        answers: list[Tensors] = []
        for index in range(len(inputs["image"])):
            answers.append(self._answer_one({name: array[index] for name, array in inputs.items()}))
            advance(1)
        return {name: np.stack([answer[name] for answer in answers]) for name in self.spec.output_names}

    def _answer_one(self, inputs: Tensors) -> Tensors:
        outputs = self.foreign.outputs
        names = [outputs.logits, outputs.boxes] if isinstance(outputs, DetectionOutputs) else [outputs.logits]
        found = [array[0] for array in run_foreign(self.session, self.foreign, inputs["image"][None], names)]
        if not isinstance(outputs, DetectionOutputs):
            return {"logits": found[0], "probabilities": _softmax(found[0]).astype(np.float32)}
        logits, boxes = found[0], found[1].astype(np.float64)
        if outputs.scores == "softmax":
            assert outputs.no_object is not None  # DetectionOutputs checks it
            none = logits[:, outputs.no_object]
            logits = np.column_stack((np.delete(logits, outputs.no_object, axis=1), none))
            shares = _softmax(logits)[:, :-1]
        else:
            shares = 1 / (1 + np.exp(-logits.astype(np.float64)))
            logits = np.column_stack((logits, np.zeros(len(logits), dtype=np.float32)))
        if outputs.box_format == "cxcywh":
            cx, cy, w, h = boxes.T
            boxes = np.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), axis=1)
        if outputs.box_unit == "image":
            boxes *= np.tile(self.spec.preprocess.size[::-1], 2)
        boxes /= np.tile(inputs["valid_size"][::-1], 2)
        return {
            "logits": logits,
            "boxes": np.clip(boxes, 0, 1).astype(np.float32),
            "scores": shares.max(axis=1).astype(np.float32),
            "labels": shares.argmax(axis=1).astype(np.int64),
        }

    def write(self, path: Path, metadata: dict[str, str]) -> onnx.ModelProto:
        """Writes the graph with the contract around the file, and checks it. Returns it without weights beside it."""
        graph = build_graph(self.model, self.foreign, self.spec)
        for key, value in (graph_metadata(self.spec) | metadata).items():
            graph.metadata_props.add(key=key, value=value)
        external = sum(len(tensor.raw_data) for tensor in graph.graph.initializer) > EXTERNAL_DATA_BYTES
        onnx.save(graph, path, save_as_external_data=external, location=f"{path.name}.data" if external else None)
        check_graph(path, self.spec)
        return onnx.load(path, load_external_data=False)


def open_foreign(source: str, spec_path: Path) -> ForeignModel:
    """Raises CheckpointError for a damaged file, UsageError where it and its spec differ, FileAccessError."""
    foreign, path = read_spec_file(spec_path, ForeignSpec), Path(source)
    try:
        model = onnx.load(path)
        onnx.checker.check_model(str(path))
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from error
    # What protobuf and the checker raise share no base class but Exception.
    except Exception as error:
        raise CheckpointError(f"{path} is no valid ONNX file: {' '.join(str(error).split())[:300]}") from error
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < _MIN_OPSET:
        raise UsageError(
            f"{source} uses operator set {opset}, at least {_MIN_OPSET} is needed; convert it with "
            "onnx.version_converter"
        )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's share none either
        raise ExportError(f"ONNX Runtime can't load {path}: {' '.join(str(error).split())[:300]}") from error
    _check_input(session, foreign, source)
    spec = _derive_spec(session, foreign, source)
    facts = SourceFacts(source=source, architecture=ONNX_ARCHITECTURE, sha256=sha256_file(path), format="ONNX")
    return ForeignModel(facts, foreign, spec, model, session)


def run_foreign(
    session: onnxruntime.InferenceSession, foreign: ForeignSpec, image_u8: NDArray[Any], names: list[str]
) -> list[NDArray[Any]]:
    """The file's own outputs of these names for (batch, height, width, 3) uint8. Raises ExportError."""
    image = image_u8.astype(np.float64)
    if foreign.input.normalize:
        image = (image / 255 - np.array(foreign.preprocess.mean)) / np.array(foreign.preprocess.std)
    if foreign.input.layout == "NCHW":
        image = image.transpose(0, 3, 1, 2)
    try:
        given = {foreign.input.name: np.ascontiguousarray(image).astype(foreign.input.dtype)}
        return cast("list[NDArray[Any]]", session.run(names, given))
    except Exception as error:
        raise ExportError(f"ONNX Runtime can't run the file: {' '.join(str(error).split())[:300]}") from error


def _check_input(session: onnxruntime.InferenceSession, foreign: ForeignSpec, source: str) -> None:
    """Raises UsageError unless the file's one input is the spec's, with a dynamic batch."""
    inputs = {value.name: value for value in session.get_inputs()}
    if set(inputs) != {foreign.input.name}:
        raise UsageError(f"{source} has the inputs {', '.join(inputs)}; it must have {foreign.input.name} alone")
    value = inputs[foreign.input.name]
    if _DTYPES.get(value.type) != foreign.input.dtype:
        raise UsageError(f"input {value.name} of {source} is {value.type}, its spec says {foreign.input.dtype}")
    height, width = foreign.preprocess.size
    wanted = (3, height, width) if foreign.input.layout == "NCHW" else (height, width, 3)
    shape = cast("list[int | str | None]", value.shape)
    if len(shape) != 4 or any(isinstance(s, int) and s != w for s, w in zip(shape[1:], wanted, strict=True)):
        raise UsageError(f"input {value.name} of {source} is {shape}, its spec says {('batch', *wanted)}")
    if isinstance(shape[0], int):
        raise UsageError(
            f"{source} was exported for batches of {shape[0]} alone; export it with a dynamic "
            'batch (torch.onnx.export: dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True)'
        )


def _derive_spec(session: onnxruntime.InferenceSession, foreign: ForeignSpec, source: str) -> ModelSpec:
    """The contract with as many queries as the file answers with. Raises UsageError where outputs and spec differ."""
    outputs = foreign.outputs
    names = [outputs.logits, outputs.boxes] if isinstance(outputs, DetectionOutputs) else [outputs.logits]
    known = [value.name for value in session.get_outputs()]
    if not set(names) <= set(known):
        raise UsageError(f"{source} has the outputs {', '.join(known)}, its spec names {', '.join(names)}")
    noise = np.random.default_rng(0).integers(0, 256, (2, *foreign.preprocess.size, 3), dtype=np.uint8)
    found = run_foreign(session, foreign, noise, names)
    classes, shapes = len(foreign.labels), [array.shape for array in found]
    queries = shapes[0][1] if len(shapes[0]) == 3 else 0
    expected: list[tuple[int, ...]] = [(2, classes)]
    if isinstance(outputs, DetectionOutputs):
        expected = [(2, queries, classes + (outputs.scores == "softmax")), (2, queries, 4)]
    for name, array, shape in zip(names, found, expected, strict=True):
        if array.shape != shape or array.dtype != np.float32:
            raise UsageError(
                f"output {name} of {source} is {array.dtype} {array.shape} for a batch of 2, expected float32 {shape} "
                f"with {classes} labels"
            )
    if isinstance(outputs, DetectionOutputs):
        return detection_spec(foreign.preprocess, foreign.labels, queries)
    return classification_spec(foreign.preprocess, foreign.labels)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
