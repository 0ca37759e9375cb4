"""A picture of an advice: speed against error."""

from importlib.util import find_spec
from math import log10
from pathlib import Path
from typing import Any

from ferryman.accuracy import AccuracyReport
from ferryman.bench.advice import Advice, Measured, describe_error
from ferryman.errors import MissingExtraError, UsageError
from ferryman.files import replace_file

_FRONT, _OTHER, _REFUSED = "#0b6e4f", "#7a869a", "#b3261e"
# Ends of the logarithmic axis: below fp32's rounding, where an error of 0 stands, and above any answer of use.
_SMALLEST, _LARGEST = 1e-8, 1e4


def check_plot(path: Path) -> None:
    """Before anything is measured. Raises UsageError for another name than .png, MissingExtraError."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot writes PNG: {path} must end in .png")
    if find_spec("matplotlib") is None:
        raise MissingExtraError("a picture of measurements", "plot")


def plot_advice(advice: Advice, title: str, path: Path, counted: AccuracyReport | None = None) -> None:
    """Each variant at its worst error, if that is known, and its speed; the front a line, the recommendation a ring.

    counted: the accuracy that stands beside each, where it was measured
    Raises FileAccessError when `path` can't be written.
    """
    from matplotlib.figure import Figure

    shown = [one for one in advice.variants if one.proof is not None and one.proof.error is not None]
    first = advice.variants[0].target
    figure = Figure(figsize=(9, 5.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    on_front = sorted((one for one in shown if one.target in advice.front), key=_place)
    # From one variant of the front to the next nothing between them was measured: steps.
    axes.step(
        [_place(one) for one in on_front],
        [one.ratio.value for one in on_front],
        where="post", color=_FRONT, linewidth=1.2, alpha=0.5, zorder=1, label="front: no other is as fast and as exact",
    )  # fmt: skip
    for one in shown:
        x, y = _place(one), one.ratio.value
        front = one.target in advice.front
        refused = one.proof is not None and not one.proof.passed
        colour = _REFUSED if refused else _FRONT if front else _OTHER
        axes.errorbar(
            [x], [y], yerr=[[y - one.ratio.low], [one.ratio.high - y]],
            fmt="x" if refused else "o", color=colour, markersize=8, capsize=4, zorder=3,
        )  # fmt: skip
        if one.target == advice.recommended:
            axes.plot([x], [y], "o", markersize=17, fillstyle="none", color=_FRONT, markeredgewidth=2, zorder=2,
                      linestyle="none", label="recommended")  # fmt: skip
    axes.axhline(1.0, color=_OTHER, linewidth=0.8, linestyle=":", zorder=0)
    axes.set_xlabel("worst error against PyTorch fp32 (logarithmic; further left is closer)")
    axes.set_ylabel(f"times as fast as {first}\nbars: 95 % interval")
    axes.set_ylim(0, max(one.ratio.high for one in shown) * 1.22 if shown else 1)
    places = [_place(one) for one in shown]
    axes.set_xlim(min(places, default=_SMALLEST) / 4, max(places, default=_LARGEST) * 4)
    if any(one.proof is not None and not one.proof.passed for one in shown):
        axes.plot([], [], "x", color=_REFUSED, linestyle="none", label="out of tolerance")
    _label(axes, shown, counted)
    axes.grid(visible=True, which="major", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)  # above, where no mark can be
    axes.set_title(title, loc="left", fontsize=11)
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _place(one: Measured) -> float:
    """On the axis of errors; what is beyond its ends stands there."""
    error = one.proof.error if one.proof is not None else None
    return min(_LARGEST, max(_SMALLEST, error or 0.0))


def _label(axes: Any, shown: list[Measured], counted: AccuracyReport | None) -> None:
    """Name and time beside each mark, towards the middle; those of marks that are close stand below one another."""
    left, right = (log10(edge) for edge in axes.get_xlim())
    gap = axes.get_ylim()[1] * 0.085
    written: list[tuple[bool, float]] = []  # the side and height of each label
    for one in sorted(shown, key=lambda one: -one.ratio.value):
        x, y = _place(one), one.ratio.value
        outer = log10(x) > (left + right) / 2
        height = y
        while any(side == outer and abs(height - other) < gap for side, other in written):
            height -= gap / 8
        written.append((outer, height))
        accuracy = "" if counted is None else f", {counted.figure} {counted.value(one.target):.3f}"
        axes.annotate(
            f"{one.target}\n{one.median_ms:.3g} ms, error {describe_error(one.proof and one.proof.error)}{accuracy}",
            (x, height), xytext=(-16 if outer else 16, 0), textcoords="offset points",
            ha="right" if outer else "left", va="center", fontsize=9, linespacing=1.25,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}, zorder=2.5,
        )  # fmt: skip
