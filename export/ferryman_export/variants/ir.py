"""OpenVINO's intermediate representation of a graph, without what each loading would have to work out again."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ferryman.specs import ModelSpec

if TYPE_CHECKING:
    from openvino import Model, Node


def save_ir(graph: Path, spec: ModelSpec, place: Path) -> "Model":
    """Writes the graph to `place` (model.xml, and model.bin beside it), for one picture, and gives what was written.

    Raises RuntimeError when OpenVINO can't convert it.
    """
    import openvino

    model = openvino.Core().read_model(graph)
    model.reshape({tensor.name: [1, *tensor.shape[1:]] for tensor in spec.inputs})
    fold_constants(model)
    openvino.save_model(model, place, compress_to_fp16=False)  # else fp32 would be fp16 inside
    return model


def fold_constants(model: "Model") -> None:
    """Takes out what changes no answer by a bit and costs a quarter of an int8 graph's nodes: shapes of constants, and
    the zero points of weights, which are zero. Weights themselves stay in 8 bits.
    """
    from openvino import opset13

    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind in ("Reshape", "Range") and all(_is_constant(source) for source in _sources(node)):
            folded = opset13.constant(_evaluate(node), dtype=node.get_output_element_type(0))
            node.output(0).replace(folded.output(0))
        elif kind == "Subtract" and _takes_nothing_off(node):
            node.output(0).replace(node.input_value(0))
    model.validate_nodes_and_infer_types()


def _sources(node: "Node") -> list[Any]:
    return [value.get_node() for value in node.input_values()]


def _is_constant(node: Any) -> bool:
    return node.get_type_name() == "Constant"


def _evaluate(node: "Node") -> Any:
    """The answer of a node of constants."""
    import openvino

    answer = openvino.Tensor(node.get_output_element_type(0), node.get_output_shape(0))
    inputs = [openvino.Tensor(source.get_data()) for source in _sources(node)]
    if not node.evaluate([answer], inputs):
        raise RuntimeError(f"it can't evaluate {node.get_friendly_name()}")
    return answer.data.copy()


def _takes_nothing_off(node: "Node") -> bool:
    """Whether a subtraction is of zeros, and leaves the shape as it is."""
    taken = _sources(node)[1]
    while taken.get_type_name() in ("Convert", "Reshape"):
        taken = _sources(taken)[0]
    same = node.get_output_partial_shape(0) == node.get_input_partial_shape(0)
    return same and _is_constant(taken) and not np.any(taken.get_data())
