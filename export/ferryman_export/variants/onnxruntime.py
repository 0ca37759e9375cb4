"""ONNX Runtime's variants beside the canonical fp32 graph."""

from pathlib import Path

from ferryman.manifest import Tolerance
from ferryman.specs import Target
from ferryman_export.onnx import count_operators, save_graph
from ferryman_export.variants.base import Artefact, Workpiece
from ferryman_export.variants.integer import quantize_within


def build_int8(piece: Workpiece, target: Target, tolerance: Tolerance, path: Path) -> Artefact:
    model, report = quantize_within(piece, target, tolerance)
    return Artefact(save_graph(model, path.with_name(f"{path.name}.onnx")), count_operators(model), report)
