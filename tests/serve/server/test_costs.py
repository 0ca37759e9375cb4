"""What batches take: which of them help, what is foretold, and how a session is timed."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ferryman.attest import Attestation
from ferryman.errors import EngineError
from ferryman.golden import GoldenSamples
from ferryman.runtimes.base import Arrays, Session
from ferryman.server.costs import Costs, measure_costs

from ..toy import SPECS


class Played(Session):
    """Takes as long as a table says, on a clock of its own."""

    def __init__(self, seconds: dict[int, float]) -> None:
        super().__init__(SPECS["toy-classifier"])
        self.now = 0.0
        self.runs: list[int] = []
        self.useful: int | None = None
        self._seconds = seconds

    def clock(self) -> float:
        return self.now

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        size = len(inputs["image"])
        if size not in self._seconds:
            raise EngineError(f"no memory for a batch of {size}")
        self.runs.append(size)
        # Now and then something else had the processor.
        self.now += self._seconds[size] * (1 if len(self.runs) % 3 else 3)
        return {}

    def attest(self, inputs: Arrays) -> Attestation:
        raise NotImplementedError

    def _close(self) -> None:
        pass

    @property
    def largest_useful_batch(self) -> int | None:
        return self.useful


def measure(session: Played, max_batch: int) -> Costs:
    golden = GoldenSamples(("a", "b", "c"), {"image": np.zeros((3, 32, 32, 3), np.uint8)}, {})
    return measure_costs(session, golden, max_batch, session.clock)


def test_sizes_are_timed_until_one_does_not_help() -> None:
    session = Played({1: 0.010, 2: 0.012, 4: 0.016, 8: 0.032, 16: 0.032})
    costs = measure(session, 32)
    assert costs.measured == pytest.approx({1: 0.010, 2: 0.012, 4: 0.016, 8: 0.032})
    assert costs.best == 4


def test_a_session_that_runs_one_by_one_gets_batches_of_one() -> None:
    session = Played({1: 0.010, 2: 0.020})
    assert measure(session, 32).best == 1
    assert set(session.runs) == {1, 2}
    session = Played({1: 0.010, 2: 0.011, 3: 0.012})
    session.useful = 3  # as many as it runs side by side
    assert measure(session, 32).best == 3


def test_the_last_size_is_the_limit() -> None:
    assert sorted(measure(Played({1: 0.01, 2: 0.01, 4: 0.01, 6: 0.01}), 6).measured) == [1, 2, 4, 6]
    assert sorted(measure(Played({1: 0.01}), 1).measured) == [1]


def test_a_size_that_fails_is_not_used() -> None:
    assert measure(Played({1: 0.01, 2: 0.01}), 32).best == 2
    with pytest.raises(EngineError):
        measure(Played({}), 32)


def test_a_slow_model_is_not_held_up() -> None:
    session = Played({1: 3.0, 2: 3.0})
    costs = measure(session, 32)
    assert session.runs == [1, 1]
    assert costs.best == 1
    session = Played({1: 1.0, 2: 1.5, 4: 2.5})
    assert measure(session, 32).best == 1


def test_small_batches_pay_for_what_a_launch_takes() -> None:
    assert Costs({1: 0.0001, 2: 0.0002}).best == 2  # two launches would take more than they
    assert Costs({1: 0.0100, 2: 0.0200}).best == 1


def test_times_between_and_beyond_the_sizes() -> None:
    costs = Costs({1: 0.010, 4: 0.016})
    times = [costs.seconds(size) for size in (1, 2, 3, 4, 8)]
    assert times == pytest.approx([0.010, 0.012, 0.014, 0.016, 0.032])
    assert costs.image_s() == pytest.approx(0.004)
    assert costs.total(9) == pytest.approx(0.016 + 0.016 + 0.010)


def test_the_pace_follows_what_runs_and_not_one_that_was_held_up() -> None:
    costs = Costs({1: 0.010})
    costs.add(1, 60.0)
    assert costs.seconds(1) == pytest.approx(0.011)
    for _ in range(60):
        costs.add(1, 0.020)
    assert costs.seconds(1) == pytest.approx(0.020, rel=0.01)
    for _ in range(60):
        costs.add(1, 0.010)
    assert costs.seconds(1) == pytest.approx(0.010, rel=0.01)
