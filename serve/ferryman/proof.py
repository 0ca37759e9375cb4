"""The proof of one variant: its answers against PyTorch's, and what it computes in which precision."""

from collections.abc import Callable, Sequence

from ferryman.golden import GoldenSamples
from ferryman.manifest import Tolerance
from ferryman.parity import BATCHES, ParityReport, check_parity
from ferryman.runtimes.base import Session
from ferryman.specs import Target


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
