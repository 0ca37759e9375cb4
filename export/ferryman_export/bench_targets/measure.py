"""One model: everyone made ready, then all measured in turn."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ferryman.bench.turns import Blocks, Ratio, compare_speed, run_in_turn, time_runs
from ferryman.golden import Tensors
from ferryman.specs import Facts, ModelSpec
from ferryman_export.bench_targets.contenders import EAGER, STOCK, Contender, has_bf16, stock_name
from ferryman_export.bench_targets.models import BenchModel, random_pictures, save_checkpoint, save_pictures
from ferryman_export.bench_targets.ours import Ours, choose_targets
from ferryman_export.bench_targets.stock import Pixels, eager, export_stock, stock
from ferryman_export.calibration import read_calibration
from ferryman_export.pipeline import ExportRequest, export
from ferryman_export.reference import normalize_reference
from ferryman_export.steps import Progress

GOALS: dict[str, float] = {"fp32": 1.05, "bf16": 1.05, "int8": 1.0}  # times as fast as the stock recipe
_TIMED_PICTURES = 4
_CALIBRATION_PICTURES = 60  # of noise, where no folder is named


@dataclass(frozen=True)
class Conditions:
    """seconds: of measuring each contender; threads: of everyone

    calibration: a folder of real pictures, None for noise; search: see `Ours`
    """

    seconds: float
    threads: int
    precisions: tuple[str, ...]
    calibration: Path | None
    search: bool


class Row(Facts):
    """One contender. runs: that were timed; the ratios tell how many times as fast it is

    to_stock: as the stock recipe in the same precision, None for what is not ours; goal: of that ratio
    reached: whether the goal lies below the interval, above it (no) or within (unclear)
    """

    model: str
    variant: str
    precision: str
    median_ms: float
    runs: int
    to_eager: Ratio
    to_stock: Ratio | None
    goal: float | None
    reached: Literal["yes", "no", "unclear"] | None
    note: str


def measure_model(name: str, model: BenchModel, work: Path, conditions: Conditions, progress: Progress) -> list[Row]:
    """A row a contender, PyTorch first; leaves files in the empty folder `work`.

    Raises what `pipeline.export` raises, and MissingExtraError for int8 without NNCF.
    """

    def show(stage: str, done: int, total: int) -> None:
        progress(f"{name}: {stage}", done, total)

    with ExitStack() as opened:
        contenders = prepare(name, model, work, conditions, show, opened)
        measures = {one.variant: partial(time_runs, one.run, one.inputs) for one in contenders}
        latencies = run_in_turn(measures, conditions.seconds, advance=partial(show, "measure in turn"))
    return make_rows(name, contenders, latencies)


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


def make_rows(name: str, contenders: Sequence[Contender], latencies: Mapping[str, Blocks]) -> list[Row]:
    """What was measured, compared. latencies: of each contender, in the same rounds"""
    rows: list[Row] = []
    for one in contenders:
        mine, reference = latencies[one.variant], stock_name(one.precision)
        is_ours = not one.variant.startswith((EAGER, STOCK))
        to_stock = compare_speed(latencies[reference], mine) if is_ours else None
        goal = GOALS[one.precision] if is_ours else None
        runs = np.concatenate([np.asarray(block) for block in mine])
        rows.append(
            Row(
                model=name,
                variant=one.variant,
                precision=one.precision,
                median_ms=float(np.median(runs)),
                runs=len(runs),
                to_eager=compare_speed(latencies[EAGER], mine),
                to_stock=to_stock,
                goal=goal,
                reached=None if to_stock is None or goal is None else judge(to_stock, goal),
                note=one.note,
            )
        )
    return rows


def judge(ratio: Ratio, goal: float) -> Literal["yes", "no", "unclear"]:
    """Whether the goal is reached beyond what the noise could do."""
    if ratio.low >= goal:
        return "yes"
    return "no" if ratio.high < goal else "unclear"
