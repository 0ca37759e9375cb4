"""How long a build still takes, by an earlier one; the clock is set by the tests."""

import pytest

from ferryman.runtimes.pace import Pace, describe_seconds


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def build(pace: Pace, clock: Clock, slowness: float = 1.0) -> list[tuple[float, float | None]]:
    """As TensorRT's: 90 steps in a second, one in 60, 9 in 39. What was left, and what was foretold, at each second."""
    ends = [step / 90 for step in range(1, 91)] + [61.0] + [61 + 39 * step / 9 for step in range(1, 10)]
    start, told, step = clock.now, list[tuple[float, float | None]](), 0
    for second in range(1, 101):
        while step < len(ends) and ends[step] <= second + 1e-6:
            clock.now = start + slowness * ends[step]
            pace.count()
            step += 1
        clock.now = start + slowness * second
        told.append((slowness * (100 - second), pace.seconds_left()))
    pace.stop()
    return told


def test_the_first_of_its_kind_knows_nothing() -> None:
    clock = Clock()
    pace = Pace(clock=clock)
    assert {foretold for _, foretold in build(pace, clock)} == {None}
    assert pace.share() is None
    assert pace.seconds == pytest.approx(100)
    assert pace.marks()[:61] == (*[90] * 60, 91)
    assert pace.marks()[-1] == 100


@pytest.mark.parametrize("slowness", [1.0, 3.0, 0.4])
def test_the_next_one_knows_on_a_machine_that_is_slower_or_faster(slowness: float) -> None:
    clock = Clock()
    first = Pace(clock=clock)
    build(first, clock)
    second = Pace(first.marks(), first.seconds, clock)
    told = build(second, clock, slowness)
    assert told[0][1] == pytest.approx(99, abs=2)  # it goes by the earlier one's rate at first
    for left, foretold in told[61:]:  # and by its own, when the long step is over
        assert foretold == pytest.approx(left, rel=0.1, abs=5 * slowness)


def test_it_takes_as_long_as_before_to_the_second() -> None:
    clock = Clock()
    first = Pace(clock=clock)
    build(first, clock)
    told = build(Pace(first.marks(), first.seconds, clock), clock)
    assert [foretold for _, foretold in told] == pytest.approx(
        [left for left, _ in told], abs=1.5
    )  # a mark is a second


def test_more_steps_than_before_and_none_at_all() -> None:
    clock = Clock()
    pace = Pace((1, 2), 2.0, clock)
    assert (pace.share(), pace.seconds_left()) == (0, 2)
    for _ in range(5):
        clock.now += 1
        pace.count()
    assert (pace.share(), pace.seconds_left()) == (1, 0)
    assert Pace().marks() == ()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "1 s"), (7.4, "7 s"), (43.0, "40 s"), (94.0, "90 s"), (200.0, "3 min")]
)
def test_an_estimate_is_told_as_roughly_as_it_is_known(seconds: float, text: str) -> None:
    assert describe_seconds(seconds) == text
