"""What every recipe gets, and what it gives."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnx

from ferryman.errors import UsageError
from ferryman.golden import GoldenSamples
from ferryman.manifest import Tolerance
from ferryman.parity import ParityReport
from ferryman.specs import Facts, ModelSpec, Target
from ferryman_export.calibration import Calibration, CalibrationFacts
from ferryman_export.islands import BlockError, Error, IslandReport
from ferryman_export.quantize import QuantizationPlan, Quantizer
from ferryman_export.steps import Progress, count_steps

CANONICAL = Target.parse("onnxruntime-cpu-fp32")  # the graph that PyTorch gave, in every bundle


class Trial(Facts):
    """A way to calibrate that was tried, and the error on the held-out pictures with every block in 8 bits; for ONNX
    Runtime, with every one but the free islands.
    """

    plan: QuantizationPlan
    error: Error


class Candidate(Facts):
    """One of several ways to build a variant: the error on the held-out pictures, and the median time of one picture.

    why: it was not to be had, in a line; latency_ms: None where there was nothing to compare it with
    """

    name: str
    error: Error | None = None
    latency_ms: float | None = None
    why: str = ""


class BuildReport(Facts):
    """How a variant came about.

    candidates: the ways there were, the chosen one first; none where there was one. The rest tells of the chosen one
    trials: of calibration, best first; plan: the one that the variant has
    islands: None where no block could be kept out
    held_out: parity on the pictures that calibration did not see, each alone; None where there were none
    """

    target: str
    size: tuple[int, int]
    calibration: CalibrationFacts | None = None
    candidates: tuple[Candidate, ...] = ()
    trials: tuple[Trial, ...] = ()
    plan: QuantizationPlan | None = None
    islands: IslandReport | None = None
    held_out: ParityReport | None = None
    notes: tuple[str, ...] = ()


def no_calibration(target: Target) -> UsageError:
    return UsageError(f"{target} is calibrated with real pictures: name a folder of some hundred with --calibration")


@dataclass
class Workpiece:
    """One size of a model, whose fp32 graph is proved: what all its variants are made from.

    graph: the file; golden: samples that calibration never sees; calibration: None when no folder was named
    ranked: the blocks by their error, once a recipe has ranked them; by the numbers that activations are in, and
        whether answers are too
    """

    graph: Path
    spec: ModelSpec
    golden: GoldenSamples
    calibration: Calibration | None
    progress: Progress
    ranked: dict[tuple[str, bool], tuple[BlockError, ...]] = field(
        default_factory=dict[tuple[str, bool], tuple[BlockError, ...]]
    )

    def need_calibration(self, target: Target) -> Calibration:
        """Raises UsageError when no pictures were named."""
        if self.calibration is None:
            raise no_calibration(target)
        return self.calibration

    @cached_property
    def quantizer(self) -> Quantizer:
        """The graph with its statistics, which all int8 variants of this size share. Needs calibration."""
        assert self.calibration is not None
        quantizer, seen = Quantizer(self.graph), self.calibration.seen
        quantizer.collect(seen, count_steps(self.progress, "run the calibration pictures", len(seen)))
        return quantizer

    @cached_property
    def held_out(self) -> GoldenSamples:
        """The held-out pictures with the fp32 graph's answers, which are PyTorch's within parity."""
        from ferryman_export.variants.judge import answer_in_fp32

        return answer_in_fp32(self)


@dataclass(frozen=True)
class Artefact:
    """path: the variant's main file; operators: count per type; report: how it came about

    stand_in: an fp32 graph that answers as it, where no runtime of this machine can run it; None for the file itself
    typed: the graph that tells its precisions, where the file does not; None for the file itself
    structure: see `VariantFacts`
    """

    path: Path
    operators: dict[str, int]
    report: BuildReport
    stand_in: onnx.ModelProto | None = None
    typed: onnx.ModelProto | None = None
    structure: str | None = None


# Makes a variant of a workpiece at `path`, which has no suffix yet. Raises ParityError, ExportError, UsageError.
Recipe = Callable[[Workpiece, Target, Tolerance, Path], Artefact]
