"""Charts of a record as SVG that stands in the page itself and takes its colours: light, dark, or printed."""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ferryman.bench.percentiles import name_percentile
from ferryman.bench.record import BenchRecord, RunRecord
from ferryman.bench.report import sort_stages

SERIES = 6  # colours; further runs use them again, with dashes
# Matplotlib takes no variables: it draws in these, and each is replaced by the variable of that name.
_VARIABLES = {"#010101": "ink", "#020202": "quiet", "#030303": "line", "#040404": "bad"} | {
    f"#0505{number:02d}": f"series-{number}" for number in range(SERIES)
}
_INK, _QUIET, _LINE, _BAD = list(_VARIABLES)[:4]
_WIDTH, _HEIGHT = 9.6, 3.2  # inches, of 72 pixels
_NINES = (50.0, 90.0, 99.0, 99.9, 99.99)


def draw_percentiles(record: BenchRecord) -> str:
    """Latency by percentile, as far as ten requests lie beyond; every nine takes as much room as the one before."""
    figure, axes = _open(f"latency in ms{' (logarithmic)' if _spans(record) else ''}")
    for number, run in enumerate(_right(record)):
        latencies = np.sort(run.unpack().latencies_ms)
        last = 1 - 10 / len(latencies)
        shares = 1 - np.geomspace(1, max(1e-6, 1 - last), 200) if last > 0.5 else np.array([0.0, 0.5])
        axes.plot(-np.log10(1 - shares), np.quantile(latencies, shares), label=run.name, **_style(number))
    axes.set_xticks([-np.log10(1 - one / 100) for one in _NINES], [name_percentile(one) for one in _NINES])
    axes.set_xlim(0, max(1.3, *(line.get_xdata().max() * 1.05 for line in axes.get_lines())))
    if _spans(record):
        _set_log(axes, "y")
    else:
        axes.set_ylim(bottom=0)
    return _close(figure, axes, len(record.runs))


def draw_distribution(record: BenchRecord) -> str:
    """How many of a run's requests took how long, up to its 99.5th percentile."""
    figure, axes = _open("share of the requests")
    runs = [(run, run.unpack().latencies_ms) for run in _right(record)]
    high = max((float(np.percentile(latencies, 99.5)) for _, latencies in runs), default=1.0)
    low = min((float(latencies.min()) for _, latencies in runs), default=0.0)
    log = high > 5 * low > 0
    edges = np.geomspace(low, high, 61) if log else np.linspace(low, high, 61)
    for number, (run, latencies) in enumerate(runs):
        counts, _ = np.histogram(latencies, edges)
        axes.stairs(counts / len(latencies), edges, label=run.name, fill=len(runs) == 1, **_style(number))
    if log:
        _set_log(axes, "x")
    axes.set_xlabel(f"latency in ms{' (logarithmic)' if log else ''}, up to the 99.5th percentile")
    return _close(figure, axes, len(runs))


def draw_time(record: BenchRecord) -> str:
    """Median and the middle 80 % of each block, by when it was measured: drift and disturbances show here."""
    figure, axes = _open("latency in ms")
    for number, run in enumerate(_right(record)):
        blocks = run.unpack().blocks
        times = [block.start_s + block.seconds / 2 for block in blocks]
        low, middle, high = np.array([np.percentile(block.latencies_ms, (10, 50, 90)) for block in blocks]).T
        style = _style(number)
        axes.vlines(times, low, high, alpha=0.45, linewidth=3, color=style["color"])
        axes.plot(times, middle, marker="o", markersize=4, label=run.name, **style)
    axes.set_xlabel("seconds since the measuring began; bars: 10th to 90th percentile of a block")
    axes.set_ylim(bottom=0)
    return _close(figure, axes, len(record.runs))


def draw_stages(record: BenchRecord) -> str:
    """The medians of the stages, one after the other."""
    runs = [run for run in _right(record) if run.figures.stages_ms][::-1]
    figure, axes = _open("", height=0.9 + 0.42 * len(runs))
    names = sort_stages(name for run in runs for name in run.figures.stages_ms)
    left = np.zeros(len(runs))
    for number, name in enumerate(names):
        widths = np.array([run.figures.stages_ms.get(name, 0.0) for run in runs])
        colour = _style(number)["color"] if name != "rest" else _QUIET
        paler = 1.0 if number < SERIES else 0.5  # where colours begin again
        axes.barh([run.name for run in runs], widths, left=left, height=0.6, color=colour, alpha=paler, label=name)
        left += widths
    axes.set_xlabel("median of each stage in ms")
    return _close(figure, axes, len(names), rows=True)


def draw_load(record: BenchRecord) -> str:
    """What the percentile is at each rate that was tried, and the bound; empty for other scenarios."""
    if record.bound is None:
        return ""
    figure, axes = _open(f"{name_percentile(record.bound.percentile)} in ms")
    for number, run in enumerate(_right(record)):
        known = sorted((one.rate, one.percentile_ms) for one in run.trials if one.percentile_ms is not None)
        if known:
            axes.plot(*zip(*known, strict=True), marker="o", markersize=4, label=run.name, **_style(number))
        broken = [one.rate for one in run.trials if not one.kept]
        axes.plot(broken, [record.bound.ms * 1.12] * len(broken), "x", color=_style(number)["color"], markersize=5)
    axes.axhline(record.bound.ms, color=_BAD, linewidth=1, linestyle="--", label="the bound; x: given up beyond it")
    axes.set_xlabel("requests a second")
    axes.set_ylim(0, record.bound.ms * 1.3)
    return _close(figure, axes, len(record.runs) + 1)


def draw_curves(record: BenchRecord) -> str:
    """Throughput by what a curve is over; a ring for the knee, a disc for the best; empty for other scenarios."""
    if not record.curves:
        return ""
    axis = next(iter(record.curves.values())).axis
    figure, axes = _open("pictures a second")
    for number, (name, curve) in enumerate(record.curves.items()):
        style = _style(number)
        axes.plot([one.at for one in curve.points], [one.images_per_s for one in curve.points], marker=".", label=name,
                  **style)  # fmt: skip
        for point in curve.points:
            at, color = ([point.at], [point.images_per_s]), style["color"]
            if point.name == curve.best:
                axes.plot(*at, "o", color=color, markersize=8)
            if point.name == curve.knee:
                axes.plot(*at, "o", color=color, markersize=12, fillstyle="none")
    named = {point.at: point.name for curve in record.curves.values() for point in curve.points}
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(named), [named[at] for at in sorted(named)])
    axes.set_xlabel(axis if axis == "size" else f"{axis}; ring: the knee, disc: the best")
    axes.margins(y=0.15)
    axes.set_ylim(bottom=0)
    return _close(figure, axes, len(record.curves))


def draw_price(record: BenchRecord) -> str:
    """Latency against throughput, where a curve trades one for the other; empty for others."""
    curves = {name: one for name, one in record.curves.items() if one.axis in ("batch", "clients", "streams")}
    if not curves:
        return ""
    figure, axes = _open("median of a request in ms")
    for number, (name, curve) in enumerate(curves.items()):
        rates, took = [one.images_per_s for one in curve.points], [one.median_ms for one in curve.points]
        axes.plot(rates, took, marker=".", label=name, **_style(number))
        for point in curve.points:
            at = (point.images_per_s, point.median_ms)
            axes.annotate(point.name, at, textcoords="offset points", xytext=(4, -11), color=_QUIET, fontsize=8)
    axes.set_xlabel(f"pictures a second; at each point the {next(iter(curves.values())).axis}")
    axes.set_xlim(left=0)
    _set_log(axes, "y")
    axes.margins(y=0.15)
    return _close(figure, axes, len(curves))


def draw_pareto(record: BenchRecord) -> str:
    """Speed against accuracy; empty where accuracy was not measured."""
    counted = record.accuracy
    if counted is None:
        return ""
    figure, axes = _open(counted.figure)
    known = {one.target: one.scores.main[1] for one in counted.variants}
    runs = [run for run in _right(record) if run.name in known]
    for number, run in enumerate(runs):
        axes.plot([float(np.median(run.unpack().latencies_ms))], [known[run.name]], "o", label=run.name, markersize=8,
                  color=_style(number)["color"])  # fmt: skip
    axes.set_xlabel("median latency in ms; better is to the left and above")
    axes.set_xlim(left=0)
    shown = [known[run.name] for run in runs]
    axes.set_ylim(min(shown, default=0) - 0.02, max(shown, default=1) + 0.02)
    return _close(figure, axes, len(runs))


CHARTS: tuple[tuple[str, Callable[[BenchRecord], str]], ...] = (
    ("The rate that keeps the bound", draw_load),
    ("Throughput curve", draw_curves),
    ("Latency against throughput", draw_price),
    ("Percentiles", draw_percentiles),
    ("Distribution", draw_distribution),
    ("Stages", draw_stages),
    ("Over time", draw_time),
    ("Speed against accuracy", draw_pareto),
)


def draw_charts(record: BenchRecord) -> list[tuple[str, str]]:
    """Title and SVG of all that say something of this record."""
    runs = _right(record)
    if not runs:
        return []
    drawn: list[tuple[str, str]] = []
    for title, draw in CHARTS:
        if draw is draw_stages and not any(run.figures.stages_ms for run in runs):
            continue
        if draw is draw_time and record.scenario == "server":  # which has one block
            continue
        svg = draw(record)
        if svg:
            drawn.append((title, svg))
    return drawn


def _right(record: BenchRecord) -> list[RunRecord]:
    return [run for run in record.runs if run.right]


def _spans(record: BenchRecord) -> bool:
    """Whether the latencies need a logarithmic axis."""
    latencies = [run.figures for run in _right(record)]
    return max((one.max_ms for one in latencies), default=1) > 20 * min((one.min_ms for one in latencies), default=1)


def _style(number: int) -> dict[str, Any]:
    dash = ("-", "--", ":", "-.")[number // SERIES % 4]
    return {"color": f"#0505{number % SERIES:02d}", "linestyle": dash, "linewidth": 1.6}


def _set_log(axes: Any, which: str) -> None:
    """Logarithmic, marked at 1, 2, 5, 10 ... as people write them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _open(label: str, height: float = _HEIGHT) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylabel(label, color=_INK)
    axes.tick_params(which="both", colors=_LINE, labelcolor=_QUIET)
    axes.xaxis.label.set_color(_QUIET)
    axes.grid(visible=True, color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_LINE)
    return figure, axes


def _close(figure: Any, axes: Any, entries: int, rows: bool = False) -> str:
    """The SVG, its legend above the axes."""
    import matplotlib as mpl

    axes.xaxis.get_offset_text().set_color(_QUIET)
    if entries > 1 or rows:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=min(entries, 6 if rows else 3), frameon=False,
            fontsize=9, labelcolor=_INK, borderaxespad=0.2,
        )  # fmt: skip
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return _trim(svg)


def _trim(svg: str) -> str:
    """Without what only a file of its own needs: metadata, and ids that several charts of a page would share."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]+"', "<g", svg)
    return re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", svg)


def join_charts(records: Sequence[BenchRecord]) -> str:
    """Of several records the median of every run, a bar each with its 10th and 90th percentile; empty for one."""
    mixed = len({record.scenario for record in records}) > 1
    rows = [
        (
            f"{record.model}, {f'{record.scenario}, ' if mixed else ''}{run.name}, {record.machine.device.cpu}",
            run.unpack().latencies_ms,
        )
        for record in records
        for run in _right(record)
        if run.name == run.contender
    ][::-1]
    if len(records) < 2 or not rows:
        return ""
    figure, axes = _open("", height=0.8 + 0.36 * len(rows))
    names, latencies = [f"{name}  " for name, _ in rows], [values for _, values in rows]
    quantiles = np.array([np.percentile(values, (10, 50, 90)) for values in latencies]).T
    places = np.arange(len(rows))
    axes.barh(places, quantiles[1], height=0.6, color=_style(0)["color"])
    axes.hlines(places, quantiles[0], quantiles[2], color=_INK, linewidth=1)
    axes.set_yticks(places, names)
    axes.set_xlabel("median latency of a request in ms; lines: 10th to 90th percentile")
    return _close(figure, axes, 1)
