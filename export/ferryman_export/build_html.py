"""build.html: one self-contained page that shows how a variant came about: its blocks' errors, its islands, the search.

The pictures are SVG in the page itself, so that they follow its colours: light, dark, or printed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from ferryman_export.islands import IslandReport
from ferryman_export.quantize import QuantizationPlan
from ferryman_export.variants.base import BuildReport

MOST_BARS = 100  # blocks that are drawn, the worst; islands are drawn whatever their error
_LONGEST_NAME = 56  # characters before a block's name is cut in its middle
_OVERFLOW = 1e8  # an error from here on stands for an overflow, see `islands.Error`


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis of errors. low, high: its ends; ticks: values that are marked"""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def around(cls, errors: Sequence[float]) -> "Axis":
        """From 1, 2 or 5 times a power of ten to the largest error; 0 and overflows lie beyond its ends."""
        shown = [error for error in errors if 0 < error < _OVERFLOW] or [0.1]
        steps = [float(f"{factor}e{power}") for power in range(-12, 9) for factor in (1, 2, 5)]
        low = max((step for step in steps if step < min(shown)), default=min(shown) / 2)
        ticks = [step for step in steps if low <= step <= max(shown)]
        if len(ticks) > 8:  # the powers of ten are enough
            ticks = [step for step in ticks if f"{step:e}".startswith("1.0")]
        return cls(low, max(shown), tuple(ticks))

    def place(self, error: float) -> float:
        """0 at the low end, 1 at the high one; what lies beyond stands there."""
        share = math.log(max(error, self.low) / self.low) / math.log(self.high / self.low)
        return min(1.0, share)


@dataclass(frozen=True)
class Bar:
    """name: in full; label: as it is drawn; length: 0 to 1; kind: `low` (precision), `island`, `free` or `best`"""

    name: str
    label: str
    error: float
    length: float
    kind: str

    @property
    def figure(self) -> str:
        return describe_error(self.error)


@dataclass(frozen=True)
class Bars:
    """A chart of bars, the first at the top. label_width: characters of the longest label"""

    axis: Axis
    bars: tuple[Bar, ...]
    label_width: int


def render_build(name: str, report: BuildReport) -> str:
    """The page as HTML. name: of the model; the report holds islands or trials."""
    environment = Environment(
        loader=PackageLoader("ferryman_export"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["error"] = describe_error
    found = report.islands
    errors = [point.error for point in found.curve] if found else []
    blocks = draw_blocks(found) if found and found.blocks else None
    return environment.get_template("build.html").render(
        name=name,
        report=report,
        found=found,
        low=report.target.rpartition("-")[2],
        blocks=blocks,
        left_out=len(found.blocks) - len(blocks.bars) if found and blocks else 0,
        curve_axis=Axis.around(errors),
        most_islands=max([point.islands for point in found.curve] if found else [0]),
        trials=draw_trials(report) if report.trials else None,
    )


def draw_blocks(found: IslandReport) -> Bars:
    """Every block's error alone in the low precision, the worst first; islands in colours of their own."""
    free = frozenset(found.islands[: found.free])
    kinds = {block: "free" if block in free else "island" for block in found.islands}
    ranked = sorted(found.blocks, key=lambda one: -one.error)
    shown = [one for place, one in enumerate(ranked) if place < MOST_BARS or one.block in kinds]
    axis = Axis.around([one.error for one in shown])
    bars = [
        Bar(one.block, _shorten(one.block), one.error, axis.place(one.error), kinds.get(one.block, "low"))
        for one in shown
    ]
    return Bars(axis, tuple(bars), max(len(bar.label) for bar in bars))


def draw_trials(report: BuildReport) -> Bars:
    """Every way to calibrate, the best first; the one that the variant has stands out."""
    axis = Axis.around([trial.error for trial in report.trials])
    bars: list[Bar] = []
    for trial in report.trials:
        words = describe_plan(trial.plan)
        kind = "best" if trial.plan == report.plan else "low"
        bars.append(Bar(words, words, trial.error, axis.place(trial.error), kind))
    return Bars(axis, tuple(bars), max(len(bar.label) for bar in bars))


def describe_plan(plan: QuantizationPlan) -> str:
    parts = [plan.method]
    if plan.smooth is not None:
        parts.append(f"SmoothQuant {plan.smooth:g}")
    if plan.rounding != "nearest":
        parts.append(plan.rounding.upper())
    return ", ".join(parts)


def describe_error(error: float) -> str:
    return "overflow" if error >= _OVERFLOW else f"{error:.3g}"


def _shorten(name: str) -> str:
    if len(name) <= _LONGEST_NAME:
        return name
    half = (_LONGEST_NAME - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
