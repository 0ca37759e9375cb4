"""parity.html: one self-contained page that shows how closely a variant follows PyTorch."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from ferryman.drawing import Components, draw_classification, draw_detections, draw_embedding, draw_segmentation
from ferryman.golden import GoldenSamples, Tensors
from ferryman.parity import ParityReport, SampleErrors
from ferryman.preprocess import Geometry
from ferryman.results import classification_from_outputs, detections_from_outputs
from ferryman.segmenting import segmentation_from_outputs
from ferryman.specs import SEGMENTING, ModelSpec

MOST_VALUES = 1_000_000  # of one histogram


@dataclass(frozen=True)
class Pair:
    """One golden sample with both answers drawn, as data URIs."""

    name: str
    reference: str
    answer: str


@dataclass(frozen=True)
class OutputSummary:
    """The worst figures of one output over all samples, and its histogram of errors as a data URI."""

    worst: SampleErrors
    min_cosine: float
    histogram: str


def render_parity(name: str, report: ParityReport, golden: GoldenSamples, answers: Tensors, spec: ModelSpec) -> str:
    """The page as HTML.

    answers: the variant's outputs for every golden sample alone, arrays as in `golden.outputs`
    """
    environment = Environment(
        loader=PackageLoader("ferryman_export"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("parity.html").render(
        name=name,
        report=report,
        spec=spec,
        summaries=[_summarise(output, report, golden, answers) for output in spec.output_names],
        pairs=[_draw_pair(index, golden, answers, spec) for index in range(len(golden))],
    )


def _summarise(output: str, report: ParityReport, golden: GoldenSamples, answers: Tensors) -> OutputSummary:
    errors = [error for error in report.errors if error.output == output]
    worst = max(errors, key=lambda error: error.max_abs)
    difference = np.abs(answers[output].astype(np.float64) - golden.outputs[output].astype(np.float64))
    # Masks are millions of values; every so-many-th shows the same shape.
    histogram = _draw_histogram(difference.ravel()[:: 1 + difference.size // MOST_VALUES], worst.limit)
    return OutputSummary(worst, min(error.cosine for error in errors), histogram)


def _draw_histogram(errors: NDArray[np.float64], limit: float | None) -> str:
    """Absolute errors on a logarithmic axis, with the limit as a line."""
    from matplotlib.figure import Figure

    # Equal values have no logarithm; they are counted at the left edge, below fp32's resolution.
    shown = np.maximum(errors, 1e-9)
    # Margins and steps by hand: a layout that is searched for, and a patch a bar, take four times as long.
    figure = Figure(figsize=(5.2, 2.2))
    figure.subplots_adjust(left=0.13, bottom=0.24, right=0.98, top=0.95)
    axes = figure.subplots()
    top = max(float(shown.max()), limit or 0.0, 1e-7) * 2
    counts, edges = np.histogram(shown, np.geomspace(1e-9, top, 50))
    axes.stairs(counts, edges, fill=True, color="#0072b2")
    axes.set_xscale("log")
    axes.set_yscale("symlog")
    axes.set_ylim(0, 2 * float(counts.max()))
    axes.set_xlabel("absolute error (1e-9 stands for none)")
    axes.set_ylabel("values")
    if limit is not None:
        axes.axvline(limit, color="#d55e00", linestyle="--")
        axes.text(limit, 0.97, "limit ", color="#d55e00", transform=axes.get_xaxis_transform(), va="top", ha="right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _draw_pair(index: int, golden: GoldenSamples, answers: Tensors, spec: ModelSpec) -> Pair:
    image = golden.inputs["image"][index]
    height, width = image.shape[:2]
    if "valid_size" in golden.inputs:
        height, width = (int(side) for side in golden.inputs["valid_size"][index])
    picture = Image.fromarray(image[:height, :width].astype(np.uint8))
    size = (height, width)
    geometry = Geometry(size, size, (0.0, 0.0, float(width), float(height)), size)
    # Both sides in the reference's colours, or they could differ by a sign alone.
    components = Components.of(golden.outputs["patches"][index]) if spec.task == "embedding" else None
    drawn = [_draw(picture, outputs, index, geometry, spec, components) for outputs in (golden.outputs, answers)]
    return Pair(golden.names[index], drawn[0], drawn[1])


def _draw(
    picture: Image.Image,
    outputs: Mapping[str, NDArray[Any]],
    index: int,
    geometry: Geometry,
    spec: ModelSpec,
    components: Components | None,
) -> str:
    if spec.task == "embedding":
        drawn = draw_embedding(picture, outputs["patches"][index], components)
    elif spec.task in SEGMENTING:
        drawn = draw_segmentation(picture, segmentation_from_outputs(outputs, index, geometry, spec))
    elif spec.task == "detection":
        drawn = draw_detections(picture, detections_from_outputs(outputs, index, geometry, spec).detections)
    else:
        drawn = draw_classification(picture, classification_from_outputs(outputs, index, geometry, spec))
    drawn.thumbnail((420, 420))
    buffer = io.BytesIO()
    drawn.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
