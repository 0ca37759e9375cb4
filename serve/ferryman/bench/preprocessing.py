"""`python -m ferryman.bench.preprocessing --help`: processor time from an encoded picture to a canvas."""

import io
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from ferryman.__main__ import main
from ferryman.commands.console import make_table, out, print_table
from ferryman.predictor import fit_one
from ferryman.server.decoding import Decoder
from ferryman.specs import Facts, PreprocessSpec

NAME = "python -m ferryman.bench.preprocessing"
_ROUNDS = 30
# Canvases of DETR, of the size of a camera's picture and of the published models', and of ViT.
CANVASES = {
    "DETR 480x640": PreprocessSpec(size=(480, 640), fit="pad"),
    "DETR 800x1066": PreprocessSpec(size=(800, 1066), fit="pad"),
    "ViT 224x224": PreprocessSpec(size=(224, 224), fit="stretch"),
}
app = typer.Typer(add_completion=False)


class PreprocessingRow(Facts):
    """Milliseconds of processor time a picture, the median over pictures of each one's shortest and median round."""

    canvas: str
    cpu_ms: float
    median_cpu_ms: float


def make_jpeg(width: int = 640, height: int = 480) -> bytes:
    """A picture without anything in it, but with as much detail as a photograph: 38 KB as JPEG at quality 75."""
    noise = np.random.default_rng(5).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=75)
    return file.getvalue()


def measure_preprocessing(pictures: Sequence[bytes], rounds: int = _ROUNDS) -> tuple[PreprocessingRow, ...]:
    """One thread, the canvases in turn. A round that was held up took longer by what others did: hence the shortest."""
    Decoder(1)  # sets the memory that a server sets
    with ThreadPoolExecutor(1) as thread:  # as a server decodes: malloc serves other threads otherwise than the first
        return thread.submit(_measure, pictures, rounds).result()


def _measure(pictures: Sequence[bytes], rounds: int) -> tuple[PreprocessingRow, ...]:
    times: dict[str, list[list[float]]] = {name: [[] for _ in pictures] for name in CANVASES}
    for _ in range(rounds):
        for name, spec in CANVASES.items():
            for index, picture in enumerate(pictures):
                start = time.process_time()
                fit_one(picture, (spec,))
                times[name][index].append((time.process_time() - start) * 1e3)
    return tuple(
        PreprocessingRow(
            canvas=name,
            cpu_ms=float(np.median([min(one) for one in found])),
            median_cpu_ms=float(np.median([np.median(one) for one in found])),
        )
        for name, found in times.items()
    )


def print_preprocessing(rows: Sequence[PreprocessingRow]) -> None:
    table = make_table("encoded picture to canvas", "CPU ms", "median CPU ms", numbers=(1, 2))
    for row in rows:
        table.add_row(row.canvas, f"{row.cpu_ms:.2f}", f"{row.median_cpu_ms:.2f}")
    print_table(table)


@app.command()
def bench_preprocessing(
    pictures: Annotated[
        list[Path] | None,
        typer.Argument(exists=True, dir_okay=False, help="By default a JPEG of 640x480 that is made here."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1)] = _ROUNDS,
) -> None:
    """Measures the processor time of decoding and fitting a picture, without a server around it."""
    data = [path.read_bytes() for path in pictures or ()] or [make_jpeg()]
    out.print(f"{len(data)} pictures, {sum(map(len, data)) / len(data):,.0f} bytes each")
    print_preprocessing(measure_preprocessing(data, rounds))


if __name__ == "__main__":
    main(app, NAME)
