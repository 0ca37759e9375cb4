"""The matrix products with constant weights that a graph holds, in the blocks that are quantised together."""

from collections.abc import Iterable
from dataclasses import dataclass

import onnx
from onnx import helper

from ferryman_export.graph_edit import GraphEditor, module_of


@dataclass(frozen=True)
class Product:
    """A matrix product with constant weights: its node's output, the activation and the weights that it takes."""

    output: str
    activation: str
    weights: str
    convolution: bool


def find_products(graph: GraphEditor) -> dict[str, list[Product]]:
    """By block: products of one activation (queries, keys and values) share what it costs to quantise it."""
    blocks: dict[str, list[Product]] = {}
    names: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type in ("MatMul", "Conv") and graph.is_constant(node.input[1]):
            name = module_of(node)
            if name in blocks and blocks[name][0].activation != node.input[0]:
                name = f"{name}, {node.output[0]}"  # a module that is called several times
            name = names.setdefault(node.input[0], name)
            product = Product(str(node.output[0]), node.input[0], node.input[1], node.op_type == "Conv")
            blocks.setdefault(name, []).append(product)
    return blocks


def find_answers(graph: GraphEditor, convolutions: Iterable[str], sums: bool) -> dict[str, str]:
    """What can stay in 8 bits behind these convolutions, in the graph's order: each value, and whose range it has.

    A convolution's answer, behind the ReLU that alone takes it where there is one; the largest of neighbours of such a
    value; and, with `sums`, what two such values add up to, a residual stream. No output of the graph is among them.
    convolutions: their outputs
    """
    able, found = set(convolutions), dict[str, str]()
    for node in graph.nodes:
        name = str(node.output[0])
        pooled = node.op_type == "MaxPool" and node.input[0] in found
        if name in able or pooled or (sums and node.op_type == "Add" and all(taken in found for taken in node.input)):
            taker = graph.only_consumer(name)
            if taker is not None and taker.op_type == "Relu":
                name = str(taker.output[0])
            if name not in graph.outputs:
                found[name] = found[node.input[0]] if pooled else name
    return found


def gemm_to_matmul(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every Gemm with constant weights as MatMul and Add, which runtimes run in 8 bits with a floating-point answer."""
    graph = GraphEditor(model)
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        facts = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = facts.get("alpha", 1.0) == 1.0 and facts.get("beta", 1.0) == 1.0 and not facts.get("transA", 0)
        if node.op_type != "Gemm" or not plain or not graph.is_constant(node.input[1]) or len(node.input) != 3:
            nodes.append(node)
            continue
        weights = node.input[1]
        if facts.get("transB", 0):
            weights = graph.put(f"{weights}.transposed", graph.value(weights).T)
        product = helper.make_node("MatMul", [node.input[0], weights], [f"{node.output[0]}.product"], name=node.name)
        bias = helper.make_node("Add", [product.output[0], node.input[2]], list(node.output), name=f"{node.name}.bias")
        for one in (product, bias):
            one.metadata_props.extend(node.metadata_props)
        nodes += [product, bias]
    graph.replace_nodes(nodes)
    return graph.finish()
