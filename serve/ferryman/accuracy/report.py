"""The accuracy of a bundle's variants, side by side."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import ValidationError

from ferryman.accuracy.scores import BoxScores, TopScores
from ferryman.accuracy.truth import Progress, Truth
from ferryman.bundle import Bundle
from ferryman.errors import BundleCorruptError
from ferryman.manifest import Sha256
from ferryman.predictor import Predictor
from ferryman.runtimes import why_not
from ferryman.runtimes.base import DEFAULT, Settings
from ferryman.specs import Facts, Fraction, Target

ACCURACY = "accuracy.json"


class Accuracy(Facts):
    """One variant's. agreement: the share of the canonical variant's answers that it gives too, whatever is true

    Of a classifier those are the best classes; of a detector the detections above the score that parity looks at,
    matched one to one by class and IoU with the tolerance of the variant's precision. None where there are none.
    """

    target: str
    scores: TopScores | BoxScores
    agreement: Fraction | None


class AccuracyReport(Facts):
    """variants: the canonical one first, which is what the others were before they were made into what they are

    data: name of the folder or file; sha256, notes: see `Truth`
    """

    data: str
    sha256: Sha256
    pictures: int
    notes: tuple[str, ...]
    variants: tuple[Accuracy, ...]

    @property
    def figure(self) -> str:
        """The name of the figure that variants are compared by: top-1, mAP."""
        return self.variants[0].scores.main[0]

    def value(self, target: str) -> float:
        """That figure of a variant that was measured."""
        return next(one.scores.main[1] for one in self.variants if one.target == target)


def measure_accuracy(
    bundle: Bundle,
    targets: Sequence[Target],
    truth: Truth[Any],
    settings: Settings = DEFAULT,
    progress: Progress = lambda stage, done, total: None,
    others: Sequence[tuple[str, Predictor]] = (),
) -> AccuracyReport:
    """Of these targets, after the canonical one where it can run here; loaded one after the other.

    others: that are none of the bundle's variants, by name, such as PyTorch itself; held to the canonical tolerance
    Raises EngineError when one can't run here.
    """
    canonical = bundle.targets[0]
    first = () if why_not(canonical) else (canonical,)
    reference: list[Any] | None = None
    measured: list[Accuracy] = []

    def measure(name: str, target: Target, predictor: Predictor) -> None:
        nonlocal reference
        answers = truth.ask(predictor, partial(progress, f"answer the labelled pictures with {name}"))
        if name == str(canonical):
            reference = answers
        agreement = None if reference is None else truth.compare(answers, reference, bundle.tolerance(target))
        measured.append(Accuracy(target=name, scores=truth.score(answers), agreement=agreement))

    for target in dict.fromkeys((*first, *targets)):
        with Predictor(bundle, str(target), settings) as predictor:
            measure(str(target), target, predictor)
    for name, predictor in others:
        measure(name, canonical, predictor)
    return AccuracyReport(
        data=truth.place.absolute().name,
        sha256=truth.sha256,
        pictures=len(truth.paths),
        notes=truth.notes,
        variants=tuple(measured),
    )


def read_accuracy(bundle: Bundle) -> AccuracyReport | None:
    """What was measured at export, None for a bundle without. Raises BundleCorruptError."""
    if ACCURACY not in bundle.manifest.files:
        return None
    try:
        return AccuracyReport.model_validate_json(bundle.file(ACCURACY).read_bytes())
    except (OSError, ValidationError) as error:
        raise BundleCorruptError(f"{bundle.path}: {ACCURACY} holds no accuracy report; export it again") from error
