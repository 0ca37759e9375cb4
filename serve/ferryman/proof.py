"""The proof of variants: their answers against PyTorch's, and what they compute in which precision."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from pydantic import ValidationError

from ferryman.bundle import Bundle
from ferryman.errors import BundleCorruptError
from ferryman.golden import GoldenSamples
from ferryman.manifest import Tolerance
from ferryman.parity import BATCHES, ParityReport, ParityReports, check_parity, count_runs
from ferryman.runtimes import RUNTIMES, open_sessions
from ferryman.runtimes.base import DEFAULT, Session, Settings
from ferryman.specs import Target

PARITY = "parity.json"


def prove_session(
    session: Session,
    golden: GoldenSamples,
    target: Target,
    tolerance: Tolerance,
    runtime_version: str,
    batches: Sequence[int] = BATCHES,
    advance: Callable[[int], None] = lambda done: None,
) -> ParityReport:
    """Parity on every golden sample alone and in batches, and the attestation; a failure of either is in the report.

    advance: see `check_parity`
    """
    report = check_parity(
        session.run, golden, session.spec, tolerance, str(target), runtime_version, batches, advance=advance
    )
    attestation = session.attest(golden.batch([0]))
    failures = (*report.failures, *attestation.find_failures(target.precision))
    return report.model_copy(update={"attestation": attestation, "failures": failures})


def prove_sessions(
    bundle: Bundle,
    target: Target,
    sessions: Sequence[Session],
    advance: Callable[[int, int], None] = lambda done, _: None,
) -> tuple[ParityReport, ...]:
    """A report a size, of a bundle's open sessions for a target. advance: called with runs done and runs in all."""
    golden = [bundle.golden(index) for index in range(len(sessions))]
    total, done = sum(count_runs(len(samples)) for samples in golden), 0

    def count(runs: int) -> None:
        nonlocal done
        done += runs
        advance(done, total)

    tolerance, version = bundle.tolerance(target), RUNTIMES[target.runtime].version()
    return tuple(
        prove_session(session, samples, target, tolerance, version, advance=count)
        for session, samples in zip(sessions, golden, strict=True)
    )


def prove_target(
    bundle: Bundle,
    target: Target,
    settings: Settings = DEFAULT,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[ParityReport, ...]:
    """Loads a target's variants and proves them, see `prove_sessions`. Raises EngineError when they can't run here."""
    with ExitStack() as opened:
        sessions = open_sessions(bundle, str(target), settings)
        for session in sessions:
            opened.callback(session.close)
        return prove_sessions(bundle, target, sessions, advance)


def read_reports(bundle: Bundle, target: Target | None = None) -> tuple[ParityReport, ...]:
    """What was measured at export, of a target or of all; empty for a bundle without. Raises BundleCorruptError."""
    if PARITY not in bundle.manifest.files:
        return ()
    try:
        found = ParityReports.model_validate_json(bundle.file(PARITY).read_bytes()).reports
    except (OSError, ValidationError) as error:
        raise BundleCorruptError(f"{bundle.path}: {PARITY} holds no parity reports; export it again") from error
    return tuple(report for report in found if target is None or report.target == str(target))
