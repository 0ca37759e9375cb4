"""Typed ONNX files: the precision stands in the graph, for TensorRT 10 and 11, TensorRT-RTX and ONNX Runtime alike.

TensorRT runs an engine that `ferryman build` makes of the file on the device; ONNX Runtime's providers read the file.
"""

import json
from collections.abc import Set
from pathlib import Path
from typing import cast

import onnx

from ferryman.attest import MIN_SHARE
from ferryman.manifest import Tolerance
from ferryman.runtimes.onnxruntime import PRODUCTS
from ferryman.specs import Target
from ferryman_export.calibration import Pictures
from ferryman_export.half import HalfGraph, HalfPrecision
from ferryman_export.islands import BlockError, rank_blocks, search_islands
from ferryman_export.onnx import count_operators, digest_structure, save_graph
from ferryman_export.qdq import Numbers
from ferryman_export.steps import count_steps
from ferryman_export.variants.base import Artefact, BuildReport, Workpiece
from ferryman_export.variants.integer import Style, quantize_within
from ferryman_export.variants.judge import Bench
from ferryman_export.variants.rehearsal import attest_graph, is_rehearsed


def build_fp32(piece: Workpiece, target: Target, tolerance: Tolerance, path: Path) -> Artefact:
    """The proved graph as it is."""
    model = onnx.load(piece.graph)
    return save_typed(model, path, BuildReport(target=str(target), size=piece.spec.preprocess.size))


def build_half(piece: Workpiece, target: Target, tolerance: Tolerance, path: Path) -> Artefact:
    """fp16, bf16: as many blocks in the low precision as the tolerance allows. Raises ParityError when too few."""
    half = HalfGraph(piece.graph, cast("HalfPrecision", target.precision))
    bench = Bench(piece, target, tolerance)
    pictures = Pictures(piece.golden.names, piece.golden.inputs)
    half.observe(pictures, count_steps(piece.progress, f"{target}: look for what it can't hold", len(pictures)))
    cost = half.costs()
    write = half.emulate if is_rehearsed(target) else half.convert

    def rank() -> tuple[BlockError, ...]:
        advance = count_steps(piece.progress, f"{target}: round block by block", len(cost))

        def alone(islands: Set[str]) -> float:
            return bench.measure(write(islands), piece.golden)

        return rank_blocks(list(cost), alone, advance)

    piece.progress(f"{target}: search what must stay in fp32", 0, 1)
    allowed = int((1 - MIN_SHARE) * sum(cost.values()))
    found = search_islands(lambda islands: bench.judge(write(islands)), rank, cost, allowed, str(target))
    notes = (f"in fp32 for the numbers they meet: {', '.join(half.pinned)}",) if half.pinned else ()
    report = BuildReport(target=str(target), size=piece.spec.preprocess.size, islands=found, notes=notes)
    islands = frozenset(found.islands)
    return save_typed(half.convert(islands), path, report, half.emulate(islands))


def build_eight(piece: Workpiece, target: Target, tolerance: Tolerance, path: Path) -> Artefact:
    """int8, fp8 around zero: TensorRT knows nothing else, and Arm's products are of two signed numbers."""
    numbers = cast("Numbers", target.precision)
    model, report = quantize_within(piece, target, tolerance, Style(numbers=numbers))
    return save_typed(model, path, report)


def save_typed(
    model: onnx.ModelProto, path: Path, report: BuildReport, stand_in: onnx.ModelProto | None = None
) -> Artefact:
    """Writes the file, and into it how many products are in which precision, for devices that hide them."""
    onnx.helper.set_model_props(
        model,
        {one.key: one.value for one in model.metadata_props} | {PRODUCTS: json.dumps(attest_graph(model).products)},
    )
    structure = digest_structure(model)  # before weights may go to a file beside it
    place = save_graph(model, path.with_name(f"{path.name}.onnx"))
    return Artefact(place, count_operators(model), report, stand_in, structure=structure)
