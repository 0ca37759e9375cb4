"""Contenders of which it is known that they answer right, and what they are and cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from ferryman.bench.alone import SessionCost
from ferryman.bench.record import Check, Proven
from ferryman.commands.bench.contenders import Contender, LocalContender, When
from ferryman.commands.console import StageProgress
from ferryman.errors import ParityError
from ferryman.predictor import Predictor
from ferryman.specs import Target


@dataclass(frozen=True)
class Ready:
    """contenders: those that answer right; refused: why the others are not measured; checks, costs, proven: by name"""

    contenders: tuple[Contender, ...]
    refused: dict[str, tuple[str, ...]]
    checks: dict[str, list[Check]]
    costs: dict[str, SessionCost | None]
    proven: dict[str, Proven | None]

    @property
    def targets(self) -> list[Target]:
        """Of the bundle's variants among them."""
        local = [one.target for one in self.contenders if isinstance(one, LocalContender)]
        return [target for target in local if target is not None]

    @property
    def others(self) -> list[tuple[str, Predictor]]:
        """Those of the bundle that are none of its variants: PyTorch."""
        local = [one for one in self.contenders if isinstance(one, LocalContender)]
        return [(one.name, one.predictor) for one in local if one.target is None]

    def check(self, when: When) -> None:
        for one in self.contenders:
            check = one.check(when)
            if check is not None:
                self.checks[one.name].append(check)


def make_ready(contenders: Sequence[Contender], show: StageProgress) -> Ready:
    """Raises ParityError when none answers right, EngineError for one that can't be loaded by itself."""
    checks: dict[str, list[Check]] = {}
    for one in contenders:
        show(f"check {one.name}", 0, 1)
        check = one.check("before")
        checks[one.name] = [] if check is None else [check]
    refused = {name: found[0].failures for name, found in checks.items() if found and not found[0].passed}
    fit = tuple(one for one in contenders if one.name not in refused)
    if not fit:
        raise ParityError("; ".join(f"{name} is out of tolerance: {lines[0]}" for name, lines in refused.items()))
    costs: dict[str, SessionCost | None] = {}
    for one in fit:
        show(f"load {one.name} by itself", 0, 1)
        costs[one.name] = one.measure_cost()
    return Ready(fit, refused, checks, costs, {one.name: one.prove() for one in fit})
