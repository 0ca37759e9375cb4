"""The proof of a file that was just written, against the golden samples."""

from pathlib import Path

import numpy as np

from ferryman.golden import GoldenSamples, Tensors
from ferryman.manifest import Tolerance
from ferryman.parity import ParityReport, count_runs
from ferryman.proof import prove_session
from ferryman.runtimes import find_runtime
from ferryman.runtimes.base import Session
from ferryman.specs import ModelSpec, Target
from ferryman_export.steps import Progress, count_steps


def prove_file(
    path: Path, target: Target, spec: ModelSpec, golden: GoldenSamples, tolerance: Tolerance, progress: Progress
) -> tuple[ParityReport, Tensors]:
    """What the target's runtime makes of the file; and its answers to each golden sample alone."""
    runtime = find_runtime(target)
    with runtime.load(path, target, spec) as session:
        return prove_loaded(session, target, runtime.version(), golden, tolerance, progress)


def prove_loaded(
    session: Session, target: Target, version: str, golden: GoldenSamples, tolerance: Tolerance, progress: Progress
) -> tuple[ParityReport, Tensors]:
    """`prove_file` of one that is loaded, in a runtime of this version."""
    advance = count_steps(progress, f"compare {target} with PyTorch", count_runs(len(golden)))
    report = prove_session(session, golden, target, tolerance, version, advance=advance)
    answers = [session.run(golden.batch([index])) for index in range(len(golden))]
    names = session.spec.output_names
    return report, {name: np.concatenate([answer[name] for answer in answers]) for name in names}
