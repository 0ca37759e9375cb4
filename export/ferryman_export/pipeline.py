"""The whole crossing, step by step: checkpoint, graph, proof, bundle."""

import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import onnx
import torch
from PIL import Image

from ferryman.accuracy import ACCURACY, Truth, measure_accuracy, read_truth
from ferryman.bundle import Bundle, new_version, seal
from ferryman.certificates import certify
from ferryman.errors import ParityError, UsageError
from ferryman.golden import FILE_NAME as GOLDEN
from ferryman.golden import GoldenSamples, Tensors, save_golden
from ferryman.manifest import SCHEMA_VERSION, SourceFacts, Tolerance, VariantFacts, sized_name
from ferryman.parity import TOLERANCES, ParityReport, ParityReports, check_parity, count_runs
from ferryman.runtimes import find_runtime
from ferryman.specs import ModelSpec, Target
from ferryman_export.bisect import bisect
from ferryman_export.calibration import Calibration, read_calibration
from ferryman_export.explain import explained_spec
from ferryman_export.foreign import ForeignModel, open_foreign
from ferryman_export.onnx import count_operators, export_onnx
from ferryman_export.parity_html import render_parity
from ferryman_export.prove import prove_file
from ferryman_export.reference import normalize_reference, reference_outputs
from ferryman_export.samples import (
    MAX_SAMPLES,
    MIN_SAMPLES,
    PADDING_CROPS,
    add_crops,
    choose_count,
    choose_evenly,
    make_inputs,
    read_pictures,
)
from ferryman_export.sizes import propose_sizes
from ferryman_export.sources import SourceOptions, open_source, resize_spec, size_multiple
from ferryman_export.steps import Progress, count_steps
from ferryman_export.variants import check_targets
from ferryman_export.variants.base import CANONICAL, Workpiece
from ferryman_export.variants.build import Shelf, build_variant
from ferryman_export.variants.rehearsal import run_as
from ferryman_export.wrappers import ExportModule, choose_module
from ferryman_models.checkpoints.base import Checkpoint
from ferryman_models.zoo import pictures_folder

GRAPH = "model.onnx"
# Alone and among others: enough to see what a wrapper mixes up, where the graph runs at all of parity's batches.
WRAPPER_BATCHES = (1, 2)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class ExportRequest:
    """What to export and where to.

    source, options: see `sources.open_source`
    repository: the model repository that gets NAME/VERSION
    name: of the model, by default the source's; samples: a folder of real pictures for the golden samples, or
    such pictures by name; by default the embedded ones
    sizes: (height, width) of each canvas, by default the checkpoint's alone; "auto": those that the samples waste least
    tolerance: largest absolute error of every limited output, by default the precision's own
    onnx_spec: of someone else's ONNX file; see `foreign_spec.ForeignSpec`
    bisect: where given, PyTorch and the graph are compared module by module too, and it is called with the finding of
    each size, a line
    module: wraps the model into the graph contract, by default the task's own (`wrappers.choose_module`)
    explain: the graph answers where the model looked too; see `explain.explained_spec`
    targets: variants to build beside the canonical one; calibration: a folder of real pictures for those in int8
    accuracy: labelled pictures to count each variant's right answers on; see `ferryman.accuracy`
    """

    source: str
    repository: Path
    name: str | None = None
    samples: Path | Mapping[str, Image.Image] | None = None
    sizes: tuple[tuple[int, int], ...] | Literal["auto"] = ()
    tolerance: float | None = None
    options: SourceOptions = field(default_factory=SourceOptions)
    onnx_spec: Path | None = None
    bisect: Callable[[str], None] | None = None
    module: Callable[[torch.nn.Module, ModelSpec], ExportModule] | None = None
    explain: bool = False
    targets: tuple[Target, ...] = ()
    calibration: Path | None = None
    accuracy: Path | None = None


@dataclass(frozen=True)
class Crossing:
    """One canvas size on its way: what the graph must be, what it must answer, and what becomes it.

    write: the graph to a path, with metadata; module: in PyTorch, None when the source was an ONNX file
    calibration: None when no pictures were named for it
    """

    spec: ModelSpec
    golden: GoldenSamples
    write: Callable[[Path, dict[str, str]], onnx.ModelProto]
    module: ExportModule | None
    progress: Progress
    calibration: Calibration | None


def export(request: ExportRequest, progress: Progress = lambda stage, done, total: None) -> Bundle:
    """Exports, proves, and writes the bundle, or leaves nothing but finished variants; see `variants.build.Shelf`.

    progress: called with the stage's name, steps done and steps in all
    Raises ParityError when an answer is out of tolerance, CheckpointError, ExportError, UsageError, FileAccessError.
    """
    _tolerance(request.tolerance)  # before anything that takes time
    check_targets(request.targets, request.calibration)
    progress("load the checkpoint", 0, 1)
    if request.onnx_spec is not None:
        return export_foreign(open_foreign(request.source, request.onnx_spec), request, progress)
    return export_checkpoint(open_source(request.source, request.options, progress), request, progress)


def export_checkpoint(checkpoint: Checkpoint, request: ExportRequest, progress: Progress) -> Bundle:
    """`export` of a checkpoint that is loaded already; what names the source in `request` is not looked at."""
    tolerance = _tolerance(request.tolerance)
    name = _check_name(request.name or checkpoint.name or Path(checkpoint.source).stem)
    source = SourceFacts(
        source=checkpoint.source,
        architecture=checkpoint.architecture,
        sha256=checkpoint.sha256,
        format=checkpoint.format,
        notes=checkpoint.notes,
    )
    specs = choose_specs(checkpoint, request)
    truth = read_truth(request.accuracy, specs[0], progress) if request.accuracy else None
    crossings = [prepare(checkpoint, spec, request, tolerance, _name_stages(progress, spec)) for spec in specs]
    return write_bundle(name, source, crossings, request, tolerance, truth, progress)


def export_foreign(model: ForeignModel, request: ExportRequest, progress: Progress) -> Bundle:
    """`export` of an ONNX file: ONNX Runtime on the file stands for PyTorch. Raises UsageError for what needs it."""
    if request.sizes or request.bisect or request.explain:
        raise UsageError("--size, --bisect and --explain don't go with an ONNX file")
    request.options.allow(request.source)
    name = _check_name(request.name or Path(model.source.source).stem)
    truth = read_truth(request.accuracy, model.spec, progress) if request.accuracy else None
    spec, progress = model.spec, _name_stages(progress, model.spec)
    pictures = read_samples(request, spec, MAX_SAMPLES)
    names, inputs = make_inputs(pictures, spec)
    calibration = read_calibration(request.calibration, spec, inputs) if request.calibration else None
    advance = count_steps(progress, "answer the golden samples with the ONNX file", len(names))
    golden = GoldenSamples(names, inputs, model.answer(inputs, advance))
    crossing = Crossing(spec, golden, model.write, None, progress, calibration)
    return write_bundle(name, model.source, [crossing], request, _tolerance(request.tolerance), truth, progress)


def write_bundle(
    name: str,
    source: SourceFacts,
    crossings: list[Crossing],
    request: ExportRequest,
    tolerance: Tolerance,
    truth: Truth[Any] | None,
    progress: Progress,
) -> Bundle:
    """Writes and proves every crossing's graph, and seals the bundle. Raises ParityError, ExportError.

    truth: what to measure accuracy on, None for nothing
    """
    with new_version(request.repository, name) as new:
        tools = tool_versions()
        tools |= {run_as(target).runtime: find_runtime(run_as(target)).version() for target in request.targets}
        metadata = {"ferryman.source_sha256": source.sha256} | {f"ferryman.tool.{key}": v for key, v in tools.items()}
        crossed = [
            cross(crossing, index, new.folder, metadata, name, tolerance, request.bisect)
            for index, crossing in enumerate(crossings)
        ]
        tolerances = TOLERANCES | {CANONICAL.precision: tolerance}
        pieces = [
            Workpiece(
                new.folder / variant.path, crossing.spec, crossing.golden, crossing.calibration, crossing.progress
            )
            for crossing, (_, variant) in zip(crossings, crossed, strict=True)
        ]
        shelf = Shelf(request.repository / f".{name}.unfinished")
        shelved = [
            build_variant(piece, index, target, tolerances[target.precision], new.folder, name, tools, shelf)
            for index, piece in enumerate(pieces)
            for target in request.targets
        ]
        built = [one for _, one in shelved]
        progress("write the bundle", 0, 1)
        labels = crossings[0].spec.labels
        (new.folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        reports = ParityReports(reports=(*(report for report, _ in crossed), *(one.parity for one in built)))
        (new.folder / "parity.json").write_text(reports.model_dump_json(indent=1), encoding="utf-8")
        facts = {
            "schema_version": SCHEMA_VERSION,
            "name": name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": source,
            "specs": tuple(crossing.spec for crossing in crossings),
            "variants": (*(variant for _, variant in crossed), *(one.variant for one in built)),
            "tolerances": {target.precision: tolerances[target.precision] for target in (CANONICAL, *request.targets)},
            "tools": tools,
        }
        seal(new.folder, facts)
        if truth is not None:
            unfinished = Bundle.open(new.folder)
            able = [target for target in unfinished.targets if run_as(target) == target]
            counted = measure_accuracy(unfinished, able, truth, progress=progress)
            (new.folder / ACCURACY).write_text(counted.model_dump_json(indent=1), encoding="utf-8")
            seal(new.folder, facts)
    for key, _ in shelved:
        shelf.drop(key)
    assert new.path is not None
    bundle = Bundle.open(new.path)
    # What was proved here is proved for this machine, but what was only rehearsed.
    for target in (one for one in bundle.targets if run_as(one) == one):
        certify(bundle, [report for report in reports.reports if report.target == str(target)])
    return bundle


def choose_specs(checkpoint: Checkpoint, request: ExportRequest) -> list[ModelSpec]:
    """What the graph of each wanted size must be. Raises UsageError for sizes, and maps, that the model hasn't got."""
    sizes = request.sizes
    if sizes == "auto":
        if not isinstance(request.samples, Path):
            raise UsageError("--size auto looks at your pictures: name their folder with --samples")
        sizes = propose_sizes(request.samples, checkpoint.spec.preprocess.size, size_multiple(checkpoint.module))
    if len(set(sizes)) < len(sizes):
        raise UsageError("a size is given twice")
    specs = [resize_spec(checkpoint, size) for size in sizes or (None,)]
    if request.explain:
        return [explained_spec(spec, checkpoint.module, checkpoint.source) for spec in specs]
    return specs


def _name_stages(progress: Progress, spec: ModelSpec) -> Progress:
    height, width = spec.preprocess.size
    return lambda stage, done, total: progress(f"{height}x{width}: {stage}", done, total)


def prepare(
    checkpoint: Checkpoint, spec: ModelSpec, request: ExportRequest, tolerance: Tolerance, progress: Progress
) -> Crossing:
    """The golden samples, and the wrapper proved on them in PyTorch."""
    pictures = read_samples(request, spec, choose_count(checkpoint.module, spec.preprocess.size))
    names, inputs = make_inputs(pictures, spec)
    calibration = read_calibration(request.calibration, spec, inputs) if request.calibration else None
    advance = count_steps(progress, "answer the golden samples with PyTorch", len(names))
    golden = GoldenSamples(names, inputs, reference_outputs(checkpoint.module, inputs, spec, advance))
    wrap = request.module or choose_module(spec)
    module = wrap(checkpoint.module, spec)
    check_wrapper(module, golden, tolerance, progress)
    write = partial(export_onnx, module, golden.batch([0, 1]))
    return Crossing(spec, golden, write, module, progress, calibration)


def read_samples(request: ExportRequest, spec: ModelSpec, count: int) -> dict[str, Image.Image]:
    """`count` of the request's pictures and crops of them, of which there are more where pictures are too few."""
    padded = spec.preprocess.fit == "pad"
    count -= PADDING_CROPS if padded else 0
    if isinstance(request.samples, Mapping):
        pictures = dict(choose_evenly(list(request.samples.items()), count))
    else:
        pictures = read_pictures(request.samples or pictures_folder(spec.task), count)
    return add_crops(pictures, MIN_SAMPLES, spec.preprocess.size if padded else None)


def cross(
    crossing: Crossing,
    index: int,
    folder: Path,
    metadata: dict[str, str],
    name: str,
    tolerance: Tolerance,
    tell: Callable[[str], None] | None = None,
) -> tuple[ParityReport, VariantFacts]:
    """Writes one size's graph, proof and golden samples into `folder`. Raises ParityError, ExportError.

    tell: see `ExportRequest.bisect`
    """
    spec, golden = crossing.spec, crossing.golden
    crossing.progress("write the ONNX graph", 0, 1)
    path = folder / sized_name(GRAPH, index, spec)
    graph = crossing.write(path, metadata)
    report, answers = prove_file(path, CANONICAL, spec, golden, tolerance, crossing.progress)
    hint = "--bisect names the first module that diverges" if crossing.module else "look at the --onnx-spec"
    if tell is not None and crossing.module is not None:
        crossing.progress("compare module by module", 0, 1)
        hint = bisect(path, crossing.module, golden).describe()
        tell(hint)
    try:
        report.raise_for_failures()
    except ParityError as error:
        raise ParityError(f"{error}; {hint}") from error
    save_golden(folder / sized_name(GOLDEN, index, spec), golden)
    page = render_parity(name, report, golden, answers, spec)
    (folder / sized_name("parity.html", index, spec)).write_text(page, encoding="utf-8")
    variant = VariantFacts(
        target=CANONICAL, size=spec.preprocess.size, path=path.name, operators=count_operators(graph)
    )
    return report, variant


def check_wrapper(module: ExportModule, golden: GoldenSamples, tolerance: Tolerance, progress: Progress) -> None:
    """The wrapper in PyTorch against the reference, before anything is exported. Raises ParityError."""
    spec = module.spec
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

        advance = count_steps(progress, "check the wrapper", count_runs(len(golden), WRAPPER_BATCHES))
        what = "the wrapper in PyTorch"
        report = check_parity(run, golden, spec, tolerance, what, torch.__version__, WRAPPER_BATCHES, advance)
    report.raise_for_failures()


def tool_versions() -> dict[str, str]:
    """What made the bundle."""
    packages = ("ferryman", "torch", "onnx", "onnxscript", "numpy", "pillow")
    versions = {"python": platform.python_version()} | {package: version(package) for package in packages}
    return versions | {CANONICAL.runtime: find_runtime(CANONICAL).version()}  # of several packages that hold it


def _tolerance(limit: float | None) -> Tolerance:
    standard = TOLERANCES[CANONICAL.precision]
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
