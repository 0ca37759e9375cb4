"""What a batch costs by its size: where more pictures at a time still pay."""

from collections.abc import Sequence

import numpy as np

from ferryman.specs import Facts

_ENOUGH = 0.9  # of the highest throughput: the knee
_SAME = 0.98  # of it: what lies between may be noise, and a larger batch costs latency and memory


class Point(Facts):
    """median_ms: of a batch; images_per_s: at that"""

    batch: int
    median_ms: float
    images_per_s: float


class Curve(Facts):
    """best: the smallest batch with 98 % of the highest throughput; knee: the smallest with nine tenths of it

    launch_ms, image_ms: the line through the medians, whose relative errors count: a batch takes launch_ms +
    image_ms * batch; worst_fit: the largest relative error of the line; ended: why no larger batch was measured
    """

    points: tuple[Point, ...]
    best: int
    knee: int
    launch_ms: float
    image_ms: float
    worst_fit: float
    ended: str

    def __str__(self) -> str:
        line = f"a batch takes {self.launch_ms:.3g} ms and {self.image_ms:.3g} ms a picture"
        if self.worst_fit > 0.1:
            line = f"no line fits what a batch takes (up to {self.worst_fit:.0%} off)"
        return f"best batch {self.best}, knee {self.knee} (nine tenths of the throughput); {line}; ended: {self.ended}"


def draw_curve(medians_ms: Sequence[tuple[int, float]], ended: str) -> Curve:
    """medians_ms: of each batch, ascending, one at least."""
    points = tuple(Point(batch=size, median_ms=took, images_per_s=1e3 * size / took) for size, took in medians_ms)
    most = max(point.images_per_s for point in points)
    sizes, times = (np.array(column, dtype=np.float64) for column in zip(*medians_ms, strict=True))
    launch, image = 0.0, float(times[0] / sizes[0])
    if len(points) > 1:
        # Weighted so that one per cent counts the same for a batch of 1 and of 64.
        columns = np.stack([1 / times, sizes / times], axis=1)
        (launch, image), *_ = np.linalg.lstsq(columns, np.ones(len(times)), rcond=None)
    fitted = launch + image * sizes
    return Curve(
        points=points,
        best=next(point.batch for point in points if point.images_per_s >= _SAME * most),
        knee=next(point.batch for point in points if point.images_per_s >= _ENOUGH * most),
        launch_ms=float(launch),
        image_ms=float(image),
        worst_fit=float(np.abs(fitted / times - 1).max()),
        ended=ended,
    )
