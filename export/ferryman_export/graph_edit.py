"""Reading and changing an ONNX graph: who makes a value, who takes it, what is constant."""

import ast
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

_SCOPES = "pkg.torch.onnx.name_scopes"


class GraphEditor:
    """A model's main graph, as it is when this is made: nodes may be changed in place, the tables stay as they were."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {output: node for node in model.graph.node for output in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in model.graph.output}

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return list(self.model.graph.node)

    def is_constant(self, name: str) -> bool:
        return name in self._constants

    def value(self, name: str) -> NDArray[Any]:
        """A constant's value. Raises KeyError for what is none."""
        return numpy_helper.to_array(self._constants[name])

    def put(self, name: str, value: NDArray[Any]) -> str:
        """Stores a constant, in the place of one of that name where there is one; gives the name back."""
        tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)
        if name in self._constants:
            self._constants[name].CopyFrom(tensor)
        else:
            self.model.graph.initializer.append(tensor)
            self._constants[name] = self.model.graph.initializer[-1]
        return name

    def only_consumer(self, name: str) -> onnx.NodeProto | None:
        """The node that alone takes a value; None when there are several, or it is an output of the graph."""
        takers = self.consumers.get(name, [])
        return takers[0] if len(takers) == 1 and name not in self.outputs else None

    def replace_nodes(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Makes `nodes` the graph's, in this order; the tables are as of before."""
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.model.graph.node[:]
        self.model.graph.node.extend(kept)

    def finish(self) -> onnx.ModelProto:
        """Drops constants that nobody takes any more."""
        used = {name for node in self.model.graph.node for name in node.input} | self.outputs
        kept = [tensor for tensor in self.model.graph.initializer if tensor.name in used]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(kept)
        return self.model


def scopes_of(node: onnx.NodeProto) -> list[str]:
    """Names of the PyTorch modules that a node comes from, the outermost (empty) first; none when it does not say."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            return [str(scope) for scope in ast.literal_eval(entry.value)][:-1]  # the last one is the operation's
    return []


def module_of(node: onnx.NodeProto) -> str:
    """Name of the innermost PyTorch module that a node comes from; its own name where that is the wrapper."""
    scopes = scopes_of(node)
    return scopes[-1] if scopes and scopes[-1] else str(node.name or node.output[0])
