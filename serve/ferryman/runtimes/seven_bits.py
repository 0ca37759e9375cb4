"""Weights of OpenVINO's models in 7 bits, for processors that cut off at 16 bits what they add up of uint8 times int8.

OpenVINO 2026.4 lets such sums be cut off without a word, and has no setting against it: two products of 255 times 127
are 64,770, and 32,767 is what is left of them. With weights of at most 64 no two products reach it.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from openvino import Input, Model, Node

_LARGEST = 64


def narrow_weights(model: "Model") -> None:
    """Halves int8 weights that are larger than 64, and doubles what they are multiplied with."""
    from openvino import Type, opset13

    for node in list(model.get_ops()):
        if node.get_type_name() != "Constant" or node.get_element_type() != Type.i8 or len(node.shape) < 2:
            continue
        weights, scale = node.get_data(), _find_scale(node)
        if scale is None or np.abs(weights.astype(np.int16)).max() <= _LARGEST:
            continue
        halved = opset13.constant(np.rint(weights / 2).astype(np.int8))
        node.output(0).replace(halved.output(0))
        source = scale.get_source_output()
        doubled = opset13.multiply(source, opset13.constant(2, source.get_element_type()))
        scale.replace_source_output(doubled.output(0))


def _find_scale(weights: "Node") -> "Input | None":
    """Where the scale goes in that dequantises weights around zero: Convert, perhaps Subtract, Multiply; else None."""
    before = weights
    for kinds in (("Convert",), ("Subtract", "Multiply"), ("Multiply",)):
        if before.get_type_name() == "Multiply":
            break
        takers = list(before.output(0).get_target_inputs())
        if len(takers) != 1 or takers[0].get_index() != 0 or takers[0].get_node().get_type_name() not in kinds:
            return None
        before = takers[0].get_node()
        if before.get_type_name() == "Subtract" and not _is_zero(before.input_value(1).get_node()):
            return None
    return before.input(1)


def _is_zero(node: "Node") -> bool:
    """Whether a zero point, behind conversions and reshapes, is zero throughout."""
    while node.get_type_name() in ("Convert", "Reshape", "Unsqueeze"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant" and not np.any(node.get_data())
