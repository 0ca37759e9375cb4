"""fp16 and bf16: a typed graph, whose precision stands in the ONNX, and an fp32 graph that rounds as it would.

Every operator computes in the low precision that ONNX lets, but for two kinds. One meets values that the low precision
can't hold, seen on real pictures: a mask of huge numbers, the scores that it is added to, the softmax behind; an
epsilon that becomes nothing. These stay in fp32. The other is an island, a block that is given back because the answers
need it (`islands`). Products with weights are never of the first kind: how many of them stay in fp32 is the search's
budget.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from ferryman.errors import ExportError
from ferryman_export.calibration import Pictures
from ferryman_export.graph_edit import GraphEditor, module_of

HalfPrecision = Literal["fp16", "bf16"]
_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
# ONNX has bf16 convolutions, poolings, sines since 22; all that is in fp16 was there before.
_OPSETS = {"fp16": 18, "bf16": 22}
# Rounding moves a number by 2^-11 (fp16) or 2^-9 (bf16) of itself at most. What moves by more than this share of the
# tensor's largest is outside the range: it became infinite, or is too near to zero.
_ROUNDING = 2.0**-8


@dataclass(frozen=True)
class Ability:
    """Which of a node's floating-point inputs and outputs, by position, ONNX lets be of the low precision."""

    inputs: frozenset[int]
    outputs: frozenset[int]


class HalfGraph:
    """The fp32 graph at `path`, ready to be written in a low precision. `observe` comes before the rest."""

    def __init__(self, path: Path, precision: HalfPrecision) -> None:
        self.precision: HalfPrecision = precision
        self._type = _TYPES[precision]
        self._dtype = np.dtype(helper.tensor_dtype_to_np_dtype(self._type))
        self._model = raise_opset(onnx.load(path), _OPSETS[precision])
        self._graph = GraphEditor(self._model)
        self._floats = find_floats(self._model)
        self._abilities = self._find_abilities()
        self._lost: frozenset[str] = frozenset()  # values that the low precision can't hold

    @cached_property
    def blocks(self) -> dict[str, tuple[str, ...]]:
        """The nodes that can be in the low precision, each named by its first output, by their PyTorch module."""
        found: dict[str, list[str]] = {}
        for node in self._graph.nodes:
            if node.output[0] in self._abilities and (self._is_product(node) or not self._meets_lost(node)):
                found.setdefault(module_of(node), []).append(node.output[0])
        return {name: tuple(nodes) for name, nodes in found.items()}

    @cached_property
    def pinned(self) -> tuple[str, ...]:
        """The nodes that stay in fp32 for the values that they meet, by name."""
        nodes = [node for node in self._graph.nodes if node.output[0] in self._abilities]
        return tuple(str(node.name) for node in nodes if not self._is_product(node) and self._meets_lost(node))

    def costs(self) -> dict[str, int]:
        """Matrix products with weights in each block."""
        products = {node.output[0] for node in self._graph.nodes if self._is_product(node)}
        return {name: len(products.intersection(nodes)) for name, nodes in self.blocks.items()}

    def observe(self, pictures: Pictures, advance: Callable[[int], None] = lambda done: None) -> None:
        """Finds the values that the low precision can't hold, constants among them. advance: called once a picture.

        Raises ExportError when ONNX Runtime can't run the graph.
        """
        touched = [node for node in self._graph.nodes if node.output[0] in self._abilities]
        names = dict.fromkeys(name for node in touched for name in (*node.input, *node.output) if name in self._floats)
        constants = [name for name in names if self._graph.is_constant(name)]
        lost = {name for name in constants if not self._holds(self._graph.value(name))}
        computed = [name for name in names if not self._graph.is_constant(name)]
        session = open_session(self._with_extremes(computed))
        wanted = [name for value in computed for name in (f"{value}.low", f"{value}.high")]
        for index in range(len(pictures)):
            extremes = np.array(session.run(wanted, dict(pictures.one(index))), np.float32).reshape(-1, 2)
            lost |= {name for name, pair in zip(computed, extremes, strict=True) if not self._holds(pair)}
            advance(1)
        self._lost = frozenset(lost)
        for cached in ("blocks", "pinned"):
            self.__dict__.pop(cached, None)

    def convert(self, islands: Set[str] = frozenset()) -> onnx.ModelProto:
        """The typed graph: weights stored in the low precision, Cast nodes where it meets fp32, the same interface."""
        return self._write(islands, emulated=False)

    def emulate(self, islands: Set[str] = frozenset()) -> onnx.ModelProto:
        """What `convert` gives in fp32, rounded where that one is in the low precision.

        Every operator rounds once, as one does that adds up in fp32; hardware that adds up in less errs by more.
        """
        return self._write(islands, emulated=True)

    def _is_product(self, node: NodeProto) -> bool:
        return node.op_type in ("MatMul", "Gemm", "Conv") and self._graph.is_constant(node.input[1])

    def _meets_lost(self, node: NodeProto) -> bool:
        return not self._lost.isdisjoint((*node.input, *node.output))

    def _round(self, array: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(over="ignore"):  # becomes infinite, which is what we want to know
            return array.astype(self._dtype)

    def _holds(self, array: NDArray[Any]) -> bool:
        """Whether rounding leaves the array what it is; infinite and NaN are held by every precision."""
        finite = array[np.isfinite(array)]
        moved = np.abs(self._round(finite).astype(np.float32) - finite).max(initial=0)
        return bool(moved <= _ROUNDING * np.abs(finite).max(initial=0))

    def _find_abilities(self) -> dict[str, Ability]:
        """By first output, of every node that can compute in the low precision."""
        version = next(one.version for one in self._model.opset_import if one.domain in ("", "ai.onnx"))
        # What a branch or a loop takes from outside keeps its name and type, and so does what makes it.
        captured = {name for node in self._graph.nodes for graph in _subgraphs(node) for name in _captured(graph)}
        found: dict[str, Ability] = {}
        for node in self._graph.nodes:
            if node.domain in ("", "ai.onnx") and captured.isdisjoint(node.output) and not _subgraphs(node):
                ability = self._find_ability(node, version)
                if ability.inputs or ability.outputs:
                    found[node.output[0]] = ability
        return found

    def _find_ability(self, node: NodeProto, version: int) -> Ability:
        schema = onnx.defs.get_schema(node.op_type, version)
        name = f"tensor({'float16' if self.precision == 'fp16' else 'bfloat16'})"
        able = {one.type_param_str for one in schema.type_constraints if name in one.allowed_type_strs}
        inputs = {
            index: schema.inputs[min(index, len(schema.inputs) - 1)].type_str
            for index, value in enumerate(node.input)
            if value in self._floats
        }
        outputs = {
            index: schema.outputs[min(index, len(schema.outputs) - 1)].type_str
            for index, value in enumerate(node.output)
            if value in self._floats
        }
        # An output's type is that of the inputs with the same letter, or one that an attribute tells.
        bound = set(inputs.values()) | (set(outputs.values()) if _told_type(node) else set())
        return Ability(
            frozenset(index for index, kind in inputs.items() if kind in able),
            frozenset(index for index, kind in outputs.items() if kind in able & bound),
        )

    def _with_extremes(self, names: list[str]) -> onnx.ModelProto:
        """The graph with two scalars more for each value: its lowest and its highest number."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for name in names:
            for kind, output in (("ReduceMin", f"{name}.low"), ("ReduceMax", f"{name}.high")):
                model.graph.node.append(helper.make_node(kind, [name], [output], keepdims=0))
                model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
        return model

    def _write(self, islands: Set[str], emulated: bool) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        del model.graph.value_info[:]
        graph = GraphEditor(model)
        low = {node for name, nodes in self.blocks.items() if name not in islands for node in nodes}
        written: list[NodeProto] = []
        halves: set[str] = set()  # values that are of the low precision under their own name
        others: dict[str, str] = {}  # the name of a value in the precision that its own name is not of

        def take(name: str, half: bool) -> str:
            """The value's name in the precision that is wanted; a Cast is written where there was none."""
            if (name in halves) == half:
                return name
            if name not in others:
                others[name] = f"{name}.{self.precision if half else 'fp32'}"
                if graph.is_constant(name):
                    rounded = self._round(graph.value(name))
                    graph.put(others[name], rounded.astype(np.float32) if emulated else rounded)
                elif emulated and half:
                    written.extend(_cast_twice(name, others[name], self._type))
                elif emulated:
                    others[name] = name  # a rounded value is in fp32 already
                else:
                    written.append(_cast(name, others[name], self._type if half else TensorProto.FLOAT))
            return others[name]

        for node in graph.nodes:
            ability = self._abilities.get(node.output[0]) if node.output[0] in low else None
            for index, name in enumerate(node.input):
                if name in self._floats:
                    node.input[index] = take(name, ability is not None and index in ability.inputs)
            written.append(node)
            if ability is None:
                continue
            if not emulated:
                _tell_type(node, self._type)
            for index in ability.outputs:
                name = node.output[index]
                if emulated:
                    node.output[index] = f"{name}.exact"
                    written.extend(_cast_twice(f"{name}.exact", name, self._type))
                    halves.add(name)
                elif name in graph.outputs:
                    others[name] = node.output[index] = f"{name}.{self.precision}"
                    written.append(_cast(others[name], name, TensorProto.FLOAT))
                else:
                    halves.add(name)
        graph.replace_nodes(written)
        return graph.finish()


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """The graph in ONNX Runtime on the CPU, every node as it is written. Raises ExportError."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    # ONNX Runtime's exceptions share no base class but Exception.
    except Exception as error:
        raise ExportError(f"ONNX Runtime can't load the graph: {' '.join(str(error).split())}") from error


def raise_opset(model: onnx.ModelProto, least: int) -> onnx.ModelProto:
    """The same graph in an opset of `least` or more, its nodes' notes kept. Raises ExportError."""
    if all(one.version >= least for one in model.opset_import if one.domain in ("", "ai.onnx")):
        return model
    notes = {node.output[0]: node.metadata_props for node in model.graph.node}
    try:
        raised = onnx.version_converter.convert_version(model, least)
    except (RuntimeError, onnx.version_converter.ConvertError) as error:
        raise ExportError(f"the graph can't be brought to ONNX's opset {least}: {error}") from error
    for node in raised.graph.node:
        del node.metadata_props[:]
        node.metadata_props.extend(notes.get(node.output[0], ()))
    return raised


def find_floats(model: onnx.ModelProto) -> frozenset[str]:
    """Names of all fp32 values: inputs, constants, and what nodes compute."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    names = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return frozenset(names | {one.name for one in graph.initializer if one.data_type == TensorProto.FLOAT})


def _cast(name: str, output: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [name], [output], name=f"{output}.cast", to=to)


def _cast_twice(name: str, output: str, through: int) -> list[NodeProto]:
    return [_cast(name, f"{output}.low", through), _cast(f"{output}.low", output, TensorProto.FLOAT)]


def _told_type(node: NodeProto) -> list[AttributeProto]:
    """The attributes that make a node's output fp32: a type, or a tensor of that type."""
    return [
        one
        for one in node.attribute
        if (one.name in ("to", "dtype") and one.i == TensorProto.FLOAT)
        or (one.type == AttributeProto.TENSOR and one.t.data_type == TensorProto.FLOAT)
    ]


def _tell_type(node: NodeProto, to: int) -> None:
    for one in _told_type(node):
        if one.type == AttributeProto.TENSOR:
            array = numpy_helper.to_array(one.t).astype(helper.tensor_dtype_to_np_dtype(to))
            one.t.CopyFrom(numpy_helper.from_array(array))
        else:
            one.i = to


def _subgraphs(node: NodeProto) -> list[onnx.GraphProto]:
    return [one.g for one in node.attribute if one.type == AttributeProto.GRAPH]


def _captured(graph: onnx.GraphProto) -> set[str]:
    """Every name that the nodes of a branch or a loop take, those from outside among them."""
    names = {name for node in graph.node for name in node.input} | {one.name for one in graph.output}
    return names.union(*(_captured(inner) for node in graph.node for inner in _subgraphs(node)))
