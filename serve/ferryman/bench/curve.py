"""What more of something costs and brings: batch, size, threads, streams, clients. Where more of it still pays."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ferryman.specs import Facts

Axis = Literal["batch", "size", "threads", "streams", "clients"]
_ENOUGH = 0.9  # of the highest throughput: the knee
_SAME = 0.98  # of it: what lies between may be noise, and more costs latency and memory
_UNITS: dict[Axis, str] = {"batch": "picture", "size": "megapixel"}  # of what a request takes longer by


class Point(Facts):
    """name: as people say it; at: how much of the axis, megapixels of a size; median_ms: of a request"""

    name: str
    at: float
    median_ms: float
    images_per_s: float


class Line(Facts):
    """What a request takes: fixed_ms + each_ms * at, by relative errors; worst: the largest of those"""

    fixed_ms: float
    each_ms: float
    worst: float


class Curve(Facts):
    """best: the first point with 98 % of the highest throughput; knee: the first with nine tenths; None for sizes

    line: of batches and sizes; ended: why no point beyond the last was measured
    """

    axis: Axis
    points: Annotated[tuple[Point, ...], Field(min_length=1)]
    best: str | None
    knee: str | None
    line: Line | None
    ended: str

    def __str__(self) -> str:
        parts = (
            []
            if self.best is None
            else [f"best {self.axis} {self.best}, knee {self.knee} (nine tenths of the throughput)"]
        )
        if self.line is not None:
            fits = self.line.worst <= 0.1
            parts.append(
                f"a request takes {self.line.fixed_ms:.3g} ms and {self.line.each_ms:.3g} ms a {_UNITS[self.axis]}"
                if fits
                else f"no line fits what a request takes (up to {self.line.worst:.0%} off)"
            )
        return "; ".join([*parts, f"ended: {self.ended}"])


def draw_curve(axis: Axis, points: Sequence[Point], ended: str) -> Curve:
    """points: one at least, ascending."""
    most = max(point.images_per_s for point in points)

    def first(share: float) -> str | None:
        return None if axis == "size" else next(one.name for one in points if one.images_per_s >= share * most)

    line = _fit(points) if axis in _UNITS and len(points) > 1 else None
    return Curve(axis=axis, points=tuple(points), best=first(_SAME), knee=first(_ENOUGH), line=line, ended=ended)


def _fit(points: Sequence[Point]) -> Line:
    """Weighted so that one per cent counts the same for a batch of 1 and of 64."""
    at, took = (np.array(column) for column in zip(*((one.at, one.median_ms) for one in points), strict=True))
    (fixed, each), *_ = np.linalg.lstsq(np.stack([1 / took, at / took], axis=1), np.ones(len(took)), rcond=None)
    worst = float(np.abs((fixed + each * at) / took - 1).max())
    return Line(fixed_ms=float(fixed), each_ms=float(each), worst=worst)
