"""Judges a candidate graph by running it: on the golden samples and the held-out pictures, in the target's runtime."""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx

from ferryman.errors import EngineError
from ferryman.golden import GoldenSamples, Tensors
from ferryman.manifest import Tolerance
from ferryman.parity import check_parity
from ferryman.runtimes import find_runtime
from ferryman.runtimes.base import Session
from ferryman.specs import Target
from ferryman_export.islands import Verdict
from ferryman_export.onnx import save_graph
from ferryman_export.quantize import distance
from ferryman_export.samples import choose_evenly
from ferryman_export.steps import count_steps
from ferryman_export.variants.base import CANONICAL, Workpiece
from ferryman_export.variants.rehearsal import run_as


def strict(tolerance: Tolerance, pictures: int) -> Tolerance:
    """For the held-out pictures: near ties are counted where there are so many that one alone is within the limit."""
    enough = pictures * (1 - tolerance.top1_agreement) >= 1
    return tolerance.model_copy(update={"tie_margin": 0.0}) if enough else tolerance


def answer_in_fp32(piece: Workpiece) -> GoldenSamples:
    """The held-out pictures and the fp32 graph's answers to them, each alone."""
    pictures = piece.need_calibration(CANONICAL).held_out
    advance = count_steps(piece.progress, "answer the held-out pictures in fp32", len(pictures))
    answers: list[Tensors] = []
    with find_runtime(CANONICAL).load(piece.graph, CANONICAL, piece.spec) as session:
        for index in range(len(pictures)):
            answers.append(session.run(pictures.one(index)))
            advance(1)
    outputs = {name: np.concatenate([answer[name] for answer in answers]) for name in piece.spec.output_names}
    return GoldenSamples(pictures.names, pictures.inputs, outputs)


def spread(samples: GoldenSamples, most: int) -> GoldenSamples:
    """At most so many, at equal distances: pictures that stand next to each other in a folder are often alike."""
    chosen = choose_evenly(range(len(samples)), most)
    names = tuple(samples.names[index] for index in chosen)
    return GoldenSamples(
        names,
        {name: array[chosen] for name, array in samples.inputs.items()},
        {name: array[chosen] for name, array in samples.outputs.items()},
    )


class Bench:
    """Loads candidates for a target, and judges them. What the candidates are judged on is the workpiece's."""

    def __init__(self, piece: Workpiece, target: Target, tolerance: Tolerance) -> None:
        self.piece, self.target, self.tolerance = piece, target, tolerance
        self.run_as = run_as(target)
        self.runtime = find_runtime(self.run_as)

    @contextmanager
    def load(self, model: onnx.ModelProto) -> Generator[Session]:
        with tempfile.TemporaryDirectory() as folder:
            path = save_graph(model, Path(folder) / "candidate.onnx")
            with self.runtime.load(path, self.run_as, self.piece.spec) as session:
                yield session

    def measure(self, model: onnx.ModelProto, samples: GoldenSamples) -> float:
        """The error on samples, each alone; infinite when the runtime can't run it."""
        try:
            with self.load(model) as session:
                return distance(_answer(session, samples), _each(samples))
        except EngineError:
            return float("inf")

    def judge(self, model: onnx.ModelProto) -> Verdict:
        """The tolerance on the golden samples and on the held-out pictures; the error is that on the latter."""
        groups = [(self.piece.golden, self.tolerance)]
        if self.piece.calibration is not None:
            groups.append((self.piece.held_out, strict(self.tolerance, len(self.piece.held_out))))
        error, failures = float("inf"), list[str]()
        try:
            with self.load(model) as session:
                for samples, tolerance in groups:
                    answers = _answer(session, samples)
                    error, replay = distance(answers, _each(samples)), iter(answers)
                    report = check_parity(
                        lambda _, replay=replay: next(replay),
                        samples,
                        self.piece.spec,
                        tolerance,
                        str(self.target),
                        self.runtime.version(),
                        batches=(1,),
                    )
                    failures += report.failures
        except EngineError as problem:
            failures.append(str(problem))
        return Verdict(error=error, passed=not failures, why=next(iter(failures), ""))


def _answer(session: Session, samples: GoldenSamples) -> list[Tensors]:
    """Of each sample alone."""
    return [session.run(samples.batch([index])) for index in range(len(samples))]


def _each(samples: GoldenSamples) -> list[Tensors]:
    """The reference's outputs, a batch of 1 a sample."""
    return [
        {name: array[index : index + 1] for name, array in samples.outputs.items()} for index in range(len(samples))
    ]
