"""The `ferryman` command: what each subcommand takes. What it does stands in `commands/`, imported when called."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ferryman.cli_asking import classify, detect, embed, health, segment
from ferryman.cli_bench import bench
from ferryman.errors import MissingExtraError, UsageError
from ferryman.options import (
    AccuracyPlace,
    Adapter,
    Arch,
    BundlePath,
    Certificates,
    Head,
    HintName,
    Json,
    Labels,
    Revision,
    SourceName,
    Spec,
    Streams,
    TargetName,
    TargetNames,
    Threads,
)

if TYPE_CHECKING:
    from ferryman.runtimes.base import Hint, Settings

app = typer.Typer(
    help="Carries ViT and DETR checkpoints from PyTorch to where they run, serves them, and proves nothing was lost.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for pictures, bundles and the report.")] = Path(
        "demo"
    ),
    json_output: Json = False,
) -> None:
    """The whole crossing, offline: export both embedded models, verify, serve, classify, detect, compare speed."""
    with _exporting("the demo"):
        from ferryman_export.demo import run_demo
    run_demo(output, json_output)


@app.command()
def export(
    source: SourceName,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="REPOSITORY", help="Model repository.")],
    name: Annotated[str | None, typer.Option(help="The model's name, by default the source's.")] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HxW",
            help="Canvas, by default the checkpoint's; repeated for a bundle of several, of which each picture goes to "
            "the one that it wastes the least of; `auto` for those that suit the --samples.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Variant to build too, such as openvino-cpu-int8, or all-cpu; may be repeated."),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Some hundred real pictures for the variants in int8.")
    ] = None,
    samples: Annotated[Path | None, typer.Option(help="Folder of real pictures to compare on.")] = None,
    accuracy: AccuracyPlace = None,
    tolerance: Annotated[float | None, typer.Option(help="Largest absolute error of every limited output.")] = None,
    arch: Arch = None,
    labels: Labels = None,
    head: Head = None,
    adapter: Adapter = None,
    revision: Revision = None,
    spec: Spec = None,
    onnx_spec: Annotated[
        Path | None, typer.Option(help="JSON file that says what an ONNX file of someone else's takes and answers.")
    ] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Compare module by module too; name the first that diverges from PyTorch.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Answer where the model looked too: ViT, DINOv2 and DETR without masks.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Export a checkpoint to REPOSITORY/NAME/VERSION, proved against PyTorch; exit status 3 when out of tolerance."""
    with _exporting("the export"):
        from ferryman_export.command import run_export
        from ferryman_export.sources import SourceOptions
    sizes = parse_sizes(size)
    run_export(
        source,
        output,
        name,
        sizes,
        target or [],
        samples,
        tolerance,
        SourceOptions(arch, labels, head, adapter, revision, spec),
        onnx_spec,
        bisect,
        explain,
        calibration,
        accuracy,
        json_output,
    )


@app.command()
def build(
    bundle: BundlePath,
    target: Annotated[list[str] | None, typer.Option(help="By default every one that runs an engine.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="The largest batch that the engine takes in one run.")] = 8,
    refittable: Annotated[
        bool, typer.Option(help="Build so that the weights of a later bundle can be put in; may be slower.")
    ] = False,
    refit: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE", help="Put the weights into the engines that this bundle has, instead of building."
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Build engines for this device's GPU from a bundle's TensorRT variants; they are kept beside them."""
    from ferryman.commands.build import run_build

    run_build(bundle, target or [], batch, refittable, refit, json_output)


@app.command()
def verify(
    bundle: BundlePath,
    target: Annotated[str | None, typer.Option(help="The variant, by default every one that can run here.")] = None,
    certificates: Certificates = None,
    accuracy: AccuracyPlace = None,
    threads: Threads = None,
    streams: Streams = None,
    hint: HintName = None,
    json_output: Json = False,
) -> None:
    """Prove on this device, without PyTorch, that a bundle answers like PyTorch; certify each of its variants."""
    from ferryman.commands.verify import run_verify

    run_verify(bundle, target, certificates, accuracy, _settings(threads, streams, hint), json_output)


@app.command()
def inspect(
    what: Annotated[
        str, typer.Argument(metavar="BUNDLE|SOURCE", help="A bundle, or a checkpoint that `export` would take.")
    ],
    arch: Arch = None,
    labels: Labels = None,
    head: Head = None,
    adapter: Adapter = None,
    revision: Revision = None,
    spec: Spec = None,
    target: Annotated[str | None, typer.Option(help="Of a bundle this variant, by default all.")] = None,
    json_output: Json = False,
) -> None:
    """Show what a bundle holds and how closely it follows PyTorch; or what a checkpoint is, before any export."""
    from ferryman.bundle import is_bundle
    from ferryman.commands.inspect import run_inspect

    options = (arch, labels, head, adapter, revision, spec)
    path = Path(what)
    checkpoint = any((path / name).exists() for name in ("config.json", "adapter_config.json"))
    # A folder that is neither: that it is no bundle is said without loading PyTorch.
    if is_bundle(path) or (path.is_dir() and not checkpoint):
        if is_bundle(path) and options != (None,) * len(options):
            raise UsageError(f"{what} is a bundle, which says itself what it is: leave out the options of a source")
        run_inspect(path, target, json_output)
        return
    if target is not None:
        raise UsageError(f"--target belongs to a bundle, and {what} is none")
    with _exporting("inspecting a checkpoint"):
        from ferryman_export.command import run_inspect_source
        from ferryman_export.sources import SourceOptions
    run_inspect_source(what, SourceOptions(*options), json_output)


@app.command()
def serve(
    repository: Annotated[
        Path | None, typer.Argument(metavar="REPOSITORY", help="Folder of NAME/VERSION bundles.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="By default 127.0.0.1:8001; port 0 takes a free one.")
    ] = None,
    target: TargetName = None,
    threads: Threads = None,
    streams: Streams = None,
    hint: HintName = None,
    model_cpus: Annotated[
        str | None, typer.Option(metavar="LIST", help="Processors for the models alone, such as 0 or 2-3.")
    ] = None,
    certify: Annotated[
        bool | None, typer.Option("--certify", help="Prove at start what has no certificate for this device.")
    ] = None,
    certificates: Certificates = None,
    tls_certificate: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM; needs --tls-key.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM, without a password.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Clients must show a certificate of these authorities.")
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Callers must send one of these; see `ferryman token`.")
    ] = None,
    admin_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Of this machine alone: everything is allowed there.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML file with settings; FERRYMAN_SERVE_<SETTING> and options win over it."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Look at settings, certificates, tokens and bundles; serve nothing.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of the TOML file.")] = False,
    json_output: Json = False,
) -> None:
    """Serve a model repository over gRPC until SIGTERM or Ctrl-C."""
    # Read when grpc is imported. Its own log has a line for each TLS handshake that fails, which strangers could fill.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from ferryman.commands.serve import run_schema, run_serve

    if schema:
        run_schema()
        return
    options = {"repository": repository, "address": address, "target": target, "threads": threads, "streams": streams}
    options |= {
        "hint": hint,
        "model_cpus": model_cpus,
        "certify": certify,
        "certificates": certificates,
        "tls_certificate": tls_certificate,
    }
    options |= {"tls_key": tls_key, "tls_client_ca": tls_client_ca, "tokens": tokens, "admin_address": admin_address}
    run_serve(config, options, check, json_output)


@app.command()
def top(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The server's metrics_address.")],
    interval: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds that each figure is taken over.")] = 2.0,
    json_output: Json = False,
) -> None:
    """What a running server does now: a table that goes on until Ctrl-C; once with --json."""
    from ferryman.commands.top import run_top

    run_top(address, interval, json_output)


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="Of the bearer, in the server's log.")],
    model: Annotated[list[str] | None, typer.Option(help="May ask this one alone; may be repeated.")] = None,
    in_flight: Annotated[int | None, typer.Option(min=1, help="Calls at a time.")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May load, unload and list models.")] = False,
    json_output: Json = False,
) -> None:
    """Make a bearer token, and its line for the file that `ferryman serve --tokens` reads."""
    from ferryman.commands.serve import run_token

    run_token(name, {"models": model or (), "in_flight": in_flight, "rate": rate, "admin": admin}, json_output)


app.command()(classify)
app.command()(detect)
app.command()(embed)
app.command()(segment)
app.command()(health)
app.add_typer(bench, name="bench")


@app.command()
def advise(
    bundle: BundlePath,
    target: TargetNames = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="How long to measure each variant.")] = 5.0,
    certificates: Certificates = None,
    accuracy: AccuracyPlace = None,
    plot: Annotated[Path | None, typer.Option(metavar="OUT.png", help="Draw speed against error.")] = None,
    threads: Threads = None,
    streams: Streams = None,
    hint: HintName = None,
    json_output: Json = False,
) -> None:
    """Measure a bundle's variants here, in turn, and say which of them to use and why."""
    from ferryman.commands.advise import run_advise

    settings = _settings(threads, streams, hint)
    run_advise(bundle, target or [], seconds, certificates, accuracy, plot, settings, json_output)


@app.command()
def doctor(json_output: Json = False) -> None:
    """Which runtimes and devices this machine really has, and what is missing."""
    from ferryman.commands.doctor import run_doctor

    run_doctor(json_output)


def _settings(threads: int | None, streams: int | None, hint: "Hint | None") -> "Settings":
    from ferryman.runtimes.base import Settings

    return Settings(threads, streams, hint or "latency")


@contextmanager
def _exporting(what: str) -> Generator[None, None, None]:
    """Around the import of the export, which takes seconds. Raises MissingExtraError when a part of it is missing."""
    from ferryman.commands.console import show_stages

    try:
        with show_stages() as show:
            show("load PyTorch", 0, 1)
            yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{what} ({error.name} is missing)", "export") from error


def parse_sizes(texts: list[str] | None) -> tuple[tuple[int, int], ...] | Literal["auto"]:
    """Each HxW -> (height, width). Raises UsageError."""
    if texts == ["auto"]:
        return "auto"
    sizes: list[tuple[int, int]] = []
    for text in texts or ():
        height, _, width = text.lower().partition("x")
        if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
            raise UsageError(f"--size must be HxW in pixels, such as 480x640, or auto alone; got {text!r}")
        sizes.append((int(height), int(width)))
    return tuple(sizes)
