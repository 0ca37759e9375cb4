"""`python -m ferryman_export.bench_serving --help`: exports a ViT of about 10 ms and measures how it is served."""

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from ferryman.__main__ import main
from ferryman.bench.turns import time_runs
from ferryman.bundle import Bundle
from ferryman.commands.console import show_stages
from ferryman.files import temporary_folder
from ferryman.runtimes import open_session
from ferryman.runtimes.base import Settings
from ferryman.specs import PreprocessSpec, Target, classification_spec
from ferryman_export.pipeline import ExportRequest, export
from ferryman_models.checkpoints.native import save_native
from ferryman_models.vit import ViT, ViTConfig

NAME = "python -m ferryman_export.bench_serving"
TARGET = Target.parse("openvino-cpu-fp32")
AIM_MS = 10.0  # of a picture on one thread
# Half of a ViT-Ti/16, whose picture is 150 KB: some 10 ms on a server's processor.
CONFIG = ViTConfig(image_size=(224, 224), patch=16, dim=192, depth=6, heads=3, hidden=768, classes=1000)
app = typer.Typer(add_completion=False)


def export_vit(folder: Path, config: ViTConfig = CONFIG) -> Path:
    """A model repository in `folder` that holds one ViT with random weights, the same every time, for `TARGET`."""
    torch.manual_seed(0)
    labels = tuple(f"class {index}" for index in range(config.classes))
    spec = classification_spec(PreprocessSpec(size=config.image_size, fit="stretch"), labels)
    folder.mkdir(exist_ok=True)
    checkpoint = folder / "vit.safetensors"
    save_native(checkpoint, ViT(config).eval(), spec)
    with show_stages() as show:
        export(ExportRequest(str(checkpoint), folder / "models", targets=(TARGET,)), show)
    return folder / "models"


def choose_depth(repository: Path) -> int:
    """How many blocks take about `AIM_MS` here, by what those of `CONFIG` take: all of its time is theirs."""
    bundle = Bundle.open(repository / "vit")
    with open_session(bundle, str(TARGET), settings=Settings(threads=1)) as session:
        runs = time_runs(session.run, [bundle.golden().batch([0])], seconds=1.0)
    return max(1, round(CONFIG.depth * AIM_MS / float(np.median(runs))))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench_serving(
    context: typer.Context,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Blocks of the ViT; by default as many as take about 10 ms here.")
    ] = None,
) -> None:
    """Exports a ViT with random weights; options are those of `python -m ferryman.bench.serving`."""
    with temporary_folder(Path(tempfile.gettempdir()), "bench-serving") as folder:
        repository = export_vit(folder / "first", replace(CONFIG, depth=depth or CONFIG.depth))
        if depth is None and (fit := choose_depth(repository)) != CONFIG.depth:
            repository = export_vit(folder / "fit", replace(CONFIG, depth=fit))
        command = [
            sys.executable,
            "-m",
            "ferryman.bench.serving",
            str(repository),
            "--target",
            str(TARGET),
            *context.args,
        ]
        raise typer.Exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main(app, NAME)
