"""How long a build still takes, by an earlier one; the clock is set by the tests."""

import pytest

from ferryman.runtimes.pace import PARTS, Pace, describe_seconds


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def build(pace: Pace, clock: Clock, slowness: float = 1.0) -> list[tuple[float, float | None]]:
    """90 steps in a second, then 10 in 99, as TensorRT's are; what was left and what was foretold at each."""
    whole, told = 100 * slowness, list[tuple[float, float | None]]()
    start = clock.now
    for step in range(100):
        clock.now += slowness * (1 / 90 if step < 90 else 9.9)
        pace.count()
        told.append((start + whole - clock.now, pace.seconds_left()))
    pace.stop()
    return told


def test_the_first_of_its_kind_knows_nothing() -> None:
    clock = Clock()
    pace = Pace(clock=clock)
    assert {foretold for _, foretold in build(pace, clock)} == {None}
    assert pace.share() is None
    assert (pace.seconds, pace.steps, len(pace.marks())) == (pytest.approx(100), 100, PARTS)
    assert pace.marks()[-1] == pace.seconds


@pytest.mark.parametrize("slowness", [1.0, 3.0, 0.5])
def test_the_next_one_knows_on_a_machine_that_is_slower_or_faster(slowness: float) -> None:
    clock = Clock()
    first = Pace(clock=clock)
    build(first, clock)
    second = Pace(first.marks(), first.steps, clock)
    told = build(second, clock, slowness)
    for left, foretold in told[:90]:  # it goes by the earlier one's rate at first
        assert foretold == pytest.approx(left / slowness, rel=0.05)
    for left, foretold in told[94:]:  # then by its own
        assert foretold == pytest.approx(left, rel=0.1, abs=2)


def test_more_steps_than_before_and_none_at_all() -> None:
    clock = Clock()
    pace = Pace((1.0, 2.0), 2, clock)
    assert pace.seconds_left() == 2
    for _ in range(5):
        clock.now += 1
        pace.count()
    assert pace.seconds_left() == 0
    assert pace.share() == 0.99
    assert Pace().marks() == ()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "1 s"), (7.4, "7 s"), (43.0, "40 s"), (94.0, "90 s"), (200.0, "3 min")]
)
def test_an_estimate_is_told_as_roughly_as_it_is_known(seconds: float, text: str) -> None:
    assert describe_seconds(seconds) == text
