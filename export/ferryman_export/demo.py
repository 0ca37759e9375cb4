"""`ferryman demo`: the whole crossing, offline, with a real server in a process of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image

from ferryman.bundle import Bundle
from ferryman.certificates import make_certificate, write_certificate
from ferryman.client import Client
from ferryman.commands.console import StageProgress, make_table, out, print_json, print_table, show_stages
from ferryman.drawing import draw_classification, draw_detections
from ferryman.errors import FileAccessError, UnavailableError
from ferryman.files import replace_file, write_text
from ferryman.parity import ParityReport
from ferryman.predictor import Predictor
from ferryman.preprocess import preprocess_image, stack_inputs
from ferryman.proof import prove_target
from ferryman.specs import ModelSpec
from ferryman_export.demo_html import DrawnPicture, ModelSection, render_demo
from ferryman_export.eager import EagerSession
from ferryman_export.pipeline import ExportRequest, export
from ferryman_export.sources import open_source
from ferryman_models.zoo import EMBEDDED, pictures_folder

ROUNDS = 17  # of every picture through every way, interleaved: what disturbs one disturbs all
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Latency:
    """Milliseconds from the encoded picture to the answer, one picture a request."""

    way: str
    median_ms: float
    p99_ms: float
    requests: int


def run_demo(folder: Path, json_output: bool) -> None:
    """Leaves bundles, pictures and report.html in `folder`. Raises what any of its steps raises."""
    start = time.perf_counter()
    repository = folder / "repository"
    bundles: dict[str, Bundle] = {}
    reports: dict[str, ParityReport] = {}
    with show_stages() as progress:
        for name in EMBEDDED:

            def show(stage: str, done: int, total: int, name: str = name) -> None:
                progress(f"{name}: {stage}", done, total)

            bundles[name] = export(ExportRequest(name, repository), show)
    for name, bundle in bundles.items():
        certificate = make_certificate(bundle, prove_target(bundle, bundle.targets[0]))
        certificate.raise_for_failures()
        write_certificate(bundle, certificate)
        (reports[name],) = certificate.reports
    with show_stages() as progress, start_server(repository, progress) as address, Client(address) as client:
        progress(f"ask the server on {address}", 0, 1)
        sections = [
            ModelSection(
                name=name,
                task=bundle.spec.task,
                report=reports[name],
                pictures=answer_pictures(client, bundle, folder / "pictures"),
                latencies=[vars(row) for row in compare_latency(client, bundle, progress)],
            )
            for name, bundle in bundles.items()
        ]
    page = folder / "report.html"
    write_text(page, render_demo(sections))
    seconds = time.perf_counter() - start
    if json_output:
        print_json(
            {
                "seconds": round(seconds, 1),
                "report": str(page),
                "models": [section.to_json(bundles[section.name]) for section in sections],
            }
        )
        return
    for section in sections:
        print_section(section)
    out.print(
        f"{seconds:.0f} s. The pictures and the comparison are in {page}; bundles in {repository}.",
        markup=False,
    )
    out.print(f"Next: ferryman serve {repository}", markup=False)


@contextmanager
def start_server(repository: Path, progress: StageProgress) -> Generator[str, None, None]:
    """A server in a process of its own on a free port; gives its address, and stops it at the end."""
    progress("start a server", 0, 1)
    command = [
        sys.executable,
        "-m",
        "ferryman",
        "serve",
        str(repository),
        "--address",
        "127.0.0.1:0",
        "--json",
    ]
    log = repository.parent / "server.log"
    with _open_log(log) as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            yield _read_address(process, log)
        finally:
            process.terminate()
            try:
                process.wait(timeout=_START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _open_log(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise FileAccessError(f"can't write {path}: {error.strerror}; choose another folder with --output") from error


def _read_address(process: "subprocess.Popen[str]", log: Path) -> str:
    """Waits for the server's one JSON document; the stream ends when the server dies."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        try:
            return str(json.loads(text)["address"])
        except (json.JSONDecodeError, KeyError):
            continue
    raise UnavailableError(f"the demo's server did not start; what it said is in {log}")


def answer_pictures(client: Client, bundle: Bundle, folder: Path) -> list[DrawnPicture]:
    """Asks the server about the demo's pictures and draws its answers into `folder`."""
    drawn: list[DrawnPicture] = []
    for path in sorted(pictures_folder(bundle.spec.task).glob("*.png")):
        with Image.open(path) as image:
            if bundle.spec.task == "detection":
                found = client.detect([path], model=bundle.name).results[0]
                words = ", ".join(f"{d.label} ({d.score:.2f})" for d in found.detections) or "nothing"
                picture = draw_detections(image, found.detections)
            else:
                named = client.classify([path], model=bundle.name).results[0]
                words = f"{named.predictions[0].label} ({named.predictions[0].score:.2f})"
                picture = draw_classification(image, named)
        target = folder / path.name
        with replace_file(target) as temporary:
            picture.save(temporary, format="PNG")
        drawn.append(DrawnPicture(path.name, words, target))
    return drawn


def compare_latency(client: Client, bundle: Bundle, progress: StageProgress) -> list[Latency]:
    """PyTorch eager, ONNX Runtime and the server on the same encoded pictures, one a request, taking turns."""
    spec, name = bundle.spec, bundle.name
    images = [path.read_bytes() for path in sorted(pictures_folder(spec.task).glob("*.png"))]
    with Predictor(bundle) as predictor:

        def ask_runtime(image: bytes) -> object:
            return predictor.detect([image]) if spec.task == "detection" else predictor.classify([image])

        def ask_server(image: bytes) -> object:
            if spec.task == "detection":
                return client.detect([image], model=name)
            return client.classify([image], model=name)

        ways: dict[str, Callable[[bytes], object]] = {
            "PyTorch eager": eager_asker(name, spec),
            "ONNX Runtime": ask_runtime,
            "through gRPC": ask_server,
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(ROUNDS + 2):
            for way, ask in ways.items():
                for image in images:
                    start = time.perf_counter()
                    ask(image)
                    if turn >= 2:  # the first two warm up
                        times[way].append((time.perf_counter() - start) * 1e3)
            progress(f"{name}: compare speed", turn + 1, ROUNDS + 2)
    return [
        Latency(way, float(np.median(values)), float(np.percentile(values, 99)), len(values))
        for way, values in times.items()
    ]


def eager_asker(name: str, spec: ModelSpec) -> Callable[[bytes], object]:
    """The same model in PyTorch, with the same preprocessing and the answer's computation included."""
    session = EagerSession(open_source(name).module, spec)

    def ask(image: bytes) -> object:
        canvas, geometry = preprocess_image(image, spec.preprocess)
        return session.run(stack_inputs([canvas], [geometry], spec.input_names))

    return ask


def print_section(section: ModelSection) -> None:
    """One model: its answers, its parity, its speed."""
    out.print(f"\n{section.name}", style="bold")
    for picture in section.pictures:
        out.print(f"  {picture.name}: {picture.words}", markup=False)
    errors = ", ".join(f"{output} {error:.2g}" for output, error in section.worst_errors().items())
    out.print(f"  largest error against PyTorch: {errors}", markup=False)
    table = make_table(
        "  one picture, from file to answer", "median ms", "p99 ms", "against PyTorch", numbers=(1, 2, 3)
    )
    eager = section.latencies[0]["median_ms"]
    for row in section.latencies:
        ratio = f"{eager / row['median_ms']:.2f}x"
        table.add_row(f"  {row['way']}", f"{row['median_ms']:.2f}", f"{row['p99_ms']:.2f}", ratio)
    print_table(table)
