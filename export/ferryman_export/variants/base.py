"""What every recipe gets, and what it gives."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnx

from ferryman.errors import UsageError
from ferryman.golden import GoldenSamples
from ferryman.manifest import Tolerance
from ferryman.specs import Facts, ModelSpec, Target
from ferryman_export.calibration import Calibration, CalibrationFacts
from ferryman_export.islands import IslandReport
from ferryman_export.quantize import QuantizationPlan, Quantizer
from ferryman_export.steps import Progress, count_steps


class Trial(Facts):
    """A way to calibrate that was tried with every block in 8 bits, and the error on the held-out pictures."""

    plan: QuantizationPlan
    error: float


class BuildReport(Facts):
    """How a variant came about. islands: None where no block could be kept out; trials: of calibration, best first"""

    target: str
    size: tuple[int, int]
    calibration: CalibrationFacts | None = None
    trials: tuple[Trial, ...] = ()
    islands: IslandReport | None = None
    notes: tuple[str, ...] = ()


@dataclass
class Workpiece:
    """One size of a model, whose fp32 graph is proved: what all its variants are made from.

    graph: the file; golden: samples that calibration never sees; calibration: None when no folder was named
    """

    graph: Path
    spec: ModelSpec
    golden: GoldenSamples
    calibration: Calibration | None
    progress: Progress
    _shared: dict[str, Quantizer] = field(default_factory=dict)

    def need_calibration(self, target: Target) -> Calibration:
        """Raises UsageError when no pictures were named."""
        if self.calibration is None:
            raise UsageError(
                f"{target} is calibrated with real pictures: name a folder of some hundred with --calibration"
            )
        return self.calibration

    def quantizer(self, target: Target) -> Quantizer:
        """The graph with its statistics, which all int8 variants of this size share."""
        calibration = self.need_calibration(target)
        if "quantizer" not in self._shared:
            quantizer = Quantizer(self.graph)
            quantizer.collect(
                calibration.seen, count_steps(self.progress, "run the calibration pictures", len(calibration.seen))
            )
            self._shared["quantizer"] = quantizer
        return self._shared["quantizer"]

    @cached_property
    def held_out(self) -> GoldenSamples:
        """The held-out pictures with the fp32 graph's answers, which are PyTorch's within parity."""
        from ferryman_export.variants.judge import answer_in_fp32

        return answer_in_fp32(self)


@dataclass(frozen=True)
class Artefact:
    """path: the variant's main file; operators: count per type; report: how it came about

    stand_in: an fp32 graph that answers as it, where no runtime of this machine can run it; None for the file itself
    """

    path: Path
    operators: dict[str, int]
    report: BuildReport
    stand_in: onnx.ModelProto | None = None


# Makes a variant of a workpiece at `path`, which has no suffix yet. Raises ParityError, ExportError, UsageError.
Recipe = Callable[[Workpiece, Target, Tolerance, Path], Artefact]


def save_graph(model: onnx.ModelProto, path: Path) -> Path:
    """Writes an ONNX file, its weights beside it when they are too large for one."""
    large = model.ByteSize() > 1_500_000_000
    onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data")
    return path
