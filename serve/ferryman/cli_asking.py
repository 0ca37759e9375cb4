"""The subcommands that ask a model, here or through a server."""

from pathlib import Path
from typing import Annotated

import typer

from ferryman.connecting import Connection, connects
from ferryman.options import (
    Address,
    Draw,
    Explain,
    Images,
    Json,
    Model,
    OptionalBundle,
    TargetName,
)


@connects
def classify(
    images: Images,
    bundle: OptionalBundle = None,
    address: Address = None,
    security: Connection = None,
    model: Model = None,
    target: TargetName = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 5,
    draw: Draw = None,
    explain: Explain = None,
    json_output: Json = False,
) -> None:
    """Name what pictures show."""
    from ferryman.commands.predict import Asker, run_classify

    run_classify(Asker(bundle, address, model, target, security=security), images, top_k, draw, explain, json_output)


@connects
def detect(
    images: Images,
    bundle: OptionalBundle = None,
    address: Address = None,
    security: Connection = None,
    model: Model = None,
    target: TargetName = None,
    score: Annotated[float, typer.Option(min=0, max=1, help="Lowest score to show.")] = 0.5,
    draw: Draw = None,
    explain: Explain = None,
    json_output: Json = False,
) -> None:
    """Find objects in pictures; boxes in the picture's own pixels."""
    from ferryman.commands.predict import Asker, run_detect

    run_detect(Asker(bundle, address, model, target, security=security), images, score, draw, explain, json_output)


@connects
def embed(
    images: Images,
    bundle: OptionalBundle = None,
    address: Address = None,
    security: Connection = None,
    model: Model = None,
    target: TargetName = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.npz", help="Write class tokens and patches there.")
    ] = None,
    draw: Draw = None,
    explain: Explain = None,
    json_output: Json = False,
) -> None:
    """Turn pictures into vectors: one for the whole, one for each patch."""
    from ferryman.commands.predict import Asker, run_embed

    run_embed(Asker(bundle, address, model, target, security=security), images, output, draw, explain, json_output)


@connects
def segment(
    images: Images,
    bundle: OptionalBundle = None,
    address: Address = None,
    security: Connection = None,
    model: Model = None,
    target: TargetName = None,
    score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Lowest score to show; by default the task's own.")
    ] = None,
    draw: Draw = None,
    json_output: Json = False,
) -> None:
    """Divide pictures into objects and stuff; with --json the masks too, as COCO's run lengths."""
    from ferryman.commands.predict import Asker, run_segment

    run_segment(Asker(bundle, address, model, target, security=security), images, score, draw, json_output)


@connects
def health(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT")] = "127.0.0.1:8001",
    security: Connection = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="This one, by default the server as a whole.")] = "",
    timeout: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds to wait for the answer.")] = 5.0,
    json_output: Json = False,
) -> None:
    """Whether a server answers requests now, as the exit status: a probe for containers."""
    from ferryman.commands.health import run_health

    run_health(address, model, timeout, security, json_output)
