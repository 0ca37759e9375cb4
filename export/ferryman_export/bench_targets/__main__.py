"""`python -m ferryman_export.bench_targets --help`: measures, and prints the table."""

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
import typer

from ferryman.__main__ import main
from ferryman.bench.turns import ROUNDS
from ferryman.commands.console import out, show_stages
from ferryman.device import DeviceFacts, read_device
from ferryman.errors import UsageError, propose
from ferryman.files import temporary_folder, write_text
from ferryman.specs import Facts
from ferryman_export.bench_targets.contenders import PRECISIONS
from ferryman_export.bench_targets.measure import Conditions, measure_model
from ferryman_export.bench_targets.models import MODELS
from ferryman_export.bench_targets.rows import Row
from ferryman_export.bench_targets.stock import check_nncf
from ferryman_export.bench_targets.tables import print_costs, print_profiles, print_speed
from ferryman_export.pipeline import tool_versions

NAME = "python -m ferryman_export.bench_targets"
app = typer.Typer(add_completion=False)


class Document(Facts):
    """What `--json` writes."""

    device: DeviceFacts
    versions: dict[str, str]
    threads: int
    seconds: float
    rounds: int
    calibration: str
    search: bool
    rows: tuple[Row, ...]


@app.command()
def bench_targets(
    model: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(MODELS)}; by default all.")] = None,
    precision: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PRECISIONS)}; by default all.")] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of measuring each row.")] = 12.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Of everyone, by default one a core.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Real pictures to prove and calibrate with, else noise.")
    ] = None,
    search: Annotated[
        bool, typer.Option(help="Search int8 within tolerance; without, every block is in 8 bits and none proved.")
    ] = True,
    profile: Annotated[
        bool, typer.Option(help="Where everyone's time goes, not only of what misses a goal of its speed.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="The figures, as JSON.")] = None,
) -> None:
    """Measures Ferryman's variants of models with random weights against PyTorch and OpenVINO's stock recipe.

    With the search for int8, ViT-B takes about a quarter of an hour and all models more than an hour.
    """
    names, precisions = _choose(model, tuple(MODELS)), _choose(precision, PRECISIONS)
    if "int8" in precisions:
        check_nncf()
    device = read_device()
    threads = threads or device.cores
    torch.set_num_threads(threads)
    conditions = Conditions(seconds, threads, precisions, calibration, search, profile)
    rows: list[Row] = []
    with show_stages() as progress:
        for name in names:
            with temporary_folder(Path(tempfile.gettempdir()), "bench-targets") as work:
                rows += measure_model(name, MODELS[name], work, conditions, progress)
    packages = ("transformers", "openvino", *(["nncf"] if "int8" in precisions else []))
    document = Document(
        device=device,
        versions=tool_versions() | {package: version(package) for package in packages},
        threads=threads,
        seconds=seconds,
        rounds=ROUNDS,
        calibration="noise" if calibration is None else calibration.name,
        search=search,
        rows=tuple(rows),
    )
    print_document(document)
    if json_file is not None:
        write_text(json_file, document.model_dump_json(indent=1))


def _choose(given: list[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """Each once, in the order of `known`; all by default. Raises UsageError for one that is not known."""
    for one in given or ():
        if one not in known:
            near = propose(one, known) or f"; there are {', '.join(known)}"
            raise UsageError(f"{one} can't be measured{near}")
    return tuple(one for one in known if not given or one in given)


def print_document(document: Document) -> None:
    """The tables, then under which conditions they were measured."""
    print_speed(document.rows)
    print_costs(document.rows)
    print_profiles(document.rows)
    device = document.device
    out.print(f"{document.rounds} rounds, {document.seconds:g} s a row, {document.threads} threads.")
    out.print(f"{device.cpu}, {device.cores} cores: {', '.join(device.cpu_features)}.")
    out.print(f"Proved and calibrated with {document.calibration}; weights are random.")
    out.print(f"{', '.join(f'{name} {number}' for name, number in document.versions.items())}.")


if __name__ == "__main__":
    main(app, NAME)
