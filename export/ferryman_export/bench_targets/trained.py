"""`python -m ferryman_export.bench_targets.trained --help`: a trained classifier's variants beside the stock recipe's.

Each as fast as it is, and as right. Random weights have no answers to lose; trained ones tell what a precision costs.
"""

import importlib
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from ferryman.__main__ import main
from ferryman.bench.turns import ROUNDS, compare_speed, run_in_turn, time_runs
from ferryman.commands.console import make_table, out, print_table, show_stages
from ferryman.device import read_device
from ferryman.errors import UsageError
from ferryman.files import temporary_folder
from ferryman.runtimes import open_session
from ferryman.runtimes.base import Settings
from ferryman.specs import ModelSpec
from ferryman_export.bench_targets.contenders import PRECISIONS, Contender, has_bf16, quiet_library, stock_name
from ferryman_export.bench_targets.measure import normalize_pictures
from ferryman_export.bench_targets.ours import choose_targets
from ferryman_export.bench_targets.stock import Pixels, check_nncf, compile_stock, eager, export_stock, stock
from ferryman_export.calibration import Calibration, read_calibration
from ferryman_export.pipeline import ExportRequest, export, tool_versions
from ferryman_export.samples import find_pictures, make_inputs, read_picture
from ferryman_export.steps import Progress

NAME = "python -m ferryman_export.bench_targets.trained"
CONTROLLED = "NNCF, accuracy control"
MAX_DROP = 0.02  # of agreement, as `parity.TOLERANCES` has it of int8
app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Labelled:
    """canvases: (n, height, width, 3) uint8; classes: (n,), what they show"""

    canvases: NDArray[np.uint8]
    classes: NDArray[np.int64]


@dataclass(frozen=True)
class Entrant:
    """contender: on the labelled pictures; classes: its answer to each; seconds: that it took to make"""

    contender: Contender
    classes: NDArray[np.int64]
    seconds: float


def read_labelled(folder: Path, spec: ModelSpec) -> Labelled:
    """Pictures in a folder a class. Raises UsageError for a folder that is called like no class."""
    paths = find_pictures(folder, 10_000)
    for path in paths:
        if path.parent.name not in spec.labels:
            raise UsageError(f"{path} lies in no folder of a class; there are {', '.join(spec.labels[:12])}")
    _, inputs = make_inputs({str(path): read_picture(path) for path in paths}, spec)
    classes = np.array([spec.labels.index(path.parent.name) for path in paths])
    return Labelled(inputs["image"], classes)


def classes_of(contender: Contender) -> NDArray[np.int64]:
    """Its first answer to each picture, which is the logits' in all of them."""
    answers: list[Any] = [contender.run(one) for one in contender.inputs]
    logits = [next(iter(one.values())) if hasattr(one, "values") else one[0] for one in answers]
    return np.array([int(np.argmax(np.asarray(one))) for one in logits])


def control_accuracy(graph: Path, calibration: Calibration, spec: ModelSpec) -> Any:
    """The stock graph by `nncf.quantize_with_accuracy_control`, which judges by the pictures that ours holds out."""
    check_nncf()
    nncf = importlib.import_module("nncf")
    openvino = importlib.import_module("openvino")
    seen, held_out = (normalize_pictures(one.inputs["image"], spec) for one in (calibration.seen, calibration.held_out))
    model = openvino.Core().read_model(graph)
    exact = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    wanted = [int(np.argmax(exact({0: pixels})[0])) for pixels in held_out]

    def agree(compiled: Any, dataset: Any) -> tuple[float, None]:
        found = [int(np.argmax(compiled({0: pixels})[0])) for pixels in dataset]
        return float(np.mean(np.equal(found, wanted))), None

    kinds = {"max_drop": MAX_DROP, "drop_type": nncf.DropType.ABSOLUTE, "model_type": nncf.ModelType.TRANSFORMER}
    return nncf.quantize_with_accuracy_control(model, nncf.Dataset(seen), nncf.Dataset(held_out), agree, **kinds)


def enter(make: Callable[[], Contender]) -> Entrant:
    start = time.monotonic()
    contender = make()
    seconds = time.monotonic() - start
    return Entrant(contender, classes_of(contender), seconds)


def prepare(
    source: Path,
    pictures: Path,
    labelled: Path,
    work: Path,
    threads: int,
    control: bool,
    opened: ExitStack,
    show: Progress,
) -> tuple[list[Entrant], Labelled]:
    """PyTorch, the stock recipe's models, and ours as `export` gives them, search and proofs included.

    Ours are loaded until `opened` ends.
    """
    transformers = importlib.import_module("transformers")
    targets = tuple(one for one in choose_targets(PRECISIONS) if one.precision != "bf16" or has_bf16())
    start = time.monotonic()
    request = ExportRequest(str(source), work / "models", "trained", pictures, targets=targets, calibration=pictures)
    bundle = export(request, show)
    export_s = time.monotonic() - start
    spec = bundle.spec
    truth, calibration = read_labelled(labelled, spec), read_calibration(pictures, spec, bundle.golden().inputs)
    with quiet_library():
        module = transformers.AutoModelForImageClassification.from_pretrained(source, dtype="float32").eval()
    floats = normalize_pictures(truth.canvases, spec)
    graph = export_stock(module, floats[0], work / "stock.onnx")
    entrants = [enter(lambda: eager(module, floats))]
    seen: Callable[[], Sequence[Pixels]] = partial(normalize_pictures, calibration.seen.inputs["image"], spec)
    for precision in PRECISIONS:
        if precision != "bf16" or has_bf16():
            show(f"{stock_name(precision)}: build", 0, 1)
            entrants.append(enter(partial(stock, graph, precision, threads, floats, seen)))

    def compile_controlled() -> Contender:
        with quiet_library():
            model = control_accuracy(graph, calibration, spec)
        return compile_stock(model, CONTROLLED, "int8", threads, floats)

    if control:
        show(f"{CONTROLLED}: build", 0, 1)
        entrants.append(enter(compile_controlled))
    images = [{"image": canvas[None]} for canvas in truth.canvases]
    for target in targets:
        session = opened.enter_context(open_session(bundle, str(target), settings=Settings(threads=threads)))
        contender = Contender(str(target), target.precision, session.run, images)
        entrants.append(Entrant(contender, classes_of(contender), export_s))
    return entrants, truth


@app.command()
def run(
    source: Annotated[Path, typer.Argument(help="Folder of an image classifier of transformers.")],
    pictures: Annotated[Path, typer.Argument(help="Real pictures to prove and calibrate with.")],
    labelled: Annotated[Path, typer.Argument(help="Others to count right answers on, a folder a class.")],
    seconds: Annotated[float, typer.Option(min=0.01, help="Of measuring each row.")] = 12.0,
    threads: Annotated[int, typer.Option(min=1, help="Of everyone.")] = 1,
    control: Annotated[
        bool, typer.Option("--control", help="NNCF's quantisation with accuracy control too, which may take hours.")
    ] = False,
) -> None:
    """Measures a trained classifier's variants against the stock recipe: how fast they are, and how right."""
    check_nncf()
    for folder in (source, pictures, labelled):
        if not folder.is_dir():  # told before minutes of work
            raise UsageError(f"{folder} is not a folder")
    device = read_device()
    with temporary_folder(Path(tempfile.gettempdir()), "trained") as work, ExitStack() as opened:
        with show_stages() as show:
            entrants, truth = prepare(source, pictures, labelled, work, threads, control, opened, show)
            everyone = [one.contender for one in entrants]
            measures = {one.variant: partial(time_runs, one.run, one.inputs) for one in everyone}
            latencies = run_in_turn(measures, seconds, advance=partial(show, "measure in turn"))
        columns = ("variant", "median ms", "to stock", "right", "as PyTorch", "made in s")
        table = make_table(*columns, numbers=(1, 2, 3, 4, 5))
        for one in entrants:
            name, mine = one.contender.variant, latencies[one.contender.variant]
            ratio = compare_speed(latencies[stock_name(one.contender.precision)], mine)
            table.add_row(
                name,
                f"{np.median(np.concatenate([np.asarray(block) for block in mine])):.2f}",
                f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
                str(int(np.sum(one.classes == truth.classes))),
                f"{np.mean(one.classes == entrants[0].classes):.2%}",
                f"{one.seconds:.0f}",
            )
        print_table(table)
    out.print(
        f"{len(truth.classes)} labelled pictures; {ROUNDS} rounds, {seconds:g} s a row, {threads} threads. "
        "Ours were made in one export, with all proofs."
    )
    out.print(f"{device.cpu}, {device.cores} cores: {', '.join(device.cpu_features)}.")
    out.print(f"{', '.join(f'{name} {number}' for name, number in tool_versions().items())}.")


if __name__ == "__main__":
    main(app, NAME)
