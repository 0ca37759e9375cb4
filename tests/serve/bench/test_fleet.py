"""The model of a fleet, against what queueing theory says exactly. Seeds are fixed: nothing here is left to chance."""

from collections.abc import Iterator
from math import factorial, inf

import numpy as np
import pytest

from ferryman.bench.fleet import Pick, Server, cameras, least_busy, poisson, simulate

REQUESTS = 60_000
SETTLE = REQUESTS // 20  # that find the house still empty


def random() -> np.random.Generator:
    return np.random.default_rng(7)


def least_of_two(count: int, random: np.random.Generator) -> Pick:
    """Of two servers that are drawn the one with fewer inside."""
    pairs = _pairs(count, random)

    def pick(number: int, inside: list[int]) -> int:
        one, two = next(pairs)
        return one if inside[one] <= inside[two] else two

    return pick


def _pairs(count: int, random: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Of different servers, where there are two."""
    while True:
        first = random.integers(0, count, 4096)
        second = (first + random.integers(1, max(count, 2), 4096)) % count
        yield from zip(first.tolist(), second.tolist(), strict=True)


def waits(server: Server, rate: float, service_s: float = 1.0) -> float:
    """Mean seconds before a run begins."""
    arrivals = poisson(rate, REQUESTS / rate, random())
    outcome = simulate(arrivals, server, 1, least_busy)
    assert outcome.refused == 0
    return float(outcome.latency_s[SETTLE:].mean()) - service_s


def exponential(mean: float) -> Server:
    draws = np.random.default_rng(9)
    return Server(lambda size: mean, queue_limit=10**9, draw=lambda size: float(draws.exponential(mean)))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_server_of_one_time_is_m_d_1(load: float) -> None:
    """Mean wait: load * service / 2(1 - load), by Pollaczek and Khinchine."""
    server = Server(lambda size: 1.0, queue_limit=10**9)
    assert waits(server, load) == pytest.approx(load / (2 * (1 - load)), rel=0.05)


def erlang_b(servers: int, offered: float) -> float:
    terms = [offered**k / factorial(k) for k in range(servers + 1)]
    return terms[-1] / sum(terms)


@pytest.mark.parametrize(("runs", "load"), [(1, 0.7), (4, 0.8)])
def test_runs_side_by_side_are_m_m_c(runs: int, load: float) -> None:
    """Mean wait by Erlang's delay formula, of runs whose times are exponential."""
    one = exponential(1.0)
    server = Server(one.seconds, concurrency=runs, queue_limit=10**9, draw=one.draw)
    blocked = erlang_b(runs, runs * load)
    delayed = blocked / (1 - load * (1 - blocked))
    assert waits(server, runs * load) == pytest.approx(delayed / (runs * (1 - load)), rel=0.05)


def test_a_server_without_a_queue_loses_by_erlangs_formula() -> None:
    one = exponential(1.0)
    server = Server(one.seconds, concurrency=5, queue_limit=5, draw=one.draw)
    arrivals = poisson(4.0, REQUESTS / 4, random())
    outcome = simulate(arrivals, server, 1, least_busy)
    assert outcome.refused == pytest.approx(erlang_b(5, 4.0), rel=0.03)


def test_the_better_of_two_is_as_much_better_as_it_should_be() -> None:
    """Mean time in many servers at a load of 0.9: the sum of 0.9**(2**i - 2), where random servers take 10."""
    server, count = exponential(1.0), 100
    arrivals = poisson(0.9 * count, 2 * REQUESTS / (0.9 * count), random())
    outcome = simulate(arrivals, server, count, least_of_two(count, np.random.default_rng(8)))
    expected = sum(0.9 ** (2**i - 2) for i in range(1, 8))
    assert float(outcome.latency_s[2 * SETTLE :].mean()) == pytest.approx(expected, rel=0.04)


def test_all_compared_are_better_than_two() -> None:
    """Servers of one time at a load of 0.9: next to nobody waits where all are compared."""
    server, count = Server(lambda size: 1.0), 50
    arrivals = poisson(0.9 * count, REQUESTS / (0.9 * count), random())
    two = simulate(arrivals, server, count, least_of_two(count, np.random.default_rng(8)))
    assert simulate(arrivals, server, count, least_busy).percentile_s(99) < 0.7 * two.percentile_s(99)


def test_batches_carry_what_single_runs_can_not() -> None:
    """8 in 2 s: four a second and no more, where one at a time would be one."""
    server = Server(lambda size: 0.8 + 0.15 * size, best=8)
    arrivals = poisson(3.2, 20_000 / 3.2, random())
    outcome = simulate(arrivals, server, 1, least_busy)
    assert outcome.refused == 0
    assert 3 < outcome.batch < 8
    flood = poisson(8.0, 2500, random())
    outcome = simulate(flood, server, 1, least_busy)
    assert outcome.batch == pytest.approx(8, rel=0.01)
    assert (1 - outcome.refused) * 8.0 == pytest.approx(4.0, rel=0.03)


def test_nobody_who_was_let_in_is_answered_late() -> None:
    """At twice what it can do; runs take as long as foretold, so that the rule can be held to its word."""
    server = Server(lambda size: 0.005 + 0.005 * size, best=8, deadline_s=0.2)
    arrivals = poisson(300.0, 60.0, random())
    outcome = simulate(arrivals, server, 1, least_busy)
    assert 0.4 < outcome.refused < 0.5
    assert outcome.percentile_s(100) <= 0.2
    # without deadlines it answers as many, all of them later
    patient = simulate(arrivals, Server(server.seconds, best=8), 1, least_busy)
    assert patient.refused == pytest.approx(outcome.refused, abs=0.1)
    assert patient.percentile_s(50) > 1.0


def test_cameras_are_as_regular_as_they_say() -> None:
    times, sources = cameras(10, 5, 2.0, random())
    assert len(times) == 100
    assert np.all(np.diff(times) >= 0)
    for camera in range(10):
        np.testing.assert_allclose(np.diff(times[sources == camera]), 0.2)
    together, _ = cameras(10, 5, 2.0, random(), spread_s=0.0)
    assert len(np.unique(together.round(9))) == 10


def test_nothing_asked_and_nothing_answered() -> None:
    assert simulate(np.array([]), Server(lambda size: 1.0), 2, least_busy).percentile_s(50) == inf
