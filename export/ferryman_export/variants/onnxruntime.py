"""ONNX Runtime's variants beside the canonical one, but for those that are typed graphs (`typed`)."""

from pathlib import Path

import onnx

from ferryman.manifest import Tolerance
from ferryman.specs import Target
from ferryman_export.onnx import count_operators
from ferryman_export.variants.base import Artefact, BuildReport, Workpiece
from ferryman_export.variants.integer import quantize_within
from ferryman_export.variants.typed import save_typed


def reuse_fp32(piece: Workpiece, target: Target, tolerance: Tolerance, path: Path) -> Artefact:
    """The canonical graph, where it lies."""
    del tolerance, path
    operators = count_operators(onnx.load(piece.graph, load_external_data=False))
    return Artefact(piece.graph, operators, BuildReport(target=str(target), size=piece.spec.preprocess.size))


def build_int8(piece: Workpiece, target: Target, tolerance: Tolerance, path: Path) -> Artefact:
    model, report = quantize_within(piece, target, tolerance)
    return save_typed(model, path, report)
