"""`ferryman bench`: single-stream latency, in this process or through a server."""

import io
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ferryman import __version__
from ferryman.bench.report import LatencyReport, report_latency
from ferryman.bench.scenarios import Ask, run_single_stream
from ferryman.bench.turns import ROUNDS, run_in_turn
from ferryman.bundle import Bundle
from ferryman.commands.console import make_table, out, print_json, print_table, show_stages
from ferryman.commands.predict import Answers, Asker, read_image
from ferryman.device import read_device
from ferryman.errors import ImageError, UsageError
from ferryman.preprocess import decode_image


def run_bench(askers: Sequence[Asker], paths: list[Path], seconds: float, json_output: bool) -> None:
    """Times the pictures in `paths`, or the bundle's golden samples, and prints percentiles and stages.

    askers: one, or one for each of several targets of a bundle, which are measured in turn; seconds: of each
    """
    folder = askers[0].bundle
    bundle = None if folder is None else Bundle.open(folder)
    if paths:
        images, what = [_read_picture(path) for path in paths], f"{len(paths)} pictures"
    elif bundle is not None:
        images = encode_golden(bundle)
        what = f"the {len(images)} golden samples as PNG of the canvas's size"
    else:
        raise UsageError("--address needs --image: a server does not hand out its golden samples")
    names = [bundle.variants(asker.target)[0].target if bundle is not None else "the server" for asker in askers]
    with show_stages() as show, ExitStack() as opened:
        answers = [opened.enter_context(asker.open()) for asker in askers]
        # What is alone has nothing to take turns with: one block, warmed up once.
        rounds, warmup = (ROUNDS, 2) if len(answers) > 1 else (1, 10)
        measures = {
            str(name): partial(run_single_stream, choose_ask(one, images[0]), images, warmup=warmup)
            for name, one in zip(names, answers, strict=True)
        }
        blocks = run_in_turn(measures, seconds, rounds, partial(show, "measure"))
        model = answers[0].name
    reports = {name: report_latency([sample for block in found for sample in block]) for name, found in blocks.items()}
    if json_output:
        document = {"ferryman": __version__, "scenario": "single-stream", "model": model, "images": what}
        document |= {"device": read_device().model_dump(mode="json")}
        latencies = {name: report.model_dump(mode="json") for name, report in reports.items()}
        print_json(document | {"latency": latencies})
        return
    for name, report in reports.items():
        run = f"{report.requests} requests in {report.seconds:.1f} s"
        out.print(f"{model}, {name}, single stream, {what}, {run}")
        print_latency(report)


def _read_picture(path: Path) -> bytes:
    """The file's bytes. Raises FileAccessError, and ImageError before anything is measured."""
    data = read_image(path)
    try:
        decode_image(data)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    return data


def encode_golden(bundle: Bundle) -> list[bytes]:
    """The golden samples' canvases as PNG files, padding cut off."""
    golden = bundle.golden()
    files: list[bytes] = []
    for index in range(len(golden)):
        canvas = golden.inputs["image"][index].astype(np.uint8)
        if "valid_size" in golden.inputs:
            height, width = (int(side) for side in golden.inputs["valid_size"][index])
            canvas = canvas[:height, :width]
        buffer = io.BytesIO()
        Image.fromarray(canvas).save(buffer, format="PNG")
        files.append(buffer.getvalue())
    return files


def choose_ask(answers: Answers, image: bytes) -> Ask:
    """The call that the model answers; found by trying, since a server's model says its task only when asked."""
    from ferryman.errors import TaskError

    asks: list[Ask] = [
        lambda data: answers.classify([data], 5)[1],
        lambda data: answers.segment([data], None)[1],
        lambda data: answers.detect([data], 0.5)[1],
    ]
    for ask in asks[:-1]:
        try:
            ask(image)
        except TaskError:
            continue
        return ask
    return asks[-1]


def print_latency(report: LatencyReport) -> None:
    """Percentiles, then the median of each stage and its share of their sum."""
    table = make_table("", "ms", numbers=(1,))
    for name, value in report.percentiles_ms.items():
        table.add_row(name, f"{value:.2f}")
    table.add_row("mean", f"{report.mean_ms:.2f}")
    table.add_row("max", f"{report.max_ms:.2f}")
    print_table(table)
    out.print("median of each stage:")
    table = make_table("stage", "ms", "share", numbers=(1, 2))
    total = sum(report.stages_ms.values())
    for name, value in report.stages_ms.items():
        table.add_row(name, f"{value:.2f}", f"{value / total:.0%}")
    print_table(table)
