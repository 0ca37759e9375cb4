"""From a bundle's folder to a model that may be served: whole, certified, loaded, warm, answering as exported."""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ferryman.answers import ModelFacts, OutputParity
from ferryman.bundle import Bundle
from ferryman.certificates import (
    Certificate,
    check_certificate,
    digest_sessions,
    make_certificate,
    write_certificate,
)
from ferryman.errors import CertificateError, FerrymanError, FileAccessError
from ferryman.parity import ParityReport, check_parity
from ferryman.proof import prove_sessions, read_reports
from ferryman.runtimes import RUNTIMES, open_sessions
from ferryman.runtimes.base import DEFAULT, Session, Settings
from ferryman.server.costs import Costs, measure_costs
from ferryman.server.memory import check_room
from ferryman.specs import Target

log = logging.getLogger(__name__)
WARM_UP_SAMPLES = 4
WARM_UP_BATCHES = (1, 2)


@dataclass(frozen=True)
class LoadedModel:
    """A bundle whose digests were right, and sessions that answered its golden samples within tolerance.

    name, version: of its folder in the repository; certificate: valid for this device
    measured: at export, empty when the bundle holds no report
    sessions, costs: one a size, in the order of the manifest's specs
    """

    name: str
    version: int
    bundle: Bundle
    certificate: Certificate
    measured: tuple[ParityReport, ...]
    sessions: tuple[Session, ...]
    costs: tuple[Costs, ...]

    @cached_property
    def target(self) -> str:
        return self.certificate.target

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
            runtime_version=self.certificate.reports[0].runtime_version,
            bundle_digest=self.bundle.digest,
            checkpoint=manifest.source.source,
            checkpoint_digest=manifest.source.sha256,
            parity=_worst_errors(self.measured),
            created=manifest.created,
            canvases=tuple((width, height) for height, width in sizes),
            certified=self.certificate.created,
        )

    def close(self) -> None:
        for session in self.sessions:
            session.close()


def load_model(
    folder: Path,
    target: str | None = None,
    settings: Settings = DEFAULT,
    certificates: Path | None = None,
    certify: bool = False,
    max_batch: int = 1,
) -> LoadedModel:
    """Opens NAME/VERSION, loads a target's variants and warms them up with golden samples, and times them. Blocks.

    certificates: the folder that holds them, by default each bundle's own
    certify: prove the variants first where there is no valid certificate, and write one where that is possible
    max_batch: the largest batch that is timed
    Raises a BundleError, CertificateError for one, UsageError for a target that the bundle has not, EngineError, and
    ParityError when a variant does not answer on this device as it did when it was exported.
    """
    bundle = Bundle.open(folder)
    built = bundle.variants(target)[0].target
    weights = sum(bundle.size_bytes(variant) for variant in bundle.variants(target))
    check_room(f"{folder.parent.name}/{bundle.version}", weights)
    try:
        certificate = check_certificate(bundle, built, certificates)
    except CertificateError as error:
        if not certify:
            raise CertificateError(f"{error}, or serve with --certify") from error
        certificate = None
    measured = read_reports(bundle, built)
    sessions = open_sessions(bundle, target, settings)
    try:
        if certificate is None:
            certificate = _certify(bundle, built, sessions, certificates)
        elif certificate.variant_digests != digest_sessions(bundle, built, sessions):
            raise CertificateError(f"{built} has another engine than a moment ago: load it again")
        else:
            _warm_up(bundle, built, sessions)
        costs = tuple(measure_costs(one, bundle.golden(index), max_batch) for index, one in enumerate(sessions))
    except FerrymanError:
        for session in sessions:
            session.close()
        raise
    return LoadedModel(folder.parent.name, bundle.version, bundle, certificate, measured, sessions, costs)


def _certify(bundle: Bundle, target: Target, sessions: tuple[Session, ...], certificates: Path | None) -> Certificate:
    """Proves the sessions, which warms them up as well. Raises ParityError."""
    log.info("model being proved on this device: name=%s version=%d target=%s", bundle.name, bundle.version, target)
    certificate = make_certificate(bundle, prove_sessions(bundle, target, sessions), sessions)
    try:
        path = write_certificate(bundle, certificate, certificates)
        log.info("certificate written: path=%s passed=%s", path, certificate.passed)
    except FileAccessError as error:
        # The proof holds for as long as this process runs.
        log.warning("certificate can't be kept, and is made again at each start unless --certificates names another "
                    "folder: %s", error)  # fmt: skip
    certificate.raise_for_failures()
    return certificate


def _warm_up(bundle: Bundle, target: Target, sessions: tuple[Session, ...]) -> None:
    """A few samples, alone and in twos, which must be answered right. Raises ParityError."""
    tolerance, version = bundle.tolerance(target), RUNTIMES[target.runtime].version()
    for index, session in enumerate(sessions):
        golden = bundle.golden(index).first(WARM_UP_SAMPLES)
        report = check_parity(session.run, golden, session.spec, tolerance, str(target), version, WARM_UP_BATCHES)
        report.raise_for_failures()


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
