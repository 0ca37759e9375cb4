"""From a bundle's folder to a model that may be served: whole, loaded, warm, and answering as it was exported."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ferryman.answers import ModelFacts, OutputParity
from ferryman.bundle import Bundle
from ferryman.errors import BundleCorruptError, FerrymanError
from ferryman.golden import GoldenSamples
from ferryman.parity import ParityReport, ParityReports, check_parity
from ferryman.runtimes import RUNTIMES, open_sessions
from ferryman.runtimes.base import DEFAULT, Session, Settings

PARITY = "parity.json"
WARM_UP_SAMPLES = 4
WARM_UP_BATCHES = (1, 2)


@dataclass(frozen=True)
class LoadedModel:
    """A bundle whose digests were right, and sessions that answered its golden samples within tolerance.

    name, version: of its folder in the repository; measured: at export, empty when the bundle holds no report
    sessions: one a size, in the order of the manifest's specs
    """

    name: str
    version: int
    bundle: Bundle
    target: str
    runtime_version: str
    measured: tuple[ParityReport, ...]
    sessions: tuple[Session, ...]

    @property
    def facts(self) -> ModelFacts:
        manifest = self.bundle.manifest
        sizes = [spec.preprocess.size for spec in manifest.specs]
        return ModelFacts(
            name=self.name,
            version=self.version,
            task=self.bundle.spec.task,
            labels=self.bundle.spec.labels,
            target=self.target,
            runtime_version=self.runtime_version,
            bundle_digest=self.bundle.digest,
            checkpoint=manifest.source.source,
            checkpoint_digest=manifest.source.sha256,
            parity=_worst_errors(self.measured),
            created=manifest.created,
            canvases=tuple((width, height) for height, width in sizes),
        )

    def close(self) -> None:
        for session in self.sessions:
            session.close()


def load_model(folder: Path, target: str | None = None, settings: Settings = DEFAULT) -> LoadedModel:
    """Opens NAME/VERSION, loads a target's variants and warms them up with golden samples. Blocks.

    Raises a BundleError, UsageError for a target that the bundle has not, EngineError, and ParityError when
    a variant does not answer on this device as it did when it was exported.
    """
    bundle = Bundle.open(folder)
    built = bundle.variants(target)[0].target
    tolerance = bundle.tolerance(built)
    few = [_first_samples(bundle.golden(index), WARM_UP_SAMPLES) for index in range(len(bundle.manifest.specs))]
    measured = _read_parity(bundle, str(built))
    sessions = open_sessions(bundle, target, settings)
    version = RUNTIMES[built.runtime].version()
    model = LoadedModel(folder.parent.name, bundle.version, bundle, str(built), version, measured, sessions)
    try:
        for session, golden in zip(sessions, few, strict=True):
            check_parity(
                session.run, golden, session.spec, tolerance, str(built), version, WARM_UP_BATCHES
            ).raise_for_failures()
    except FerrymanError:
        model.close()
        raise
    return model


def _first_samples(golden: GoldenSamples, count: int) -> GoldenSamples:
    return GoldenSamples(
        golden.names[:count],
        {name: array[:count] for name, array in golden.inputs.items()},
        {name: array[:count] for name, array in golden.outputs.items()},
    )


def _read_parity(bundle: Bundle, target: str) -> tuple[ParityReport, ...]:
    if PARITY not in bundle.manifest.files:
        return ()
    try:
        reports = ParityReports.model_validate_json(bundle.file(PARITY).read_bytes())
    except (OSError, ValidationError) as error:
        raise BundleCorruptError(f"{bundle.path}: {PARITY} can't be read: {error}") from error
    return tuple(report for report in reports.reports if report.target == target)


def _worst_errors(reports: tuple[ParityReport, ...]) -> tuple[OutputParity, ...]:
    found: dict[str, OutputParity] = {}
    for error in (error for report in reports for error in report.errors):
        worst = found.get(error.output)
        found[error.output] = OutputParity(
            error.output,
            max(error.max_abs, worst.max_abs_error if worst else 0.0),
            min(error.cosine, worst.min_cosine if worst else 1.0),
            error.limit,
        )
    return tuple(found.values())
