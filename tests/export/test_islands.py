"""Which blocks stay in floating point: the search, on errors that add up."""

from collections.abc import Callable, Set
from unittest.mock import Mock

import pytest

from ferryman.errors import ParityError
from ferryman_export.islands import BlockError, Judge, Verdict, find_unable, rank_blocks, search_islands
from ferryman_export.quantize import Answers, QuantizationPlan
from ferryman_export.variants import integer
from ferryman_export.variants.integer import choose_free


@pytest.mark.parametrize("unable", [(), ("b",), ("a", "d")])
def test_what_a_runtime_refuses_is_found(unable: tuple[str, ...]) -> None:
    tried: list[Set[str]] = []

    def runs(islands: Set[str]) -> bool:
        tried.append(islands)
        return set(unable) <= islands

    assert find_unable("abcd", runs) == unable
    assert len(tried) == (5 if unable else 1)


def test_what_costs_next_to_nothing_is_free() -> None:
    ranked = tuple(
        BlockError(block=name, error=error) for name, error in (("up", 4), ("head", 3), ("out", 2), ("x", 1))
    )
    work = {"up": 970, "head": 10, "out": 9, "x": 1}
    cost = dict.fromkeys(work, 1)
    assert choose_free(ranked, work, cost, allowed=4) == ("head",)  # what errs less than most stays
    assert choose_free(ranked, work, cost, allowed=0) == ()


ERRORS = {"a": 0.01, "b": 0.5, "c": 0.02, "d": 0.3, "e": 0.0, "f": 0.05}


def judge_by(limit: float, tried: list[int]) -> tuple[Callable[[Set[str]], float], Judge]:
    def measure(kept: Set[str]) -> float:
        return sum(error for block, error in ERRORS.items() if block not in kept)

    def judge(kept: Set[str]) -> Verdict:
        tried.append(len(kept))
        error = measure(kept)
        return Verdict(error=error, passed=error <= limit, why=f"error {error:.2f}")

    return measure, judge


@pytest.mark.parametrize(("limit", "islands"), [(1.0, ()), (0.4, ("b",)), (0.09, ("b", "d")), (0.035, ("b", "d", "f"))])
def test_the_fewest_worst_blocks_are_given_back(limit: float, islands: tuple[str, ...]) -> None:
    tried: list[int] = []
    measure, judge = judge_by(limit, tried)
    ranked = rank_blocks(list(ERRORS), measure)
    assert ranked[0] == BlockError(block="b", error=0.5)
    assert [one.block for one in ranked] == ["b", "d", "f", "c", "a", "e"]
    cost = dict.fromkeys(ERRORS, 1)
    report = search_islands(judge, lambda: ranked, cost, 4, "it")
    assert report.islands == islands
    assert sorted(tried) == [point.islands for point in report.curve]
    assert [point.passed for point in report.curve] == [point.error <= limit for point in report.curve]


def test_more_islands_than_the_name_allows() -> None:
    measure, judge = judge_by(0.035, [])
    ranked = rank_blocks(list(ERRORS), measure)
    cost = dict.fromkeys(ERRORS, 1) | {"d": 3}
    with pytest.raises(ParityError, match=r"it is out of tolerance with 4 of 6 blocks in fp32.*error 0\.30"):
        search_islands(judge, lambda: ranked, cost, 4, "it")


def test_a_block_without_room_in_the_budget_is_passed_over() -> None:
    measure, judge = judge_by(0.34, [])
    ranked = rank_blocks(list(ERRORS), measure)
    cost = dict.fromkeys(ERRORS, 0) | {"d": 5}
    report = search_islands(judge, lambda: ranked, cost, 4, "it")
    assert report.islands == ("b", "f")


def test_several_cheap_blocks_where_a_dear_one_does_not_do() -> None:
    errors = {"dear": 0.3, "a": 0.2, "b": 0.2, "c": 0.2}
    ranked = tuple(BlockError(block=name, error=error) for name, error in errors.items())
    tried: list[Set[str]] = []

    def judge(kept: Set[str]) -> Verdict:
        tried.append(kept)
        error = sum(error for name, error in errors.items() if name not in kept)
        return Verdict(error=error, passed=error < 0.55)

    report = search_islands(judge, lambda: ranked, dict.fromkeys(errors, 1) | {"dear": 3}, 3, "it")
    assert report.islands == ("a", "b")
    assert {"dear"} in tried
    assert [(point.islands, point.passed) for point in report.curve] == [(0, False), (1, False), (2, True)]


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        (("float", "float"), ("float", "float")),
        (("float", "sums", "convolutions"), ("float", "sums", "sums")),  # in 8 bits, answers err that did not
        (("sums", "convolutions", "float"), ("sums", "sums", "sums")),
    ],
)
def test_blocks_are_ranked_once_where_they_err_alike(
    monkeypatch: pytest.MonkeyPatch, asked: tuple[Answers, ...], taken: tuple[Answers, ...]
) -> None:
    """taken: whose ranking each gets that asks, by what it has in 8 bits."""
    rankings: list[Answers] = []

    def rank(_bench: object, _cost: object, plan: QuantizationPlan, _unable: object) -> tuple[BlockError, ...]:
        rankings.append(plan.answers)
        return tuple(BlockError(block=block, error=1.0) for block in (plan.answers, "of no cost"))

    monkeypatch.setattr(integer, "_rank", rank)
    bench, cost = Mock(piece=Mock(ranked={})), {"float": 1, "sums": 1, "convolutions": 1}
    plans = [QuantizationPlan(method="minmax", answers=answers) for answers in asked]
    found = [integer._rank_once(bench, cost, plan, ()) for plan in plans]  # pyright: ignore[reportPrivateUsage]
    assert [[one.block for one in ranked] for ranked in found] == [[answers] for answers in taken]
    assert rankings == list(dict.fromkeys(taken))
