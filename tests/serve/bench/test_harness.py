"""The harness on sessions whose latency is known: what it says of them is right, within the bounds stated here."""

import re
import time
from collections.abc import Mapping

import numpy as np
import pytest

from ferryman.bench.clock import ClockFacts, measure_clock
from ferryman.bench.disturbance import Counters, Disturbance, read_counters
from ferryman.bench.gpu import GpuState
from ferryman.bench.harness import FEWEST_ROUNDS, Harness, Moment, Plan, Request
from ferryman.bench.machine import MachineState
from ferryman.bench.noise import find_disturbance, find_noise, find_throttling
from ferryman.bench.report import report_latency
from ferryman.bench.samples import Run
from ferryman.bench.turns import ROUNDS, compare_speed

from .synthetic import (
    READING_S,
    Latency,
    ManualClock,
    changing,
    cold,
    constant,
    drifting,
    play,
    session,
    stalling,
    two_modes,
)

CLOCK = ClockFacts(resolution_ns=1, overhead_ns=50)
SECONDS = Plan(seconds=20, warm_s=5)


def measure(latency: Latency, plan: Plan = SECONDS) -> Run:
    return play({"one": latency}, plan).runs["one"]


# Percentiles that are known, each within 1 % and the noise of the sessions, which is 1 % of a request.
KNOWN: dict[str, tuple[Latency, dict[str, float], float]] = {
    "constant": (constant(5, 0), {"p50": 5, "p90": 5, "p99": 5}, 5),
    "constant with noise": (constant(5, 0.01), {"p50": 5, "p90": 5 * 1.0128, "p99": 5 * 1.0233}, 5),
    "two modes": (two_modes(4, 10, 0.3), {"p50": 4, "p90": 10, "p99": 10}, 0.7 * 4 + 0.3 * 10),
    "a stall of 1 %": (stalling(5, 0.01, 10), {"p50": 5, "p90": 5 * 1.0128}, 0.99 * 5 + 0.01 * 50),
    "a stall of 2 %": (stalling(5, 0.02, 10), {"p50": 5, "p99": 50}, 0.98 * 5 + 0.02 * 50),
    "drift": (drifting(5, 0.5, 20), {"p50": 5 * 1.25, "p99": 5 * 1.5}, 5 * 1.25),
}


@pytest.mark.parametrize(("latency", "percentiles", "mean_ms"), KNOWN.values(), ids=KNOWN)
def test_percentiles_and_throughput_are_right(
    latency: Latency, percentiles: Mapping[str, float], mean_ms: float
) -> None:
    report = report_latency(measure(latency))
    for name, value in percentiles.items():
        assert report.percentiles_ms[name] == pytest.approx(value, rel=0.025), name
    assert report.mean_ms == pytest.approx(mean_ms, rel=0.03)
    assert report.images_per_s == pytest.approx(1e3 / report.mean_ms, rel=1e-4)
    assert report.seconds >= 20
    assert report.stages_ms["compute"] == pytest.approx(0.9 * report.percentiles_ms["p50"], rel=1e-3)
    assert report.stages_ms["rest"] == pytest.approx(READING_S * 1e3, rel=1e-3)  # a reading of the clock


NOISE: dict[str, tuple[Latency, str]] = {
    "two modes": (two_modes(4, 10, 0.3), ""),
    "drift of 20 %": (drifting(5, 0.2, 20), r"it drifted: \+1\d\.\d% from the first block to the last$"),
    "drift that gets faster": (drifting(5, -0.2, 20), r"it drifted: -\d\d\.\d% "),
    "drift of 3 %": (drifting(5, 0.03, 20), ""),
    "a stall of 1 %": (stalling(5, 0.01, 10), r"^[01]\.\d\d% of the requests stalled: over 5 times .* up to 5\d"),
    "a stall in ten thousand": (stalling(5, 0.0001, 10), ""),
    "others on the machine": (changing(5, 0.2, 1.7), r"^its blocks differ: their means spread by \d\d\.\d%"),
    "warm too late": (cold(5, 6, 600), r"^it drifted: -\d+"),
    "never warm": (cold(5, 6, 200), r"^it was not steady after \d+ requests in 5.0 s of warming up$"),
    "few": (constant(2000), r"^only \d\d requests were measured$"),
}


@pytest.mark.parametrize(("latency", "reason"), NOISE.values(), ids=NOISE)
def test_noise_is_found_where_it_is(latency: Latency, reason: str) -> None:
    found = find_noise(measure(latency), CLOCK)
    assert any(re.search(reason, line) for line in found) if reason else not found, found


def test_false_alarms_are_rare() -> None:
    """Of 200 quiet sessions at most 3 are called unreliable; of 200 with blocks that differ by 15 % at least 190."""
    plan = Plan(seconds=3, warm_s=2)
    quiet = [find_noise(measure(constant(5, 0.05, seed), plan), CLOCK) for seed in range(200)]
    assert sum(map(bool, quiet)) <= 3
    loud = [find_noise(measure(changing(5, 0.15, 0.3, seed), plan), CLOCK) for seed in range(200)]
    assert sum(map(bool, loud)) >= 190


def test_warm_up_ends_when_it_is_steady() -> None:
    """A cold start is over when counting begins: what is left of it is below 2 %; a steady session is not kept long."""
    for requests in (5, 30, 100):
        run = measure(cold(5, 6, requests), Plan(seconds=20, warm_s=20))
        assert run.warmup is not None
        assert run.warmup.steady
        assert run.warmup.first_ms == pytest.approx(30, rel=0.04)
        assert run.blocks[0].latencies_ms[:20].mean() == pytest.approx(5, rel=0.03), requests
        assert find_noise(run, CLOCK) == []
    warmup = measure(constant(5)).warmup
    assert warmup is not None
    assert warmup.requests == 40


def test_warm_up_is_bounded() -> None:
    slow = measure(constant(60_000), Plan(seconds=1, warm_s=2))
    assert slow.warmup is not None
    assert (slow.warmup.requests, slow.warmup.steady) == (2, False)
    assert [len(block.latencies_ms) for block in slow.blocks] == [1] * FEWEST_ROUNDS


def test_as_many_requests_as_a_percentile_needs() -> None:
    run = measure(constant(5), Plan(seconds=1, percentiles=(50, 99.9)))
    assert 10_000 <= len(run.latencies_ms) < 10_200
    assert report_latency(run, (50, 99.9)).left_out == {}
    impatient = measure(constant(5), Plan(seconds=1, percentiles=(50, 99.9), patience_s=2))
    report = report_latency(impatient, (50, 99.9))
    assert list(report.percentiles_ms) == ["p50"]
    assert report.left_out == {"p99.9": f"p99.9 needs 10,000 requests, and there were {report.requests}"}
    assert 2 <= report.seconds < 2.2


def test_every_picture_is_asked_for_however_short_the_time() -> None:
    clock, asked = ManualClock(), list[int]()

    def request(number: int) -> Mapping[str, float]:
        asked.append(number)
        clock.now += 1
        return {}

    harness = Harness(Plan(seconds=0.1, least=30, warm_s=1), clock, Counters)
    harness.measure({"one": request})
    assert asked == list(range(2 + 30))
    assert len(harness.runs["one"].latencies_ms) == 30


def test_contenders_take_turns() -> None:
    """What comes over the machine meets all alike: a machine that gets half as fast changes no ratio."""
    clock, order = ManualClock(), list[str]()

    def logged(name: str, latency: Latency) -> None:
        inner = session(clock, latency)

        def request(number: int) -> Mapping[str, float]:
            if not order or order[-1] != name:
                order.append(name)
            return inner(number)

        requests[name] = request

    requests: dict[str, Request] = {}
    for name, median in (("a", 5.0), ("b", 10.0), ("c", 5.0)):
        logged(name, drifting(median, 1.0, 60, seed=len(name) + int(median)))
    harness = Harness(SECONDS, clock, Counters)
    harness.measure(requests)
    # each warmed up, then to and fro, so that at a turn the same one goes on
    assert "".join(order) == "abc" + "abcb" * (ROUNDS // 2) + "a"
    blocks = {name: [block.latencies_ms.tolist() for block in run.blocks] for name, run in harness.runs.items()}
    ratio = compare_speed(blocks["b"], blocks["a"])
    assert ratio.value == pytest.approx(2, rel=0.02)
    assert ratio.low < 2 < ratio.high
    assert ratio.high - ratio.low < 0.1
    assert ratio.differs


def test_no_difference_is_said_where_there_is_none() -> None:
    """Of 100 pairs of the same session at most 8 are told apart; of 100 with 3 % between them at least 95."""
    plan = Plan(seconds=2, warm_s=1)

    def count_differences(times: float) -> int:
        told = 0
        for seed in range(100):
            runs = play({"a": constant(5, 0.05, 2 * seed), "b": constant(5 * times, 0.05, 2 * seed + 1)}, plan).runs
            first, second = ([block.latencies_ms.tolist() for block in run.blocks] for run in runs.values())
            told += compare_speed(first, second).differs
        return told

    assert count_differences(1) <= 8
    assert count_differences(1.03) >= 95


@pytest.mark.parametrize("error", [OSError("gone"), SystemExit(130)], ids=["a server that dies", "Ctrl-C"])
def test_what_was_measured_is_kept(error: BaseException) -> None:
    """All requests before it; the harness raises what came."""
    clock = ManualClock()
    inner = session(clock, constant(5))

    def request(number: int) -> Mapping[str, float]:
        if number == 140:
            raise error
        return inner(number)

    harness = Harness(SECONDS, clock, Counters)
    with pytest.raises(type(error)):
        harness.measure({"one": request})
    run = harness.runs["one"]
    assert run.warmup is not None
    assert len(run.latencies_ms) == 140 - run.warmup.requests
    assert report_latency(run).percentiles_ms["p50"] == pytest.approx(5, rel=0.01)


def test_progress_is_told() -> None:
    clock, moments = ManualClock(), list[Moment]()
    harness = Harness(Plan(seconds=1, percentiles=(99.0,)), clock, Counters)
    harness.measure({"one": session(clock, constant(5))}, moments.append)
    assert moments[0].stage == "warm up one"
    shares = [moment.share for moment in moments[1:]]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1] > 0.8) == (0, True)
    assert np.median(moments[-1].latencies_ms) == pytest.approx(5, rel=0.02)


@pytest.mark.parametrize(
    ("reading_s", "step_s"), [(50e-9, 0.0), (1e-6, 0.0), (50e-9, 15.6e-3)], ids=["fine", "slow", "coarse"]
)
def test_the_clock_is_measured(reading_s: float, step_s: float) -> None:
    facts = measure_clock(ManualClock(reading_s, step_s), reads=2_000_000 if step_s else 2000)
    assert facts.overhead_ns == pytest.approx(reading_s * 1e9, rel=0.3)
    assert facts.resolution_ns == pytest.approx((step_s or reading_s) * 1e9, rel=0.01)
    reasons = find_noise(measure(constant(5)), facts)
    assert [reason.startswith("the clock is too coarse") for reason in reasons] == [True] * bool(step_s)


def test_a_real_clock_moves() -> None:
    facts = measure_clock()
    assert 0 < facts.resolution_ns < 1e6
    assert 0 < facts.overhead_ns < 1e6
    with pytest.raises(ValueError, match="stands still"):
        measure_clock(lambda: 1.0)


def test_a_disturbed_machine() -> None:
    before = Counters(busy=100, steal=10, whole=1000, own=5, ran=5, waited=1, throttled=2)
    after = Counters(busy=118, steal=11, whole=1020, own=13, ran=13, waited=3, throttled=2.5)
    found = before.until(after, 10)
    assert found == Disturbance(steal=0.05, others=1.0, waiting=0.2, throttled=0.05)
    reasons = find_disturbance(found, 2, True)
    assert [reason.split("%")[0].split()[-1] for reason in reasons] == ["5.0", "busy", "20.0", "5.0"]
    assert "other processes kept 1.00 of 2 processors busy" in reasons
    assert len(find_disturbance(found, 2, False)) == 3  # a server that was asked is another process too
    assert find_disturbance(found, 16, True)[1].startswith("this process waited")
    assert find_disturbance(Disturbance(), 2, True) == []


def test_what_gets_slower_by_itself() -> None:
    state = MachineState(load=1, frequency_mhz=3000, temperatures_c={}, memory_available_bytes=1)
    hot = GpuState(name="H", driver="1", clock_mhz=900, memory_clock_mhz=None, temperature_c=90, power_w=None,
                   throttled=("heat (hardware)",))  # fmt: skip
    after = state.model_copy(update={"frequency_mhz": 2600, "gpus": (hot,)})
    assert find_throttling(state, state) == []
    assert find_throttling(state, state.model_copy(update={"frequency_mhz": 2800})) == []
    assert find_throttling(state, after) == [
        "the processors' frequency fell from 3000 to 2600 MHz",
        "H was held down: heat (hardware)",
    ]


def test_counters_of_this_machine() -> None:
    """A busy loop is this process's own work, and nobody else's."""
    before, start = read_counters(), time.perf_counter()
    while time.perf_counter() - start < 0.3:
        pass
    found = before.until(read_counters(), time.perf_counter() - start)
    assert found.others is None or found.others >= 0
    assert found.steal is None or 0 <= found.steal <= 1
    if found.waiting is not None:
        after = read_counters()
        assert after.ran is not None
        assert before.ran is not None
        assert after.ran > before.ran
        assert 0 <= found.waiting < 1
