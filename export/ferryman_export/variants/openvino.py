"""OpenVINO's variants: an IR, whose precision is the graph's for int8, and else the runtime's setting."""

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from ferryman.errors import ExportError, MissingExtraError, ParityError
from ferryman.manifest import Tolerance
from ferryman.specs import Target
from ferryman_export.calibration import Pictures
from ferryman_export.half import HalfGraph
from ferryman_export.onnx import save_graph
from ferryman_export.steps import count_steps
from ferryman_export.variants.base import Artefact, BuildReport, Workpiece
from ferryman_export.variants.integer import quantize_within
from ferryman_export.variants.judge import Bench
from ferryman_export.variants.rehearsal import is_rehearsed

if TYPE_CHECKING:
    from openvino import Model


def build_float(piece: Workpiece, target: Target, tolerance: Tolerance, path: Path) -> Artefact:
    """fp32, bf16: the same graph; the runtime computes it in the precision that the target names."""
    report = BuildReport(target=str(target), size=piece.spec.preprocess.size)
    return _save(piece.graph, path, report)


def build_int8(piece: Workpiece, target: Target, tolerance: Tolerance, path: Path) -> Artefact:
    model, report = quantize_within(piece, target, tolerance)
    with tempfile.TemporaryDirectory() as folder:
        return _save(save_graph(model, Path(folder) / "quantized.onnx"), path, report)


def build_half(piece: Workpiece, target: Target, tolerance: Tolerance, path: Path) -> Artefact:
    """fp16 for graphics and NPUs, which compute all of the graph in it: there are no islands to give back.

    What emulates it keeps in fp32 the numbers that fp16 can't hold, a mask's; how a device holds those `verify` tells.
    Raises ParityError when what emulates that is out of tolerance.
    """
    report = BuildReport(target=str(target), size=piece.spec.preprocess.size)
    if not is_rehearsed(target):
        return _save(piece.graph, path, report, half=True)
    half, pictures = HalfGraph(piece.graph, "fp16"), Pictures(piece.golden.names, piece.golden.inputs)
    half.observe(pictures, count_steps(piece.progress, f"{target}: look for what it can't hold", len(pictures)))
    verdict = Bench(piece, target, tolerance).judge(half.emulate())
    if not verdict.passed:
        raise ParityError(f"{target} can't be built: in fp16 throughout, {verdict.why}")
    return replace(_save(piece.graph, path, report, half=True), stand_in=half.emulate(), typed=half.convert())


def _save(graph: Path, path: Path, report: BuildReport, half: bool = False) -> Artefact:
    """half: store weights in fp16; else fp32 would be fp16 inside"""
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{report.target}", "openvino") from error
    refuse_antialiased_resize(graph)
    try:
        model = openvino.Core().read_model(graph)
        keep_keys_whole(model)
        place = path.with_name(f"{path.name}.xml")
        openvino.save_model(model, place, compress_to_fp16=half)
    except RuntimeError as error:
        raise ExportError(f"OpenVINO can't convert the graph: {' '.join(str(error).split())}") from error
    operators = Counter(str(node.get_type_name()) for node in model.get_ops())
    return Artefact(place, dict(sorted(operators.items())), report)


def keep_keys_whole(model: "Model") -> int:
    """Lets attention's product read the keys' rows as columns, instead of turning them first, which is slow.

    ONNX has no such product. Changes the model, and says how many products; docs/targets.md has what it brings.
    """
    from openvino import opset13 as operations

    changed = 0
    for node in model.get_ops():
        if node.get_type_name() != "MatMul" or node.get_attributes()["transpose_b"]:
            continue
        turned = node.input_value(1).get_node()
        if turned.get_type_name() != "Transpose":
            continue
        order = turned.input_value(1).get_node()
        if order.get_type_name() != "Constant" or order.get_data().tolist() != [0, 2, 3, 1]:
            continue
        # (batch, tokens, heads, d_head) -> (batch, heads, tokens, d_head)
        keys = operations.transpose(turned.input_value(0), operations.constant(np.array([0, 2, 1, 3], np.int64)))
        turn_a = bool(node.get_attributes()["transpose_a"])
        product = operations.matmul(node.input_value(0), keys, transpose_a=turn_a, transpose_b=True)
        product.set_friendly_name(node.get_friendly_name())
        for taker in node.output(0).get_target_inputs():
            taker.replace_source_output(product.output(0))
        changed += 1
    return changed


def refuse_antialiased_resize(graph: Path) -> None:
    """OpenVINO's import leaves Resize's `antialias` out without a word, so that other pixels come out."""
    for node in onnx.load(graph, load_external_data=False).graph.node:
        if node.op_type == "Resize" and any(fact.name == "antialias" and fact.i for fact in node.attribute):
            raise ExportError(f"OpenVINO can't resize with antialiasing, as {node.name} of this graph does")
