"""Two measurements that were made apart, such as before and after a change."""

from collections.abc import Sequence

import numpy as np

from ferryman.bench.record import BenchRecord, RunRecord, Scenario
from ferryman.bench.turns import RESAMPLES, Blocks, Ratio
from ferryman.errors import UsageError
from ferryman.specs import Facts


class Change(Facts):
    """What became of a run. name: of both, `A -> B` where they differ; ratio: how many times as fast it is now"""

    name: str
    before_ms: float
    after_ms: float
    ratio: Ratio

    def is_slower(self, share: float) -> bool:
        """Whether it certainly takes longer by more than `share` of the time before: the interval excludes less."""
        return self.ratio.high < 1 / (1 + share)

    def __str__(self) -> str:
        verdict = "" if self.ratio.differs else ": no difference"
        return f"{self.name}: {self.before_ms:.3g} -> {self.after_ms:.3g} ms, {self.ratio}{verdict}"


def compare_apart(before: Blocks, after: Blocks) -> Ratio:
    """How many times as fast `after` is as `before`: the ratio of the medians of their blocks' medians.

    Nothing ties a block of one to a block of the other, so a bootstrap draws whole blocks of each by itself.
    """
    random = np.random.default_rng(0)
    medians = [np.array([np.median(block) for block in blocks]) for blocks in (before, after)]
    drawn = [np.median(side[random.integers(0, len(side), (RESAMPLES, len(side)))], axis=1) for side in medians]
    low, high = np.percentile(drawn[0] / drawn[1], (2.5, 97.5))
    value = float(np.median(medians[0]) / np.median(medians[1]))
    return Ratio(value=value, low=min(float(low), value), high=max(float(high), value))


def check_scenarios(before: Scenario, after: Scenario) -> None:
    """Raises UsageError where they differ."""
    if before != after:
        raise UsageError(f"{before} can't be compared with {after}: measure both in one way")


def compare_records(before: BenchRecord, after: BenchRecord) -> list[Change]:
    """Of each run that both have by the same name; of two with one run each, of those. Wrong answers are left out.

    Raises UsageError when there is nothing to compare, or they are of different scenarios.
    """
    check_scenarios(before.scenario, after.scenario)
    first, second = ({run.name: run for run in record.runs if run.right} for record in (before, after))
    pairs = [(name, first[name], second[name]) for name in first if name in second]
    if not pairs and len(first) == len(second) == 1:
        (one,), (other,) = first.values(), second.values()
        pairs = [(f"{one.name} -> {other.name}", one, other)]
    if not pairs:
        names = " and ".join(", ".join(runs) or "none" for runs in (first, second))
        raise UsageError(f"they have no variant in common that answered right: {names}")
    return [_compare(*pair) for pair in pairs]


def _compare(name: str, before: RunRecord, after: RunRecord) -> Change:
    blocks = [[block.latencies_ms.tolist() for block in run.unpack().blocks] for run in (before, after)]
    medians = [float(np.median(np.concatenate(side))) for side in blocks]
    return Change(name=name, before_ms=medians[0], after_ms=medians[1], ratio=compare_apart(*blocks))


def list_differences(before: BenchRecord, after: BenchRecord) -> list[str]:
    """What else differs between them than speed: a line for each thing that a reader must know."""
    facts: Sequence[tuple[str, object, object]] = [
        ("model", before.model, after.model),
        ("bundle", before.bundle_digest[:12], after.bundle_digest[:12]),
        ("pictures", before.images, after.images),
        ("server", before.address, after.address),
        ("processor", before.machine.device.cpu, after.machine.device.cpu),
        ("processors", before.machine.device.cores, after.machine.device.cores),
        ("quota", before.machine.quota, after.machine.quota),
        ("governor", before.machine.governor, after.machine.governor),
        ("system", before.machine.device.system, after.machine.device.system),
        ("Python", before.machine.device.python, after.machine.device.python),
        *((key, before.settings.get(key), after.settings.get(key)) for key in {**before.settings, **after.settings}),
        *(
            (key, before.machine.versions.get(key), after.machine.versions.get(key))
            for key in {**before.machine.versions, **after.machine.versions}
        ),
    ]
    return [f"{what}: {one or 'none'} -> {other or 'none'}" for what, one, other in facts if one != other]
