"""`--bisect`: the first PyTorch module at which the exported graph answers otherwise.

PyTorch's exporter notes on every node which modules it comes from. A value that enters or leaves a module's nodes is
what the module takes or returns, so that both sides can be compared module by module, in one run of each.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ferryman.errors import ExportError
from ferryman.golden import GoldenSamples, Tensors
from ferryman.parity import BATCHES
from ferryman_export.graph_edit import scopes_of
from ferryman_export.wrappers import ExportModule

# Relative to the largest magnitude in PyTorch's tensor: several times what the order of additions does in fp32, in the
# deepest model here, and about what must happen inside before an answer moves by the 1e-4 that parity allows.
LIMIT = 1e-4
# A module multiplies what its inputs differ by, a norm of nearly equal values the most; so far it is not to blame. A
# mistake stands out from rounding by a thousand times and more.
GROWTH = 10.0


@dataclass(frozen=True)
class Comparison:
    """One tensor that a module returned, or gave to one of its parts, and the graph's value that is nearest to it.

    module: its name inside the wrapper, empty for the wrapper itself; kind: its class
    part: of the module that was given the tensor, empty for what the module returned
    max_abs: largest absolute error; scale: largest magnitude in PyTorch's tensor
    value: the graph's; node: that computes it, with its operator
    inherited: the largest relative error of what it is made from: the module's inputs, and what its parts returned
    """

    module: str
    kind: str
    part: str
    shape: tuple[int, ...]
    max_abs: float
    scale: float
    value: str
    node: str
    inherited: float = 0.0

    @property
    def relative(self) -> float:
        return self.max_abs / max(self.scale, 1e-12)

    @property
    def small(self) -> bool:
        return self.relative <= LIMIT

    @property
    def explained(self) -> bool:
        """Whether it may come from rounding, or from the errors of what it is made from."""
        return self.relative <= max(LIMIT, GROWTH * self.inherited)

    def describe(self) -> str:
        name = f"{self.module} ({self.kind})" if self.module else f"the wrapper itself ({self.kind})"
        what = f"what it gives to its {self.part}" if self.part else "output"
        return (
            f"{name}: {what}, shape {self.shape}, max abs error {self.max_abs:.3g} where PyTorch's largest value is "
            f"{self.scale:.3g}, ONNX node {self.node}"
        )


@dataclass(frozen=True)
class Bisection:
    """first: the first comparison whose error nothing before it explains, None when there is none
    drift: the first whose error is not small though all are explained: errors of many modules add up
    largest: the one with the largest relative error, of those before `first` where there is one; None when the graph
    does not say what its nodes come from
    compared: how many of one run are explained, those before `first` where there is one
    hidden: modules that are in the graph and whose outputs are not, melted with others'
    """

    first: Comparison | None
    drift: Comparison | None
    largest: Comparison | None
    compared: int
    hidden: tuple[str, ...]

    def describe(self) -> str:
        """One line."""
        if self.largest is None:
            return "no module could be compared: the graph does not say which modules its nodes come from"
        more = f" and {len(self.hidden) - 3} more" if len(self.hidden) > 3 else ""
        hidden = f"; not to be seen in the graph: {', '.join(self.hidden[:3])}{more}" if self.hidden else ""
        if self.first is not None:
            inputs = f"what it is made from differs by {self.first.inherited:.2g} of its scale at most"
            return (
                f"the first module that diverges is {self.first.describe()}; {inputs}; all {self.compared} tensors "
                f"before it agree{hidden}"
            )
        where = f"(ONNX Runtime without its optimisations, {self.compared} tensors compared)"
        largest = f"the largest error is at {self.largest.describe()}{hidden}"
        if self.drift is None:
            return f"no module diverges {where}; {largest}"
        return (
            f"no single module is to blame, the error accumulates {where}: it first exceeds {LIMIT:g} of the scale at "
            f"{self.drift.describe()}, where what that is made from differs by {self.drift.inherited:.2g} already; "
            f"{largest}"
        )


def bisect(path: Path, module: ExportModule, golden: GoldenSamples) -> Bisection:
    """Runs `module` and its graph at `path` on the golden samples until they diverge: each alone, then in batches.

    ONNX Runtime runs without its optimisations: each node as PyTorch's exporter wrote it.
    Raises ExportError when it can't run the graph.
    """
    graph = Graph(onnx.load(path, load_external_data=False))
    if not graph.exposed():
        return Bisection(None, None, None, 0, ())
    drift: Comparison | None = None
    largest: Comparison | None = None
    hidden: tuple[str, ...] = ()
    compared = 0
    with ExitStack() as stack:
        session = _open_session(path, graph, stack)
        for indices in _batches(len(golden)):
            inputs = golden.batch(indices)
            comparisons, hidden = _compare(module, inputs, graph, _run(session, graph, inputs))
            compared = len(comparisons)
            for index, comparison in enumerate(comparisons):
                if not comparison.explained:
                    return Bisection(comparison, None, comparison, index, hidden)
            drift = drift or next((comparison for comparison in comparisons if not comparison.small), None)
            largest = max([*comparisons, *([largest] if largest else [])], key=lambda c: c.relative, default=None)
    return Bisection(None, drift, largest, compared, hidden)


def _batches(samples: int) -> Iterator[list[int]]:
    yield from ([index] for index in range(samples))
    yield from ([index % samples for index in range(batch)] for batch in BATCHES if batch > 1)


class Graph:
    """Which values of an ONNX graph enter and leave each PyTorch module.

    entering, leaving: names of values, a tuple a module, in the order of the graph
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        self._nodes: dict[str, onnx.NodeProto] = {}
        scopes: dict[str, frozenset[str]] = {}
        for node in model.graph.node:
            for name in _inputs(node):
                self._readers[name].append(node)
            for name in node.output:
                self._nodes[name], scopes[name] = node, frozenset(scopes_of(node))
        answers = {output.name for output in model.graph.output}
        computed = [*(value.name for value in model.graph.input), *self._nodes]
        entering: defaultdict[str, list[str]] = defaultdict(list)
        leaving: defaultdict[str, list[str]] = defaultdict(list)
        for name in computed:
            own = scopes.get(name, frozenset())
            around = [frozenset(scopes_of(reader)) for reader in self._readers[name]]
            for scope in own:
                if name in answers or any(scope not in other for other in around):
                    leaving[scope].append(name)
            for scope in frozenset().union(*around) - own:
                entering[scope].append(name)
        self.scopes = frozenset().union(*scopes.values())
        self.entering = {scope: tuple(names) for scope, names in entering.items()}
        self.leaving = {scope: tuple(names) for scope, names in leaving.items()}

    def exposed(self) -> tuple[str, ...]:
        """Every value that enters or leaves a module and that a node computes."""
        names = [name for values in (*self.entering.values(), *self.leaving.values()) for name in values]
        return tuple(name for name in dict.fromkeys(names) if name in self._nodes)

    def describe_node(self, value: str) -> str:
        node = self._nodes.get(value)
        return f"{node.name} ({node.op_type})" if node else f"none, the graph's input {value}"


def _inputs(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, the bodies of loops and branches included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            for inner in attribute.g.node:
                yield from _inputs(inner)


def _open_session(path: Path, graph: Graph, stack: ExitStack) -> onnxruntime.InferenceSession:
    """The graph with every exposed value as an output; weights stored beside it are found from where it lies."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    answers = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in graph.exposed() if name not in answers)
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".bisect.", dir=path.parent))
    for external in path.parent.glob(f"{path.name}.*"):
        (Path(folder) / external.name).hardlink_to(external)
    onnx.save(model, Path(folder) / path.name)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(Path(folder) / path.name, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime's exceptions share no base class but Exception.
    except Exception as error:
        raise ExportError(f"ONNX Runtime can't load the graph to bisect it: {' '.join(str(error).split())}") from error


def _run(session: onnxruntime.InferenceSession, graph: Graph, inputs: Tensors) -> Tensors:
    names = graph.exposed()
    try:
        values = cast("list[NDArray[Any]]", session.run(list(names), dict(inputs)))
    except Exception as error:  # see _open_session
        raise ExportError(f"ONNX Runtime can't run the graph to bisect it: {' '.join(str(error).split())}") from error
    return inputs | dict(zip(names, values, strict=True))


def _compare(
    module: ExportModule, inputs: Tensors, graph: Graph, values: Tensors
) -> tuple[list[Comparison], tuple[str, ...]]:
    """Runs PyTorch, and compares each tensor that goes into or comes out of a module, in the order of the run.

    values: the graph's, by name. Returns the comparisons, and the modules whose outputs were not found in the graph.
    """
    comparisons: list[Comparison] = []
    made_since: list[tuple[int, ...]] = []  # of each, the starts of the modules that run, see `_inherit`
    hidden: dict[str, None] = {}
    running: list[tuple[str, int]] = []  # module, and how many comparisons there were before its inputs'
    kinds = {name: type(child).__name__ for name, child in module.named_modules()}

    def look(tensor: Tensor, owner: str, part: str, names: tuple[str, ...]) -> bool:
        array = tensor.detach().numpy()
        nearest: tuple[float, str] | None = None
        for name in names:
            if values[name].shape == array.shape and values[name].dtype == array.dtype:
                error = _max_abs(values[name], array)
                if nearest is None or error < nearest[0]:
                    nearest = error, name
        if nearest is not None:
            scale = float(np.abs(array).max(initial=0.0))
            node = graph.describe_node(nearest[1])
            comparisons.append(Comparison(owner, kinds[owner], part, array.shape, nearest[0], scale, nearest[1], node))
            made_since.append(tuple(start for _, start in reversed(running)))
        return nearest is not None

    def hook(name: str, child: nn.Module, stack: ExitStack) -> None:
        def before(_: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
            owner, start = running[-1][0] if running else "", len(comparisons)
            for tensor in _tensors((args, kwargs)) if name else ():
                look(tensor, owner, name.removeprefix(f"{owner}."), graph.entering.get(name, ()))
            running.append((name, start))

        def after(_: nn.Module, args: object, output: object) -> None:
            for tensor in _tensors(output):
                if not look(tensor, name, "", graph.leaving.get(name, ())) and name in graph.scopes:
                    hidden[name] = None
            running.pop()

        stack.callback(child.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(child.register_forward_hook(after).remove)

    with ExitStack() as stack, torch.inference_mode():
        for name, child in module.named_modules():
            hook(name, child, stack)
        module(*(torch.from_numpy(inputs[name]) for name in module.spec.input_names))
    return _inherit(comparisons, made_since), tuple(hidden)


def _inherit(comparisons: list[Comparison], made_since: list[tuple[int, ...]]) -> list[Comparison]:
    """Of those that compare with the right value, each with what it inherits.

    made_since: of each, where the comparisons of its module begin, its inputs' first, then of the modules around it
    """
    # A value that is one module's output is no other's. Where the exporter melts a batch norm into the convolution
    # before it, the graph holds nothing of what the convolution returns, and nothing is wrong.
    best: dict[str, float] = {}
    for comparison in comparisons:
        best[comparison.value] = min(comparison.relative, best.get(comparison.value, np.inf))
    right: list[Comparison] = []
    before = [0]  # how many are right among the first so many
    for comparison, starts in zip(comparisons, made_since, strict=True):
        if comparison.relative <= max(LIMIT, GROWTH * best[comparison.value]):
            # Of the innermost module that anything is known of: a melted part's inputs are not to be seen.
            parts = next((found for start in starts if (found := right[before[start] :])), [])
            right.append(replace(comparison, inherited=max((part.relative for part in parts), default=0.0)))
        before.append(len(right))
    return right


def _tensors(values: object) -> Iterator[Tensor]:
    """The floating point tensors in nested tuples, lists and dicts. Others carry no rounding and prove nothing."""
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, Mapping):
        for value in cast("Mapping[object, object]", values).values():
            yield from _tensors(value)
    elif isinstance(values, tuple | list):
        for value in cast("tuple[object, ...] | list[object]", values):
            yield from _tensors(value)


def _max_abs(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Largest absolute difference; infinite where one side is NaN and the other is not, or both are in other places."""
    difference = np.abs(found.astype(np.float64) - wanted)
    difference[np.isnan(found) & np.isnan(wanted) | (found == wanted)] = 0
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))
