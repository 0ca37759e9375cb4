"""An ONNX graph of someone else's inside the graph contract: nodes before and behind it, itself untouched."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ferryman.specs import ModelSpec
from ferryman_export.foreign_spec import DetectionOutputs, ForeignSpec

_PREFIX = "model/"
_TYPES = {
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float32": TensorProto.FLOAT,
}


@dataclass
class _Nodes:
    """Nodes and constants that are put around the model."""

    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list[onnx.NodeProto])
    constants: list[TensorProto] = field(default_factory=list[TensorProto])

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """The name of the node's output."""
        output = output or f"ferryman/{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], f"node_{output}", **attributes))
        return output

    def constant(self, value: NDArray[np.generic]) -> str:
        name = f"ferryman/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def floats(self, *values: float) -> str:
        return self.constant(np.array(values, dtype=np.float32))

    def columns(self, value: str, *indices: int) -> str:
        """These indices of the last axis, in this order."""
        return self.add("Gather", value, self.constant(np.array(indices, dtype=np.int64)), axis=-1)

    def largest(self, value: str, output: str) -> str:
        """Over the last axis; operator set 18 takes the axes as an input."""
        if self.opset >= 18:
            return self.add(
                "ReduceMax", value, self.constant(np.array([-1], dtype=np.int64)), output=output, keepdims=0
            )
        return self.add("ReduceMax", value, output=output, axes=[-1], keepdims=0)


def build_graph(model: onnx.ModelProto, foreign: ForeignSpec, spec: ModelSpec) -> onnx.ModelProto:
    """The contract of `spec` around `model`, whose names get a prefix. Nothing is simplified or converted."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    inner = onnx.compose.add_prefix(model, _PREFIX)
    nodes = _Nodes(opset)
    image = nodes.add("Cast", "image", to=TensorProto.FLOAT)
    if foreign.input.normalize:
        image = nodes.add("Sub", image, nodes.floats(*(value * 255 for value in spec.preprocess.mean)))
        image = nodes.add("Div", image, nodes.floats(*(value * 255 for value in spec.preprocess.std)))
    if foreign.input.layout == "NCHW":
        image = nodes.add("Transpose", image, perm=[0, 3, 1, 2])
    nodes.add("Cast", image, output=_PREFIX + foreign.input.name, to=_TYPES[foreign.input.dtype])
    count_before = len(nodes.nodes)
    logits = _PREFIX + foreign.outputs.logits
    if isinstance(foreign.outputs, DetectionOutputs):
        _add_detection(nodes, logits, foreign.outputs, spec)
    else:
        nodes.add("Softmax", nodes.add("Identity", logits, output="logits"), output="probabilities", axis=-1)
    graph = helper.make_graph(
        [*nodes.nodes[:count_before], *inner.graph.node, *nodes.nodes[count_before:]],
        "ferryman",
        [helper.make_tensor_value_info(t.name, _TYPES[t.dtype], list(t.shape)) for t in spec.inputs],
        [helper.make_tensor_value_info(t.name, _TYPES[t.dtype], list(t.shape)) for t in spec.outputs],
        [*inner.graph.initializer, *nodes.constants],
    )
    graph.sparse_initializer.extend(inner.graph.sparse_initializer)
    return helper.make_model(
        graph, opset_imports=list(inner.opset_import), functions=list(inner.functions), ir_version=inner.ir_version
    )


def _add_detection(nodes: _Nodes, logits: str, outputs: DetectionOutputs, spec: ModelSpec) -> None:
    classes = len(spec.labels)
    objects = [index for index in range(classes + 1) if index != outputs.no_object][:classes]
    if outputs.scores == "softmax":
        logits = nodes.add("Identity", nodes.columns(logits, *objects, outputs.no_object or 0), output="logits")
        shares = nodes.columns(nodes.add("Softmax", logits, axis=-1), *range(classes))
    else:
        # Against a logit of 0, a class's softmax is its sigmoid.
        zero = nodes.add("Mul", nodes.columns(logits, 0), nodes.floats(0))
        shares = nodes.add("Sigmoid", logits)
        nodes.add("Concat", logits, zero, output="logits", axis=-1)
    nodes.largest(shares, "scores")
    nodes.add("ArgMax", shares, output="labels", axis=-1, keepdims=0)
    boxes = _PREFIX + outputs.boxes
    if outputs.box_format == "cxcywh":
        centre = nodes.columns(boxes, 0, 1)
        half = nodes.add("Mul", nodes.columns(boxes, 2, 3), nodes.floats(0.5))
        boxes = nodes.add("Concat", nodes.add("Sub", centre, half), nodes.add("Add", centre, half), axis=-1)
    height, width = spec.preprocess.size
    if outputs.box_unit == "image":
        boxes = nodes.add("Mul", boxes, nodes.floats(width, height, width, height))
    # (batch, 2) height, width -> (batch, 1, 4) width, height, width, height
    sides = nodes.columns(nodes.add("Cast", "valid_size", to=TensorProto.FLOAT), 1, 0, 1, 0)
    sides = nodes.add("Unsqueeze", sides, nodes.constant(np.array([1], dtype=np.int64)))
    boxes = nodes.add("Div", boxes, sides)
    zero, one = (nodes.constant(np.array(value, dtype=np.float32)) for value in (0, 1))
    nodes.add("Clip", boxes, zero, one, output="boxes")
