"""What a measurement leaves: blocks of timed requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ferryman.specs import Facts

Series = NDArray[np.float64]


class Warmup(Facts):
    """What was asked before anything counted. first_ms: the first request after loading; steady: see `steady`"""

    requests: int
    seconds: float
    first_ms: float
    steady: bool

    def then(self, later: "Warmup") -> "Warmup":
        """Both, one after the other."""
        return Warmup(
            requests=self.requests + later.requests,
            seconds=self.seconds + later.seconds,
            first_ms=self.first_ms,
            steady=self.steady and later.steady,
        )


@dataclass(frozen=True)
class Block:
    """Requests that followed each other.

    start_s: since the measuring began; seconds: from the first request to the last answer
    latencies_ms: (requests,) as the caller saw them; stages_ms: (requests,) each, as the one that answered timed them
    joules: of each device that tells, meanwhile
    """

    start_s: float
    seconds: float
    latencies_ms: Series
    stages_ms: Mapping[str, Series] = field(default_factory=dict[str, Series])
    joules: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass
class Run:
    """All that was measured of one contender in one way so far. contender: its name; images: in each request"""

    contender: str = ""
    images: int = 1
    warmup: Warmup | None = None
    blocks: list[Block] = field(default_factory=list[Block])

    @property
    def latencies_ms(self) -> Series:
        return join([block.latencies_ms for block in self.blocks])

    @property
    def seconds(self) -> float:
        """Of all blocks; what was between them does not count."""
        return sum(block.seconds for block in self.blocks)

    def stages_ms(self) -> dict[str, Series]:
        """(requests,) of each stage that every block has."""
        first = self.blocks[0].stages_ms if self.blocks else ()
        names = [name for name in first if all(name in block.stages_ms for block in self.blocks)]
        return {name: join([block.stages_ms[name] for block in self.blocks]) for name in names}

    def joules_per_image(self) -> dict[str, float]:
        """Of each device that every block knows."""
        names = [name for name in self.blocks[0].joules if all(name in block.joules for block in self.blocks)]
        count = len(self.latencies_ms) * self.images
        return {name: sum(block.joules[name] for block in self.blocks) / count for name in names}


def join(parts: Sequence[Series]) -> Series:
    return np.concatenate(parts) if parts else np.empty(0)
