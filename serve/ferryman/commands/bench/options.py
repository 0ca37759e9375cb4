"""What `ferryman bench` is told."""

from dataclasses import dataclass
from math import inf
from pathlib import Path

from ferryman.bench.percentiles import check_percentiles
from ferryman.bench.record import Scenario
from ferryman.commands.bench.diff import parse_share
from ferryman.commands.bench.workload import AXES, Workload
from ferryman.commands.predict import Asker
from ferryman.errors import UsageError
from ferryman.options import Via
from ferryman.runtimes.base import Settings


@dataclass(frozen=True)
class Places:
    """Whom to ask: a bundle's variants in this process, a server's model, or both, so that what a server costs is seen.

    targets: of the bundle, measured in turn; none for its first, `all` for all that can run here
    pytorch: the checkpoint that it was made from, to be measured in PyTorch itself; compiled: by `torch.compile` too
    via: how the server is asked, each a contender; tensors are for the bundle's variants too
    Raises UsageError where these don't belong together.
    """

    bundle: Path | None
    targets: tuple[str, ...]
    settings: Settings
    server: Asker | None
    pytorch: str | None = None
    compiled: bool = False
    via: tuple[Via, ...] = (Via.TYPED,)

    @property
    def tensors(self) -> bool:
        return Via.TENSORS in self.via

    @property
    def pytorch_ways(self) -> tuple[bool, ...]:
        """Whether compiled, for each way in which PyTorch is measured."""
        return () if self.pytorch is None else (False, True) if self.compiled else (False,)

    def __post_init__(self) -> None:
        if self.compiled and self.pytorch is None:
            raise UsageError("--compiled belongs to --pytorch SOURCE")
        if self.tensors and len(self.via) > 1:
            raise UsageError("--via tensors stands alone: ready tensors are other work than encoded pictures")
        if self.tensors and self.bundle is None:
            raise UsageError("--via tensors needs the bundle: it is what decodes and resizes the pictures beforehand")
        if Via.INFER in self.via and self.server is None:
            raise UsageError("--via infer belongs to --address: it is how a server is asked")
        if self.pytorch is not None and self.bundle is None:
            raise UsageError("--pytorch belongs to a bundle: its checkpoint is measured beside its variants")


@dataclass(frozen=True)
class BenchOptions:
    """seconds: of each contender, at least; at_most: in all the rounds that a percentile needs beyond that

    accuracy: labelled pictures to count right answers on; html: a page to write
    scenario, count, clients, bound_ms, most: see `Workload`
    percentiles: that were asked for, empty for those that the requests carry; strict: an unreliable one fails
    compare: other programs, see `ferryman.bench.tools`
    baseline: a record that it must not be surely slower than, by more than `max_regression`
    """

    seconds: float
    percentiles: tuple[float, ...] = ()
    at_most: float = 600.0
    strict: bool = False
    baseline: Path | None = None
    max_regression: str = "5%"
    scenario: Scenario = "single-stream"
    count: int | None = None
    clients: int | None = None
    bound_ms: float | None = None
    most: int | None = None
    accuracy: Path | None = None
    html: Path | None = None
    compare: tuple[str, ...] = ()

    def workload(self) -> Workload:
        """Raises UsageError for what does not belong to the scenario."""
        return Workload.choose(self.scenario, self.count, self.clients, self.percentiles, self.bound_ms, self.most)

    def __post_init__(self) -> None:
        if self.accuracy is not None and self.scenario in AXES:
            raise UsageError(f"--accuracy stands beside speeds of variants, not of a curve: leave out {self.scenario}")
        if not self.seconds > 0:
            raise UsageError(f"--seconds must be above 0, got {self.seconds:g}")
        if self.bound_ms is not None and not 0 < self.bound_ms < inf:
            raise UsageError(f"--bound must be above 0 ms, got {self.bound_ms:g}")
        check_percentiles(self.percentiles)
        parse_share(self.max_regression)
