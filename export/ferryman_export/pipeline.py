"""The whole crossing, step by step: checkpoint, graph, proof, bundle."""

import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import cast

import numpy as np
import torch

from ferryman.bundle import Bundle, new_version, seal
from ferryman.errors import ParityError, UsageError
from ferryman.golden import FILE_NAME as GOLDEN
from ferryman.golden import GoldenSamples, Tensors, save_golden
from ferryman.manifest import SCHEMA_VERSION, SourceFacts, Tolerance, VariantFacts
from ferryman.parity import TOLERANCES, ParityReport, ParityReports, check_parity, count_runs
from ferryman.runtimes import RUNTIMES
from ferryman.specs import ModelSpec, Target
from ferryman_export.onnx import count_operators, export_onnx
from ferryman_export.parity_html import render_parity
from ferryman_export.reference import normalize_reference, reference_outputs
from ferryman_export.samples import MIN_SAMPLES, add_crops, make_inputs, read_pictures
from ferryman_export.sources import open_source, resize_spec
from ferryman_export.wrappers import ExportModule, choose_module
from ferryman_models.zoo import pictures_folder

GRAPH = "model.onnx"
TARGET = Target.parse("onnxruntime-cpu-fp32")
Progress = Callable[[str, int, int], None]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class ExportRequest:
    """What to export and where to.

    source: an embedded name or a checkpoint file; repository: the model repository that gets NAME/VERSION
    name: of the model, by default the source's; samples: a folder of real pictures for the golden samples, by
    default the embedded ones; size: (height, width) of the canvas, by default the checkpoint's
    tolerance: largest absolute error of every limited output, by default the precision's own
    arch, labels: of a bare weights file; see `sources.open_source`
    module: wraps the model into the graph contract, by default the task's own (`wrappers.choose_module`)
    """

    source: str
    repository: Path
    name: str | None = None
    samples: Path | None = None
    size: tuple[int, int] | None = None
    tolerance: float | None = None
    arch: str | None = None
    labels: Path | None = None
    module: Callable[[torch.nn.Module, ModelSpec], ExportModule] | None = None


def export(request: ExportRequest, progress: Progress = lambda stage, done, total: None) -> Bundle:
    """Exports, proves, and writes the bundle, or leaves nothing behind.

    progress: called with the stage's name, steps done and steps in all
    Raises ParityError when an answer is out of tolerance, CheckpointError, ExportError, UsageError, FileAccessError.
    """
    tolerance = _tolerance(request.tolerance)
    progress("load the checkpoint", 0, 1)
    checkpoint = open_source(request.source, request.arch, request.labels)
    name = _check_name(request.name or Path(checkpoint.source).stem)
    spec = resize_spec(checkpoint, request.size)
    pictures = read_pictures(request.samples or pictures_folder(spec.task))
    pictures = add_crops(pictures, MIN_SAMPLES, spec.preprocess.size if spec.preprocess.fit == "pad" else None)

    progress("answer the golden samples with PyTorch", 0, 1)
    names, inputs = make_inputs(pictures, spec)
    golden = GoldenSamples(names, inputs, reference_outputs(checkpoint.module, inputs, spec))
    wrap = request.module or choose_module(spec)
    module = wrap(checkpoint.module, spec)
    check_wrapper(module, golden, spec, tolerance)

    with new_version(request.repository, name) as new:
        folder = new.folder
        progress("write the ONNX graph", 0, 1)
        source = SourceFacts(source=checkpoint.source, architecture=checkpoint.architecture, sha256=checkpoint.sha256)
        tools = tool_versions()
        metadata = {"ferryman.source_sha256": source.sha256} | {f"ferryman.tool.{key}": v for key, v in tools.items()}
        graph = export_onnx(module, golden.batch([0, 1]), folder / GRAPH, metadata)

        report = prove(folder / GRAPH, golden, spec, tolerance, progress)
        report.raise_for_failures()

        progress("write the bundle", 0, 1)
        save_golden(folder / GOLDEN, golden)
        (folder / "labels.txt").write_text("".join(f"{label}\n" for label in spec.labels), encoding="utf-8")
        (folder / "parity.json").write_text(
            ParityReports(reports=(report,)).model_dump_json(indent=1), encoding="utf-8"
        )
        answers = answer_alone(folder / GRAPH, golden, spec)
        (folder / "parity.html").write_text(render_parity(name, report, golden, answers, spec), encoding="utf-8")
        variant = VariantFacts(target=TARGET, path=GRAPH, operators=count_operators(graph))
        facts = {
            "schema_version": SCHEMA_VERSION,
            "name": name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": source,
            "spec": spec,
            "variants": (variant,),
            "tolerances": {TARGET.precision: tolerance},
            "tools": tools,
        }
        seal(folder, facts)
    assert new.path is not None
    return Bundle.open(new.path)


def check_wrapper(module: ExportModule, golden: GoldenSamples, spec: ModelSpec, tolerance: Tolerance) -> None:
    """The wrapper in PyTorch against the reference, before anything is exported. Raises ParityError."""
    image = golden.inputs["image"]
    with torch.inference_mode():
        normalised = module.normalize(torch.from_numpy(image)).numpy()
        expected = np.stack([normalize_reference(sample, spec.preprocess) for sample in image])
        if normalised.shape != expected.shape or not np.allclose(normalised, expected, rtol=0, atol=1e-4):
            error = float(np.abs(normalised - expected).max()) if normalised.shape == expected.shape else float("inf")
            raise ParityError(
                f"the wrapper normalises the image otherwise than the preprocessing says (max abs error {error:.3g}, "
                f"limit 0.0001): look at its mean {spec.preprocess.mean}, deviation {spec.preprocess.std} and layout"
            )

        def run(batch: Tensors) -> Tensors:
            tensors = [torch.from_numpy(batch[name]) for name in spec.input_names]
            answers = cast("tuple[torch.Tensor, ...]", module(*tensors))
            return {name: answer.numpy() for name, answer in zip(spec.output_names, answers, strict=True)}

        report = check_parity(run, golden, spec, tolerance, "the wrapper in PyTorch", torch.__version__)
    report.raise_for_failures()


def prove(path: Path, golden: GoldenSamples, spec: ModelSpec, tolerance: Tolerance, progress: Progress) -> ParityReport:
    """ONNX Runtime on the exported file against the reference."""
    runtime = RUNTIMES[TARGET.runtime]
    total, done = count_runs(len(golden)), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(f"compare {TARGET} with PyTorch", done, total)

    with runtime.load(path, TARGET, spec) as session:
        return check_parity(session.run, golden, spec, tolerance, str(TARGET), runtime.version(), advance=advance)


def answer_alone(path: Path, golden: GoldenSamples, spec: ModelSpec) -> Tensors:
    """The variant's answers to each golden sample alone, for the report's pictures."""
    with RUNTIMES[TARGET.runtime].load(path, TARGET, spec) as session:
        answers = [session.run(golden.batch([index])) for index in range(len(golden))]
    return {name: np.concatenate([answer[name] for answer in answers]) for name in spec.output_names}


def tool_versions() -> dict[str, str]:
    """What made the bundle."""
    packages = ("ferryman", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


def _tolerance(limit: float | None) -> Tolerance:
    standard = TOLERANCES[TARGET.precision]
    if limit is None:
        return standard
    if not 0 < limit < float("inf"):
        raise UsageError(f"the tolerance must be above 0 and finite, got {limit}")
    limits = {"max_abs": dict.fromkeys(standard.max_abs, limit), "max_rel": dict.fromkeys(standard.max_rel, limit)}
    return standard.model_copy(update=limits | {"reason": "set by whoever exported the model"})


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} can't be a model's name: letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return name
