"""`ferryman bench BUNDLE` and its subcommands: what each takes. What they do stands in `commands/`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from ferryman.connecting import Connection, connects
from ferryman.options import ALL, AccuracyPlace, Address, HintName, Json, Model, Streams, Threads, Via

_DEFAULT = "run"
Html = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write one self-contained page with charts and the machine.")
]
Markdown = Annotated[bool, typer.Option("--markdown", help="As a table for a README.")]
Csv = Annotated[bool, typer.Option("--csv", help="A line a variant, numbers in full.")]
Scenario = Literal[
    "single-stream", "multi-stream", "server", "offline",
    "batch-curve", "size-curve", "thread-curve", "stream-curve", "client-curve",
]  # fmt: skip


class OtherTool(StrEnum):
    ONNXRUNTIME = "onnxruntime"
    BENCHMARK_APP = "benchmark_app"
    TRTEXEC = "trtexec"
    PERF_ANALYZER = "perf_analyzer"


class _DefaultGroup(TyperGroup):
    """What is none of the subcommands belongs to `run`, so that `ferryman bench BUNDLE` needs no word more.

    `--fleet FILE...` is `report FILE...`: a shell's `*` makes many words, and an option takes one.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--fleet" in args:
            args = ["report", *(one for one in args if one != "--fleet")]
        return super().parse_args(ctx, args if args and args[0] in self.commands else [_DEFAULT, *args])


bench = typer.Typer(
    cls=_DefaultGroup,
    help="Measure how fast a model answers; show it again, compare it.",
    rich_markup_mode=None,
)


@bench.command(_DEFAULT)
@connects
def run(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="[BUNDLE]", help="Measure this bundle here, or beside the server of --address."),
    ] = None,
    address: Address = None,
    security: Connection = None,
    model: Model = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="Of several variants this one; repeatable; all for all that can run here."),
    ] = None,
    pytorch: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Measure PyTorch too, on the checkpoint of BUNDLE."),
    ] = None,
    compiled: Annotated[bool, typer.Option("--compiled", help="With --pytorch: torch.compile too.")] = False,
    via: Annotated[
        list[Via] | None,
        typer.Option(help="How it is asked: typed calls; infer, ModelInfer with pictures; tensors, made beforehand."),
    ] = None,
    compare: Annotated[
        list[OtherTool] | None,
        typer.Option(help="Beside a plain onnxruntime session, benchmark_app, trtexec, perf_analyzer; repeatable."),
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="Picture or folder of pictures to measure with; may be repeated.")
    ] = None,
    seconds: Annotated[float, typer.Option(max=3600, help="How long to measure each variant, at least.")] = 5.0,
    percentile: Annotated[
        list[float] | None,
        typer.Option(help="Measure on until this one has enough requests; repeatable. Else those that have."),
    ] = None,
    at_most: Annotated[
        float,
        typer.Option(min=1, max=36000, help="Seconds after which a percentile's requests, or a search, are given up."),
    ] = 600.0,
    scenario: Annotated[Scenario, typer.Option(help="How requests come; see docs/benchmarks.md.")] = "single-stream",
    per_request: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Pictures in a request; 8 of multi-stream, else 1.")
    ] = None,
    clients: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Requests at a time: offline's clients, a bundle's threads.")
    ] = None,
    bound: Annotated[
        float | None,
        typer.Option(metavar="MS", help="Of server: latency to keep; by default five times what one takes alone."),
    ] = None,
    most: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Of a curve: the largest batch, most threads, streams, clients.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Compare with what --json wrote earlier, on this machine.")
    ] = None,
    max_regression: Annotated[
        str, typer.Option(metavar="SHARE", help="Exit with 1 when it is surely slower than the baseline by more.")
    ] = "5%",
    accuracy: AccuracyPlace = None,
    html: Html = None,
    markdown: Markdown = False,
    csv: Csv = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when the measurement is unreliable.")] = False,
    threads: Threads = None,
    streams: Streams = None,
    hint: HintName = None,
    json_output: Json = False,
) -> None:
    """Latency from encoded picture to answer, stage by stage; of several variants in turn. docs/benchmarks.md

    More: `ferryman bench report FILE...` shows what --json wrote, `ferryman bench diff A B` compares two.
    """
    from ferryman.commands.bench.options import BenchOptions, Places
    from ferryman.commands.bench.report import choose_show
    from ferryman.commands.bench.run import run_bench
    from ferryman.commands.predict import Asker
    from ferryman.runtimes.base import Settings

    ways = tuple(dict.fromkeys(via or (Via.TYPED,)))
    settings = Settings(threads, streams, hint or "latency")
    targets = tuple(dict.fromkeys(target or ()))
    first = targets[0] if targets and targets[0] != ALL else None
    if bundle is None or address is None:  # which is checked there
        asker = Asker(bundle, address, model, first, settings, security, retries=False)
        places = Places(bundle, targets, settings, None if address is None else asker, pytorch, compiled, ways)
    else:
        server = Asker(None, address, model, None, security=security, retries=False)
        places = Places(bundle, targets, settings, server, pytorch, compiled, ways)
    options = BenchOptions(
        seconds, tuple(percentile or ()), at_most, strict, baseline, max_regression,
        scenario, per_request, clients, bound, most, accuracy, html,
        tuple(one.value for one in compare or ()),
    )  # fmt: skip
    run_bench(places, image or [], options, choose_show(markdown, csv, json_output))


@bench.command()
def report(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="What `ferryman bench --json` wrote.")],
    markdown: Markdown = False,
    csv: Csv = False,
    html: Html = None,
    json_output: Json = False,
) -> None:
    """Show measurements again, without measuring: one, or those of many devices on one page."""
    from ferryman.commands.bench.report import choose_show, run_report

    run_report(files, choose_show(markdown, csv, json_output), html)


@bench.command()
def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="What `ferryman bench --json` wrote.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The same, later or elsewhere.")],
    json_output: Json = False,
) -> None:
    """Whether B is faster or slower than A, how sure that is, and what else differs between them."""
    from ferryman.commands.bench.diff import run_diff

    run_diff(before, after, json_output)


@bench.command()
def schema() -> None:
    """Print the JSON schema of what `ferryman bench --json` writes."""
    from ferryman.commands.bench.report import run_schema

    run_schema()
