"""One model: everyone made ready, then all measured in turn."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ferryman.bench.alone import measure_cost
from ferryman.bench.turns import run_in_turn, time_runs
from ferryman.golden import Tensors
from ferryman.specs import ModelSpec
from ferryman_export.bench_targets.contenders import BATCH, Contender, has_bf16, stock_name
from ferryman_export.bench_targets.models import BenchModel, random_pictures, save_checkpoint, save_pictures
from ferryman_export.bench_targets.ours import Ours, choose_targets
from ferryman_export.bench_targets.rows import Row, batch_name, make_cost, make_rows, one_by_one_name
from ferryman_export.bench_targets.stock import Pixels, eager, export_stock, stock
from ferryman_export.calibration import read_calibration
from ferryman_export.pipeline import ExportRequest, export
from ferryman_export.reference import normalize_reference
from ferryman_export.steps import Progress

_TIMED_PICTURES = 4
_CALIBRATION_PICTURES = 60  # of noise, where no folder is named


@dataclass(frozen=True)
class Conditions:
    """seconds: of measuring each contender; threads: of everyone

    calibration: a folder of real pictures, None for noise; search: see `Ours`
    profile: everyone, not only where a goal of speed is missed
    """

    seconds: float
    threads: int
    precisions: tuple[str, ...]
    calibration: Path | None
    search: bool
    profile: bool = False


def measure_model(name: str, model: BenchModel, work: Path, conditions: Conditions, progress: Progress) -> list[Row]:
    """A row a contender, PyTorch first; leaves files in the empty folder `work`.

    Raises what `pipeline.export` raises, and MissingExtraError for int8 without NNCF.
    """

    def show(stage: str, done: int, total: int) -> None:
        progress(f"{name}: {stage}", done, total)

    with ExitStack() as opened:
        contenders = prepare(name, model, work, conditions, show, opened)
        measures = {one.variant: partial(time_runs, one.run, one.inputs) for one in contenders}
        for one in contenders:
            if one.batch is not None:  # without warming up: of eight pictures the first is as cold in either
                measures[batch_name(one.variant)] = partial(time_runs, one.run, [one.batch], warmup=0)
                runs = partial(run_one_by_one, one.run)
                measures[one_by_one_name(one.variant)] = partial(time_runs, runs, [one.inputs], warmup=0)
        latencies = run_in_turn(measures, conditions.seconds, advance=partial(show, "measure in turn"))
        rows = make_rows(name, contenders, latencies)
        rows = add_profiles(rows, contenders, conditions.profile, show)
        return add_costs(rows, contenders, model, show)


def run_one_by_one(run: Callable[[Any], object], inputs: Sequence[Any]) -> None:
    """The pictures of `Contender.batch`, each alone."""
    for number in range(BATCH):
        run(inputs[number % len(inputs)])


def add_profiles(rows: list[Row], contenders: list[Contender], everyone: bool, progress: Progress) -> list[Row]:
    """Where the time goes of what misses a goal of speed and of the stock recipe beside it, or of everyone."""
    slow = {row.precision for row in rows if row.slow}
    found: list[Row] = []
    for row, one in zip(rows, contenders, strict=True):
        wanted = everyone or row.slow or (row.variant == stock_name(row.precision) and row.precision in slow)
        profile = None
        if wanted and one.profile is not None:
            progress(f"{one.variant}: profile", 0, 1)
            profile = one.profile(one.inputs[0])
        found.append(row.model_copy(update={"profile": profile}))
    return found


def add_costs(rows: list[Row], contenders: list[Contender], model: BenchModel, progress: Progress) -> list[Row]:
    """What a session of each of ours costs, each in processes of its own."""
    found: list[Row] = []
    for row, one in zip(rows, contenders, strict=True):
        cost = None
        if one.load is not None:
            progress(f"{one.variant}: load it alone", 0, 1)
            goal = model.load_int8_s if one.precision == "int8" else None
            cost = make_cost(measure_cost(one.load), model.spare_mb, goal)
        found.append(row.model_copy(update={"cost": cost}))
    return found


def prepare(
    name: str, model: BenchModel, work: Path, conditions: Conditions, progress: Progress, opened: ExitStack
) -> list[Contender]:
    """Everyone, loaded until `opened` ends."""
    progress("make the model", 0, 1)
    module = model.build()
    save_checkpoint(module, model.processor, work / "checkpoint")
    pictures = conditions.calibration or save_pictures(
        work / "pictures", random_pictures(_CALIBRATION_PICTURES, model.size, seed=1)
    )
    bundle = export(ExportRequest(str(work / "checkpoint"), work / "repository", name, pictures), progress)
    calibration = read_calibration(pictures, bundle.spec, bundle.golden().inputs)
    ours, floats = make_timed(bundle.spec)
    graph = export_stock(module, floats[0], work / "stock.onnx")
    contenders = [eager(module, floats)]
    for precision in conditions.precisions:
        if precision != "bf16" or has_bf16():
            progress(f"{stock_name(precision)}: build", 0, 1)
            seen = partial(normalize_pictures, calibration.seen.inputs["image"], bundle.spec)
            contenders.append(stock(graph, precision, conditions.threads, floats, seen))
    variants = Ours(bundle, work, calibration, conditions.threads, conditions.search, progress)
    for target in choose_targets(conditions.precisions):
        contenders.append(variants.load(target, ours, opened))
    return contenders


def make_timed(spec: ModelSpec) -> tuple[list[Tensors], list[Pixels]]:
    """The timed pictures, which fill the canvas: as our graph takes them, in uint8, and normalised, as theirs does."""
    size = spec.preprocess.size
    images = random_pictures(_TIMED_PICTURES, size, seed=2)
    inputs: list[Tensors] = []
    for image in images:
        one: Tensors = {"image": image[None]}
        if "valid_size" in spec.input_names:
            one["valid_size"] = np.array([size], np.int32)
        inputs.append(one)
    return inputs, normalize_pictures(images, spec)


def normalize_pictures(images: Any, spec: ModelSpec) -> list[Pixels]:
    """(count, height, width, 3) uint8 to batches of one."""
    return [normalize_reference(image, spec.preprocess)[None] for image in images]
