"""The figures as tables, none wider than 120 columns."""

from collections.abc import Sequence
from itertools import groupby

from ferryman.bench.turns import Ratio
from ferryman.commands.console import make_table, out, print_table
from ferryman_export.bench_targets.contenders import BATCH
from ferryman_export.bench_targets.profiles import Profile
from ferryman_export.bench_targets.rows import Reached, Row

SPEED = (
    "One picture at a time, input tensor to output tensor, everyone in turn, the same pictures and threads: ours in "
    "uint8, normalised in the graph, as they are served; PyTorch and stock in float32, normalised before the clock "
    "starts. Times as fast, and the interval that holds 95 % of the resamples."
)
COST = (
    f"ms of {BATCH}: a picture in a batch of so many, and the batch against the same pictures one by one, in the same "
    "rounds. Loading and memory are of "
    "processes of their own, medians of five: from the file to a session, the runtime's library imported before; and "
    "the peak of resident memory while loading and running one picture, mapped files counted, less what was resident "
    "before. It may be twice the variant's own files and a constant."
)
PROFILE = (
    "First all of it: the median as above, and how many of the multiplications a second it comes to that a large "
    "product reaches here in OpenVINO in the same precision. Then by operator, by the runtime's own counters, which "
    "slow it down a little."
)
_LEAST_SHARE = 0.03  # of the time, for a kind of operator to have a line; the rest is one


def print_speed(rows: Sequence[Row]) -> None:
    """Everyone's speed; notes below, by their number."""
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    table = make_table(
        "model", "variant", "median ms", "to PyTorch", "to stock", "goal", "reached", numbers=(2, 3, 4, 5)
    )
    for row in rows:
        mark = f" [{notes.index(row.note) + 1}]" if row.note else ""
        table.add_row(
            row.model,
            f"{row.variant}{mark}",
            f"{row.median_ms:.2f}",
            f"{row.to_eager.value:.2f}",
            _describe(row.to_stock),
            f"{row.goal:.2f}" if row.goal else "",
            row.reached or "",
        )
    print_table(table)
    for number, note in enumerate(notes, 1):
        out.print(f"[{number}] {note}")
    out.print(f"\n{SPEED}\n")


def print_costs(rows: Sequence[Row]) -> None:
    """Of ours: pictures in a batch, loading and memory."""
    table = make_table(
        "model", "variant", f"ms of {BATCH}", "to one by one", "≥ 1", "load s", "goal", "memory MB", "goal",
        numbers=(2, 3, 5, 7),
    )  # fmt: skip
    shown = [row for row in rows if row.batch is not None or row.cost is not None]
    for row in shown:
        cells = [row.model, row.variant, "", "", ""]
        if row.batch is not None:
            cells[2:] = [f"{row.batch.ms:.2f}", _describe(row.batch.to_one), row.batch.reached]
        if row.cost is not None:
            cost, memory = row.cost, row.cost.memory_bytes
            cells += [
                f"{cost.load_s:.2f}",
                _describe_goal(f"{cost.load_goal_s:g}" if cost.load_goal_s else "", cost.load_reached),
                "" if memory is None else f"{memory / 1e6:.0f}",
                _describe_goal(f"{cost.memory_goal_bytes / 1e6:.0f}", cost.memory_reached),
            ]
        table.add_row(*cells)
    if shown:
        print_table(table)
        out.print(f"\n{COST}\n")


def print_profiles(rows: Sequence[Row]) -> None:
    """Where the time goes, of each row that has a profile."""
    profiled = [(row, row.profile) for row in rows if row.profile is not None]
    for _, group in groupby(profiled, key=lambda pair: pair[0].model):
        table = make_table("model", "variant", "operator", "in", "ms", "of its time", numbers=(4, 5))
        for row, profile in group:
            share = f"{profile.peak_share(row.median_ms):.0%} of {profile.peak / 1e9:.0f} G/s"
            whole = f"{profile.multiplications / 1e9:.1f} G multiplications, {share}"
            table.add_row(row.model, row.variant, whole, row.precision, f"{row.median_ms:.2f}", "")
            for cells in describe_profile(profile):
                table.add_row("", "", *cells)
        print_table(table)
        out.print()
    if profiled:
        out.print(f"{PROFILE}\n")


def describe_profile(profile: Profile) -> list[tuple[str, str, str, str]]:
    """Rows of kind, precision, milliseconds and share of the time: the longest, then all others together."""
    total = sum(one.ms for one in profile.operators)
    longest = [one for one in profile.operators if one.ms >= _LEAST_SHARE * total]
    others = profile.operators[len(longest) :]
    rows = [(one.kind, one.precision, f"{one.ms:.2f}", f"{one.ms / total:.0%}") for one in longest]
    if others:
        rest = sum(one.ms for one in others)
        rows.append((f"{len(others)} other kinds", "", f"{rest:.2f}", f"{rest / total:.0%}"))
    return rows


def _describe(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _describe_goal(goal: str, reached: Reached | None) -> str:
    return f"{goal}: {reached}" if goal and reached else goal
