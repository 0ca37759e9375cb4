"""What was measured of each contender, compared with what it should be."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from ferryman.bench.alone import SessionCost
from ferryman.bench.turns import Blocks, Ratio, compare_speed
from ferryman.specs import Facts
from ferryman_export.bench_targets.contenders import BATCH, EAGER, STOCK, Contender, stock_name
from ferryman_export.bench_targets.profiles import Profile

GOALS: dict[str, float] = {"fp32": 1.05, "bf16": 1.05, "int8": 1.0}  # times as fast as the stock recipe
BATCH_GOAL = 1.0  # times as fast a picture in a batch as alone
Reached = Literal["yes", "no", "unclear"]


class Batch(Facts):
    """ms: median of one picture in a batch of `BATCH`; to_one: how many times as fast these are as one by one"""

    ms: float
    to_one: Ratio
    reached: Reached


class Cost(Facts):
    """What a session costs, and may; load_goal_s: None where none is set; memory_bytes: None where it can't be told"""

    load_s: float
    load_goal_s: float | None
    memory_bytes: int | None
    memory_goal_bytes: int
    weights_bytes: int

    @property
    def load_reached(self) -> Reached | None:
        return None if self.load_goal_s is None else "yes" if self.load_s <= self.load_goal_s else "no"

    @property
    def memory_reached(self) -> Reached | None:
        if self.memory_bytes is None:
            return None
        return "yes" if self.memory_bytes <= self.memory_goal_bytes else "no"


class Row(Facts):
    """One contender. runs: that were timed; the ratios tell how many times as fast it is

    to_stock: as the stock recipe in the same precision, None for what is not ours; goal: of that ratio
    reached: whether the goal lies below the interval, above it (no) or within (unclear)
    batch, cost: None for what is not ours; profile: None where none was taken
    """

    model: str
    variant: str
    precision: str
    median_ms: float
    runs: int
    to_eager: Ratio
    to_stock: Ratio | None
    goal: float | None
    reached: Reached | None
    note: str
    batch: Batch | None = None
    cost: Cost | None = None
    profile: Profile | None = None

    @property
    def slow(self) -> bool:
        """Whether a goal of its speed is missed, or not reached beyond doubt; of batches, whether they are slower."""
        return self.reached in ("no", "unclear") or (self.batch is not None and self.batch.reached == "no")


def batch_name(variant: str) -> str:
    """What the latencies of a variant's batches are kept under."""
    return f"{variant}, batch of {BATCH}"


def one_by_one_name(variant: str) -> str:
    """And those of the same pictures, one by one."""
    return f"{variant}, {BATCH} one by one"


def make_rows(name: str, contenders: Sequence[Contender], latencies: Mapping[str, Blocks]) -> list[Row]:
    """What was measured, compared. latencies: of each contender and of batches, in the same rounds"""
    rows: list[Row] = []
    for one in contenders:
        mine, reference = latencies[one.variant], stock_name(one.precision)
        is_ours = not one.variant.startswith((EAGER, STOCK))
        to_stock = compare_speed(latencies[reference], mine) if is_ours else None
        goal = GOALS[one.precision] if is_ours else None
        runs = np.concatenate([np.asarray(block) for block in mine])
        rows.append(
            Row(
                model=name,
                variant=one.variant,
                precision=one.precision,
                median_ms=float(np.median(runs)),
                runs=len(runs),
                to_eager=compare_speed(latencies[EAGER], mine),
                to_stock=to_stock,
                goal=goal,
                reached=None if to_stock is None or goal is None else judge(to_stock, goal),
                note=one.note,
                batch=None if one.batch is None else make_batch(one.variant, latencies),
            )
        )
    return rows


def make_batch(variant: str, latencies: Mapping[str, Blocks]) -> Batch:
    """Of eight together and eight one by one, not of one: a long run meets every hiccup that the median of short ones
    leaves out.
    """
    batches = latencies[batch_name(variant)]
    to_one = compare_speed(latencies[one_by_one_name(variant)], batches)
    ms = float(np.median(np.concatenate([np.asarray(block) for block in batches]))) / BATCH
    return Batch(ms=ms, to_one=to_one, reached=judge(to_one, BATCH_GOAL))


def make_cost(cost: SessionCost, spare_mb: int, load_goal_s: float | None) -> Cost:
    """spare_mb: what a session may take over twice its weights"""
    return Cost(
        load_s=cost.load_s,
        load_goal_s=load_goal_s,
        memory_bytes=cost.memory_bytes,
        memory_goal_bytes=2 * cost.weights_bytes + spare_mb * 1_000_000,
        weights_bytes=cost.weights_bytes,
    )


def judge(ratio: Ratio, goal: float) -> Reached:
    """Whether the goal is reached beyond what the noise could do."""
    if ratio.low >= goal:
        return "yes"
    return "no" if ratio.high < goal else "unclear"
