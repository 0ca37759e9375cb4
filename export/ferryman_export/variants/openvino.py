"""OpenVINO's variants: an IR, whose precision is the graph's for int8, and else the runtime's setting."""

import tempfile
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import onnx

from ferryman.errors import ExportError, MissingExtraError, ParityError
from ferryman.manifest import Tolerance
from ferryman.specs import Target
from ferryman_export.calibration import Pictures
from ferryman_export.half import HalfGraph
from ferryman_export.onnx import save_graph
from ferryman_export.passes import free_head
from ferryman_export.steps import count_steps
from ferryman_export.variants.base import Artefact, BuildReport, Workpiece
from ferryman_export.variants.integer import quantize_within
from ferryman_export.variants.ir import save_ir
from ferryman_export.variants.judge import Bench
from ferryman_export.variants.rehearsal import is_rehearsed


def build_float(piece: Workpiece, target: Target, tolerance: Tolerance, path: Path) -> Artefact:
    """The same graph; the runtime computes it in the precision that the target names."""
    report = BuildReport(target=str(target), size=piece.spec.preprocess.size)
    return _save(piece, piece.graph, path, report)


def build_bf16(piece: Workpiece, target: Target, tolerance: Tolerance, path: Path) -> Artefact:
    """As `build_float`; where that is out of tolerance, with head and residual stream in fp32, if that helps.

    It takes longer. Nearly all else that bf16 errs is of the products with weights, which are what it is for.
    """
    bench, model = Bench(piece, target, tolerance), onnx.load(piece.graph)
    verdict = bench.judge(model)
    head, names = free_head(model)
    if verdict.passed or not names or not bench.judge(head).passed:
        return build_float(piece, target, tolerance, path)
    note = f"in fp32: {', '.join(names)} and the residual stream, since in bf16 throughout {verdict.why}"
    report = BuildReport(target=str(target), size=piece.spec.preprocess.size, notes=(note,))
    with tempfile.TemporaryDirectory() as folder:
        return _save(piece, save_graph(head, Path(folder) / "head.onnx"), path, report)


def build_int8(piece: Workpiece, target: Target, tolerance: Tolerance, path: Path) -> Artefact:
    model, report = quantize_within(piece, target, tolerance)
    with tempfile.TemporaryDirectory() as folder:
        return _save(piece, save_graph(model, Path(folder) / "quantized.onnx"), path, report)


def build_half(piece: Workpiece, target: Target, tolerance: Tolerance, path: Path) -> Artefact:
    """fp16 for graphics and NPUs, which compute all of the graph in it: there are no islands to give back.

    What emulates it keeps in fp32 the numbers that fp16 can't hold, a mask's; how a device holds those `verify` tells.
    Raises ParityError when what emulates that is out of tolerance.
    """
    report = BuildReport(target=str(target), size=piece.spec.preprocess.size)
    if not is_rehearsed(target):
        return _save(piece, piece.graph, path, report, half=True)
    half, pictures = HalfGraph(piece.graph, "fp16"), Pictures(piece.golden.names, piece.golden.inputs)
    half.observe(pictures, count_steps(piece.progress, f"{target}: look for what it can't hold", len(pictures)))
    verdict = Bench(piece, target, tolerance).judge(half.emulate())
    if not verdict.passed:
        raise ParityError(f"{target} can't be built: in fp16 throughout, {verdict.why}")
    return replace(_save(piece, piece.graph, path, report, half=True), stand_in=half.emulate(), typed=half.convert())


def _save(piece: Workpiece, graph: Path, path: Path, report: BuildReport, half: bool = False) -> Artefact:
    """half: see `save_ir`"""
    if find_spec("openvino") is None:
        raise MissingExtraError(f"{report.target}", "openvino")
    refuse_antialiased_resize(graph)
    place = path.with_name(f"{path.name}.xml")
    try:
        model = save_ir(graph, piece.spec, place, half)
    except RuntimeError as error:
        raise ExportError(f"OpenVINO can't convert the graph: {' '.join(str(error).split())}") from error
    operators = Counter(str(node.get_type_name()) for node in model.get_ops())
    return Artefact(place, dict(sorted(operators.items())), report)


def refuse_antialiased_resize(graph: Path) -> None:
    """OpenVINO's import leaves Resize's `antialias` out without a word, so that other pixels come out."""
    for node in onnx.load(graph, load_external_data=False).graph.node:
        if node.op_type == "Resize" and any(fact.name == "antialias" and fact.i for fact in node.attribute):
            raise ExportError(f"OpenVINO can't resize with antialiasing, as {node.name} of this graph does")
