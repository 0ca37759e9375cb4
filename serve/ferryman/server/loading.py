"""From a bundle's folder to a model that may be served: whole, loaded, warm, and answering as it was exported."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ferryman.answers import ModelFacts, OutputParity
from ferryman.bundle import Bundle
from ferryman.errors import BundleCorruptError, FerrymanError
from ferryman.golden import FILE_NAME as GOLDEN
from ferryman.golden import GoldenSamples, load_golden
from ferryman.parity import ParityReport, ParityReports, check_parity
from ferryman.runtimes import RUNTIMES, open_session
from ferryman.runtimes.base import Session

PARITY = "parity.json"
WARM_UP_SAMPLES = 4
WARM_UP_BATCHES = (1, 2)


@dataclass(frozen=True)
class LoadedModel:
    """A bundle whose digests were right, and a session that answered its golden samples within tolerance.

    name, version: of its folder in the repository; measured: at export, None when the bundle holds no report
    """

    name: str
    version: int
    bundle: Bundle
    target: str
    runtime_version: str
    measured: ParityReport | None
    session: Session

    @property
    def facts(self) -> ModelFacts:
        manifest = self.bundle.manifest
        height, width = manifest.spec.preprocess.size
        return ModelFacts(
            name=self.name,
            version=self.version,
            task=manifest.spec.task,
            labels=manifest.spec.labels,
            target=self.target,
            runtime_version=self.runtime_version,
            bundle_digest=self.bundle.digest,
            checkpoint=manifest.source.source,
            checkpoint_digest=manifest.source.sha256,
            parity=_worst_errors(self.measured) if self.measured is not None else (),
            created=manifest.created,
            canvas=(width, height),
        )


def load_model(folder: Path, target: str | None = None, threads: int | None = None) -> LoadedModel:
    """Opens NAME/VERSION, loads a variant and warms it up with golden samples. Blocks.

    Raises a BundleError, UsageError for a target that the bundle has not, EngineError, and ParityError when
    the variant does not answer on this device as it did when it was exported.
    """
    bundle = Bundle.open(folder)
    variant = bundle.variant(target)
    tolerance = bundle.tolerance(variant)
    golden = load_golden(bundle.file(GOLDEN), bundle.spec)
    measured = _read_parity(bundle, str(variant.target))
    session = open_session(bundle, target, threads)
    version = RUNTIMES[variant.target.runtime].version()
    few = _first_samples(golden, WARM_UP_SAMPLES)
    try:
        check_parity(
            session.run, few, bundle.spec, tolerance, str(variant.target), version, WARM_UP_BATCHES
        ).raise_for_failures()
    except FerrymanError:
        session.close()
        raise
    return LoadedModel(folder.parent.name, bundle.version, bundle, str(variant.target), version, measured, session)


def _first_samples(golden: GoldenSamples, count: int) -> GoldenSamples:
    return GoldenSamples(
        golden.names[:count],
        {name: array[:count] for name, array in golden.inputs.items()},
        {name: array[:count] for name, array in golden.outputs.items()},
    )


def _read_parity(bundle: Bundle, target: str) -> ParityReport | None:
    if PARITY not in bundle.manifest.files:
        return None
    try:
        reports = ParityReports.model_validate_json(bundle.file(PARITY).read_bytes())
    except (OSError, ValidationError) as error:
        raise BundleCorruptError(f"{bundle.path}: {PARITY} can't be read: {error}") from error
    return next((report for report in reports.reports if report.target == target), None)


def _worst_errors(report: ParityReport) -> tuple[OutputParity, ...]:
    found: dict[str, OutputParity] = {}
    for error in report.errors:
        worst = found.get(error.output)
        found[error.output] = OutputParity(
            error.output,
            max(error.max_abs, worst.max_abs_error if worst else 0.0),
            min(error.cosine, worst.min_cosine if worst else 1.0),
            error.limit,
        )
    return tuple(found.values())
