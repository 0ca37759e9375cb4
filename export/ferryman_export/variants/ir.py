"""OpenVINO's intermediate representation of a graph, without what each loading would have to work out again."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ferryman.errors import FileAccessError
from ferryman.runtimes.openvino import open_core
from ferryman.specs import ModelSpec

if TYPE_CHECKING:
    from openvino import Model, Node


def save_ir(graph: Path, spec: ModelSpec, place: Path, half: bool = False) -> "Model":
    """Writes the graph to `place` (model.xml, and model.bin beside it), for one picture, and gives what was written.

    half: store weights in fp16; else fp32 would be fp16 inside
    Raises RuntimeError when OpenVINO can't convert it, FileAccessError when it can't be written.
    """
    import openvino

    model = open_core().read_model(graph)
    model.reshape({tensor.name: [1, *tensor.shape[1:]] for tensor in spec.inputs})
    keep_keys_whole(model)
    fold_scales(model)
    fold_constants(model)
    try:
        openvino.save_model(model, place, compress_to_fp16=half)
    except RuntimeError as error:  # "iostream error" is all that it says
        raise FileAccessError(f"can't write {place}; check the folder's permissions and space") from error
    return model


def keep_keys_whole(model: "Model") -> None:
    """Lets attention's product read the keys' rows as columns, instead of turning them first, which is slow.

    ONNX has no such product. docs/targets.md has what it brings.
    """
    from openvino import opset13

    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul" or node.get_attributes()["transpose_b"]:
            continue
        turned = _sources(node)[1]
        if turned.get_type_name() != "Transpose":
            continue
        order = _sources(turned)[1]
        if _is_constant(order) and order.get_data().tolist() == [0, 2, 3, 1]:
            # (batch, tokens, heads, d_head) -> (batch, heads, tokens, d_head)
            keys = opset13.transpose(turned.input_value(0), opset13.constant(np.array([0, 2, 1, 3], np.int64)))
            turn_a = bool(node.get_attributes()["transpose_a"])
            product = opset13.matmul(node.input_value(0), keys, transpose_a=turn_a, transpose_b=True)
            product.set_friendly_name(node.get_friendly_name())
            node.output(0).replace(product.output(0))


def fold_scales(model: "Model") -> None:
    """Multiplies what follows a convolution, such as the scales of a batch norm, into its weights.

    OpenVINO does the same, to the bit, each time it compiles, and then holds the weights once more.
    """
    from openvino import opset13

    for node in model.get_ordered_ops():
        if node.get_type_name() != "Multiply":
            continue
        products = [one for one in _sources(node) if one.get_type_name() == "Convolution"]
        scales = [one for one in _sources(node) if _is_constant(one)]
        if len(products) != 1 or len(scales) != 1 or len(products[0].output(0).get_target_inputs()) != 1:
            continue
        (product,), (scale,) = products, scales
        weights, channels = _sources(product)[1], product.get_output_partial_shape(0)[1].get_length()
        if _is_constant(weights) and tuple(scale.get_output_shape(0))[-3:] == (channels, 1, 1):
            folded = opset13.constant(weights.get_data() * scale.get_data().reshape(channels, 1, 1, 1))
            product.input(1).replace_source_output(folded.output(0))
            node.output(0).replace(product.output(0))


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
