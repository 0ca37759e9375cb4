"""The nodes and constants of products in 8 bits: plain ONNX's, and those of ONNX Runtime's own."""

from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from ferryman_export.bias import find_bias
from ferryman_export.graph_edit import GraphEditor
from ferryman_export.products import Product
from ferryman_export.ranges import LEAST
from ferryman_export.rounding import channel_scales

Numbers = Literal["uint8", "int8", "fp8"]
_FP8 = helper.tensor_dtype_to_np_dtype(onnx.TensorProto.FLOAT8E4M3FN)
_FP8_LARGEST = 448.0
OWN = "com.microsoft"  # of operators that only ONNX Runtime has
_BIAS_LARGEST = 2**30  # half of what 32 bits hold: the rest is for the sum that it is added to


def quantize_activation(
    graph: GraphEditor, name: str, source: str, low: float, high: float, numbers: Numbers
) -> list[onnx.NodeProto]:
    """`source` -> `name.dequantized` through 8 bits: uint8 with a zero point, or int8 or fp8 around zero."""
    if numbers == "uint8":
        scale = np.float32((high - low) / 255)
        zero = np.array(np.clip(np.round(-low / scale), 0, 255), np.uint8)
    else:
        largest, dtype = (127, np.int8) if numbers == "int8" else (_FP8_LARGEST, _FP8)
        scale, zero = np.float32(max(-low, high) / largest), np.array(0, dtype)
    facts = [graph.put(f"{name}.scale", np.array(scale)), graph.put(f"{name}.zero", zero)]
    return [
        helper.make_node("QuantizeLinear", [source, *facts], [f"{name}.quantized"], name=f"{name}.quantize"),
        helper.make_node(
            "DequantizeLinear", [f"{name}.quantized", *facts], [f"{name}.dequantized"], name=f"{name}.dequantize"
        ),
    ]


def quantize_rows(graph: GraphEditor, name: str, source: str, low: float) -> list[onnx.NodeProto]:
    """`source` -> `name.quantized`, in uint8 from `low` to 1, each row as a share of its largest magnitude `name.rows`.

    A row is a position: a few positions with large values don't take the levels from the others, and no picture's
    answer depends on its neighbours in a batch.
    """
    scale = np.float32((1 - low) / 255)
    zero = np.array(np.clip(np.round(-low / scale), 0, 255), np.uint8)
    facts = [graph.put(f"{name}.scale", np.array(scale)), graph.put(f"{name}.zero", zero)]
    last, least = graph.put("rows.axis", np.array([-1])), graph.put("rows.least", np.array(LEAST, np.float32))
    rows = f"{name}.rows"
    return [
        helper.make_node("ReduceMax", [source, last], [f"{rows}.high"], name=f"{rows}.high", keepdims=1),
        helper.make_node("ReduceMin", [source, last], [f"{rows}.low"], name=f"{rows}.low", keepdims=1),
        helper.make_node("Neg", [f"{rows}.low"], [f"{rows}.below"], name=f"{rows}.below"),
        helper.make_node("Max", [f"{rows}.high", f"{rows}.below", least], [rows], name=rows),
        helper.make_node("Div", [source, rows], [f"{rows}.share"], name=f"{rows}.share"),
        helper.make_node("QuantizeLinear", [f"{rows}.share", *facts], [f"{name}.quantized"], name=f"{name}.quantize"),
    ]


def multiply_rows(node: onnx.NodeProto, product: Product) -> onnx.NodeProto:
    """Makes a MatMul ONNX Runtime's product of whole numbers, and gives the node that multiplies each row back.

    Comes after `quantize_rows` and the weights.
    """
    del node.input[:]
    node.input.extend(_whole_inputs(product))
    node.output[0] = f"{product.output}.shares"
    node.op_type, node.domain = "MatMulIntegerToFloat", OWN
    inputs = [node.output[0], f"{product.activation}.rows"]
    return helper.make_node("Mul", inputs, [product.output], name=f"{product.output}.grow")


def multiply_whole(graph: GraphEditor, node: onnx.NodeProto, product: Product) -> set[str]:
    """Makes a MatMul ONNX Runtime's product of whole numbers. Gives the outputs of nodes that it took in: the bias.

    Comes after the activation and the weights.
    """
    inputs = _whole_inputs(product)
    taken, bias = set[str](), find_bias(graph, product)
    if bias is not None:
        inputs.append(bias)
        taken = {str(graph.consumers[product.output][0].output[0])}
    del node.input[:]
    node.input.extend(inputs)
    node.output[0] = next(iter(taken), product.output)
    node.op_type, node.domain = "MatMulIntegerToFloat", OWN
    return taken


def _whole_inputs(product: Product) -> list[str]:
    activation, weights = product.activation, f"{product.output}.weights"
    inputs = [f"{activation}.quantized", weights, f"{activation}.scale", f"{weights}.scale"]
    return [*inputs, f"{activation}.zero", f"{weights}.zero"]


def quantize_answers(graph: GraphEditor, name: str, low: float, high: float) -> list[onnx.NodeProto]:
    """The nodes in the place of the one that gives a convolution's answer: whoever takes it gets it through 8 bits.

    A ReLU goes: its answers end at zero, the least of 8 bits, which cut off the rest as well.
    """
    maker = graph.producers[name]
    bends = maker.op_type == "Relu"
    nodes = quantize_activation(graph, name, maker.input[0] if bends else name, low, high, "uint8")
    for taker in graph.consumers.get(name, []):
        for index, taken in enumerate(taker.input):
            if taken == name:
                taker.input[index] = nodes[-1].output[0]
    return nodes if bends else [maker, *nodes]


def quantize_weights(
    graph: GraphEditor, product: Product, numbers: Numbers, rounded: NDArray[np.int8] | None
) -> onnx.NodeProto:
    """Stores a product's weights in 8 bits and gives the node that reads them. rounded: None for to the nearest.

    As int8 with a scale each output channel; as fp8, whose levels are finer the nearer to zero, with one scale:
    TensorRT 10.3 has no products in fp8 with more.
    """
    array = graph.value(product.weights)
    name = f"{product.output}.weights"  # by the product: two may share a tensor
    if numbers == "fp8":
        scale = np.array(max(np.abs(array).max() / _FP8_LARGEST, LEAST), np.float32)
        whole, channel = (array / scale).astype(_FP8), None
    else:
        channel = 0 if product.convolution else array.ndim - 1
        others = tuple(index for index in range(array.ndim) if index != channel)
        scale = channel_scales(array, others)
        whole = rounded
        if whole is None:
            whole = np.clip(np.round(array / np.expand_dims(scale, others)), -127, 127).astype(np.int8)
    inputs = [
        graph.put(name, whole),
        graph.put(f"{name}.scale", scale),
        graph.put(f"{name}.zero", np.zeros(scale.shape, whole.dtype)),
    ]
    output = [f"{name}.dequantized"]
    return helper.make_node("DequantizeLinear", inputs, output, name=f"{name}.dequantize", axis=channel)


def quantize_bias(graph: GraphEditor, product: Product, bias: str) -> onnx.NodeProto:
    """Stores a product's bias in steps of activation times weight, as its sums are, and gives the node that reads it.

    Comes after the activation and the weights. Where weights are so small that the bias has no room in 32 bits, they
    are stored in larger steps.
    """
    array, name = graph.value(bias), f"{product.output}.bias"
    weights = f"{product.output}.weights"
    step, scale = graph.value(f"{product.activation}.scale"), graph.value(f"{weights}.scale")
    least = np.abs(array) / (step * _BIAS_LARGEST)
    if (scale < least).any():
        wider = np.maximum(scale, least).astype(np.float32)
        whole = graph.value(weights) * (scale / wider).reshape(-1, *[1] * (graph.value(weights).ndim - 1))
        graph.put(weights, np.rint(whole).astype(np.int8))
        scale = graph.value(graph.put(f"{weights}.scale", wider))
    steps = (step * scale).astype(np.float32)
    inputs = [graph.put(name, np.rint(array / steps).astype(np.int32)), graph.put(f"{name}.scale", steps)]
    output = [f"{name}.dequantized"]
    return helper.make_node("DequantizeLinear", inputs, output, name=f"{name}.dequantize", axis=0)


def fuse_gelu(graph: GraphEditor, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Makes x * (0.5 * (1 + erf(x / sqrt(2)))), PyTorch's GELU, one operator, which ONNX Runtime does not."""
    makers = {name: node for node in nodes for name in node.output}
    takers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            takers.setdefault(name, []).append(node)

    def follow(node: onnx.NodeProto, kind: str, constant: float | None = None) -> onnx.NodeProto | None:
        """The node that alone takes this one's output, if it is of that kind and the constant is its other operand."""
        found = takers.get(node.output[0], [])
        if len(found) != 1 or node.output[0] in graph.outputs or found[0].op_type != kind:
            return None
        return found[0] if constant is None or has_constant(graph, found[0], constant) else None

    gone, fused = set[str](), dict[str, onnx.NodeProto]()
    for erf in (node for node in nodes if node.op_type == "Erf"):
        divide = makers.get(erf.input[0])
        if divide is None or divide.op_type != "Div" or not has_constant(graph, divide, 2**0.5):
            continue
        chain = [divide, follow(divide, "Erf"), follow(erf, "Add", 1.0)]
        chain.append(follow(chain[-1], "Mul", 0.5) if chain[-1] is not None else None)
        last = follow(chain[-1], "Mul") if chain[-1] is not None else None
        value = divide.input[0]
        if last is not None and value in last.input and None not in chain:
            gone |= {node.output[0] for node in chain if node is not None}
            fused[last.output[0]] = helper.make_node("Gelu", [value], [last.output[0]], name=last.name, domain=OWN)
    return [fused.get(node.output[0], node) for node in nodes if node.output[0] not in gone]


def has_constant(graph: GraphEditor, node: onnx.NodeProto, value: float) -> bool:
    """Whether an operand is this one number."""
    constants = [graph.value(name) for name in node.input if graph.is_constant(name)]
    return any(array.size == 1 and abs(float(array.item()) - value) < 1e-6 for array in constants)


def finish_with(graph: GraphEditor, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """The graph of these nodes, without dequantised values that nobody takes."""
    own = any(node.domain == OWN for node in nodes)
    nodes = fuse_gelu(graph, nodes) if own else nodes
    taken = {name for node in nodes for name in node.input} | graph.outputs
    graph.replace_nodes([one for one in nodes if one.op_type != "DequantizeLinear" or one.output[0] in taken])
    domains = {one.domain for one in graph.model.opset_import}
    if own and OWN not in domains:
        graph.model.opset_import.append(helper.make_opsetid(OWN, 1))
    return graph.finish()
