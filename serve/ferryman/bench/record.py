"""The record of a measurement: all that it takes to believe it, compare it and draw it again. `bench --json` is one.

Schema version 1. A field is added with a default and without a new version; what an older reader would
misunderstand gets a new one. Numbers of requests are packed: see `pack_ms`.
"""

import base64
import binascii
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from ferryman.accuracy.report import AccuracyReport
from ferryman.bench.alone import SessionCost
from ferryman.bench.clock import ClockFacts
from ferryman.bench.curve import Curve
from ferryman.bench.disturbance import Disturbance
from ferryman.bench.machine import MachineFacts, MachineState
from ferryman.bench.report import LatencyReport
from ferryman.bench.samples import Block, Run, Warmup
from ferryman.bench.search import Bound, Trial
from ferryman.bench.tools import Compared
from ferryman.bench.turns import Ratio
from ferryman.errors import FileAccessError, UsageError
from ferryman.specs import Facts

SCHEMA_VERSION = 1
Scenario = Literal[
    "single-stream", "multi-stream", "server", "offline",
    "batch-curve", "size-curve", "thread-curve", "stream-curve", "client-curve",
]  # fmt: skip


def pack_ms(values_ms: NDArray[np.float64]) -> str:
    """Milliseconds as base64 of zlib of int64 in little endian: whole nanoseconds, which is what clocks count."""
    return base64.b64encode(zlib.compress(np.rint(values_ms * 1e6).astype("<i8").tobytes(), 9)).decode()


def unpack_ms(text: str) -> NDArray[np.float64]:
    """Raises ValueError for what `pack_ms` did not make."""
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype="<i8") / 1e6
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"packed numbers can't be read: {error}") from error


class BlockRecord(Facts):
    """A `samples.Block`; latencies and each of the stages are packed."""

    start_s: float
    seconds: float
    latencies: str
    stages: dict[str, str]
    joules: dict[str, float] = Field(default_factory=dict[str, float])

    @classmethod
    def pack(cls, block: Block) -> Self:
        stages = {name: pack_ms(values) for name, values in block.stages_ms.items()}
        return cls(
            start_s=block.start_s,
            seconds=block.seconds,
            latencies=pack_ms(block.latencies_ms),
            stages=stages,
            joules=dict(block.joules),
        )

    def unpack(self) -> Block:
        stages = {name: unpack_ms(text) for name, text in self.stages.items()}
        return Block(self.start_s, self.seconds, unpack_ms(self.latencies), stages, self.joules)

    @model_validator(mode="after")
    def _check(self) -> Self:
        block = self.unpack()
        if not len(block.latencies_ms):
            raise ValueError("a block holds no request")
        wrong = [name for name, values in block.stages_ms.items() if len(values) != len(block.latencies_ms)]
        if wrong:
            raise ValueError(f"not every request has its {', '.join(wrong)}")
        return self


class Check(Facts):
    """Whether the very session that was measured answers like PyTorch; error: the largest absolute one of any limited
    output, None where none is limited; failures: a line each
    """

    when: Literal["before", "after"]
    passed: bool
    error: float | None
    failures: tuple[str, ...]


class Proven(Facts):
    """What answered. digest: SHA-256 of the variant's file, empty for a server's; certificate: when it was certified,
    empty for never
    """

    target: str
    runtime_version: str
    digest: str
    certificate: str


class RunRecord(Facts):
    """A row: one contender, or one point of its curve, as `name` says.

    figures: made from `blocks`, and again when they are drawn; unreliable: a reason each
    checks: before and after, empty for a server; cost: of the first size of several; cost, proven: None where unknown
    images: in each request; trials: of the scenario server, the last one at the highest rate that kept the bound
    ended: how that search ended; None where there was none, or it was broken off
    """

    name: str
    contender: str
    images: Annotated[int, Field(ge=1)] = 1
    warmup: Warmup | None
    blocks: Annotated[tuple[BlockRecord, ...], Field(min_length=1)]
    figures: LatencyReport
    unreliable: tuple[str, ...]
    checks: tuple[Check, ...] = ()
    cost: SessionCost | None = None
    proven: Proven | None = None
    trials: tuple[Trial, ...] = ()
    ended: str | None = None

    @property
    def rate(self) -> float | None:
        """Requests a second that kept the bound; None where that was not asked, or none did."""
        return self.trials[-1].rate if self.trials and self.trials[-1].kept else None

    @property
    def right(self) -> bool:
        """Whether it answered right whenever that was checked: a fast wrong answer is no result."""
        return all(check.passed for check in self.checks)

    def unpack(self) -> Run:
        return Run(self.contender, self.images, self.warmup, [block.unpack() for block in self.blocks])


class BenchRecord(Facts):
    """One call of `ferryman bench`.

    created: UTC, ISO 8601; command: to repeat it; model: NAME/VERSION or the server's; bundle_digest: empty if unknown
    images: what was asked with; broken: files that were left out; settings: of the sessions
    read_ms: median of what a picture's file took to be read, before anything was timed; None where they came from none
    unreliable: reasons that hold for all runs; ratios: to the first run, of those that answered right
    refused: contenders that were not measured, and why; ended: why it ended early, None when it did not
    clients, bound, curves: of the scenarios that have such, curves of each variant
    compared: with other programs
    accuracy: on labelled pictures, of the variants that were measured; None where there were none
    notes: what a reader must know beside that, and makes nothing unreliable
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    ferryman: str
    created: str
    command: str
    scenario: Scenario
    model: str
    bundle_digest: str
    address: str | None
    images: str
    broken: tuple[str, ...]
    seconds: float
    settings: dict[str, int | str | None]
    machine: MachineFacts
    before: MachineState
    after: MachineState
    clock: ClockFacts
    disturbance: Disturbance
    unreliable: tuple[str, ...]
    runs: Annotated[tuple[RunRecord, ...], Field(min_length=1)]
    ratios: dict[str, Ratio]
    refused: dict[str, tuple[str, ...]]
    ended: str | None = None
    clients: int | None = None
    bound: Bound | None = None
    accuracy: AccuracyReport | None = None
    curves: dict[str, Curve] = Field(default_factory=dict[str, Curve])
    compared: tuple[Compared, ...] = ()
    notes: tuple[str, ...] = ()
    read_ms: float | None = None

    @property
    def reasons(self) -> list[str]:
        """All that makes it unreliable; those of one run of several name it."""
        own = [(run.name, line) for run in self.runs for line in run.unreliable]
        return [*self.unreliable, *(f"{name}: {line}" if len(self.runs) > 1 else line for name, line in own)]


def read_record(path: Path) -> BenchRecord:
    """Raises FileAccessError for a file that can't be read, UsageError for one that holds no record."""
    try:
        return BenchRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise FileAccessError(f"can't read {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        hint = "; it is of another version of Ferryman" if where == "schema_version" else ""
        raise UsageError(
            f"{path} is no record of `ferryman bench --json` that this version can read: "
            f"{f'{where}: ' if where else ''}{first['msg']}{hint}"
        ) from error


def read_records(paths: Sequence[Path]) -> list[BenchRecord]:
    return [read_record(path) for path in paths]
