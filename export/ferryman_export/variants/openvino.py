"""OpenVINO's variants: an IR, whose precision is the graph's for int8 and the runtime's setting for fp32 and bf16."""

import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import onnx

from ferryman.errors import ExportError, MissingExtraError
from ferryman.manifest import Tolerance
from ferryman.specs import Target
from ferryman_export.onnx import save_graph
from ferryman_export.variants.base import Artefact, BuildReport, Workpiece
from ferryman_export.variants.integer import quantize_within
from ferryman_export.variants.ir import save_ir


def build_float(piece: Workpiece, target: Target, tolerance: Tolerance, path: Path) -> Artefact:
    """fp32, bf16: the same graph; the runtime computes it in the precision that the target names."""
    report = BuildReport(target=str(target), size=piece.spec.preprocess.size)
    return _save(piece, piece.graph, path, report)


def build_int8(piece: Workpiece, target: Target, tolerance: Tolerance, path: Path) -> Artefact:
    model, report = quantize_within(piece, target, tolerance)
    with tempfile.TemporaryDirectory() as folder:
        return _save(piece, save_graph(model, Path(folder) / "quantized.onnx"), path, report)


def _save(piece: Workpiece, graph: Path, path: Path, report: BuildReport) -> Artefact:
    if find_spec("openvino") is None:
        raise MissingExtraError(f"{report.target}", "openvino")
    refuse_antialiased_resize(graph)
    place = path.with_name(f"{path.name}.xml")
    try:
        model = save_ir(graph, piece.spec, place)
    except RuntimeError as error:
        raise ExportError(f"OpenVINO can't convert the graph: {' '.join(str(error).split())}") from error
    operators = Counter(str(node.get_type_name()) for node in model.get_ops())
    return Artefact(place, dict(sorted(operators.items())), report)


def refuse_antialiased_resize(graph: Path) -> None:
    """OpenVINO's import leaves Resize's `antialias` out without a word, so that other pixels come out."""
    for node in onnx.load(graph, load_external_data=False).graph.node:
        if node.op_type == "Resize" and any(fact.name == "antialias" and fact.i for fact in node.attribute):
            raise ExportError(f"OpenVINO can't resize with antialiasing, as {node.name} of this graph does")
