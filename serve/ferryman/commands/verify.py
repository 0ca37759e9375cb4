"""`ferryman verify`: parity on this device, without PyTorch, and the certificate."""

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from ferryman.bundle import Bundle
from ferryman.commands.console import make_table, out, print_json, print_table, show_stages
from ferryman.device import DeviceFacts, read_device
from ferryman.errors import FileAccessError
from ferryman.files import replace_file
from ferryman.parity import ParityReport, count_runs
from ferryman.proof import prove_session
from ferryman.runtimes import RUNTIMES, open_sessions
from ferryman.runtimes.base import Settings
from ferryman.specs import Facts


class Certificate(Facts):
    """What `verify` measured, where, and on which files. Digests are SHA-256; variants and reports are one a size."""

    bundle: str
    bundle_digest: str
    variant_digests: tuple[str, ...]
    created: str
    device: DeviceFacts
    reports: tuple[ParityReport, ...]
    passed: bool

    def raise_for_failures(self) -> None:
        """Raises ParityError for the first size that is out of tolerance."""
        for report in self.reports:
            report.raise_for_failures()


def verify_bundle(bundle: Bundle, target: str | None, settings: Settings) -> Certificate:
    """Runs the target's variants on every golden sample, alone and in batches, against PyTorch's stored answers."""
    variants = bundle.variants(target)
    built = variants[0].target
    golden = [bundle.golden(index) for index in range(len(variants))]
    tolerance = bundle.tolerance(built)
    total, done = sum(count_runs(len(samples)) for samples in golden), 0
    reports: list[ParityReport] = []
    with show_stages() as show, ExitStack() as opened:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            show(f"compare {built} with PyTorch's answers", done, total)

        for session, samples in zip(open_sessions(bundle, target, settings), golden, strict=True):
            opened.callback(session.close)
            version = RUNTIMES[built.runtime].version()
            reports.append(prove_session(session, samples, built, tolerance, version, advance=advance))
    return Certificate(
        bundle=f"{bundle.name}/{bundle.version}",
        bundle_digest=bundle.digest,
        variant_digests=tuple(bundle.manifest.files[variant.path].sha256 for variant in variants),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        device=read_device(),
        reports=tuple(reports),
        passed=all(report.passed for report in reports),
    )


def run_verify(path: Path, target: str | None, where: Path | None, settings: Settings, json_output: bool) -> None:
    """Raises ParityError (exit status 3) when out of tolerance; the certificate is written either way.

    Raises FileAccessError when it can't be written and all else is fine.
    """
    bundle = Bundle.open(path)
    certificate = verify_bundle(bundle, target, settings)
    text = certificate.model_dump_json(indent=2) + "\n"
    try:
        if where is None:
            where = bundle.write_certificate(certificate.reports[0].target, text)
        else:
            with replace_file(where) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except FileAccessError as error:
        certificate.raise_for_failures()
        message = f"within tolerance, but without a certificate: {error}, or name a file with --certificate"
        raise FileAccessError(message) from error
    certificate.raise_for_failures()
    if json_output:
        print_json(certificate.model_dump(mode="json"))
        return
    for report in certificate.reports:
        print_report(report)
    out.print(f"{bundle.path}: every file is the one that was exported; certificate {where}")


def print_report(report: ParityReport) -> None:
    """A line an output: the worst over all samples and batches."""
    table = make_table("output", "max abs error", "limit", "min cosine", "worst at", numbers=(1, 2, 3))
    for output in dict.fromkeys(error.output for error in report.errors):
        errors = [error for error in report.errors if error.output == output]
        worst = max(errors, key=lambda error: error.max_abs)
        limit = "-" if worst.limit is None else f"{worst.limit:.3g}"
        cosine = min(error.cosine for error in errors)
        table.add_row(output, f"{worst.max_abs:.3g}", limit, f"{cosine:.7f}", f"{worst.sample}, {worst.worst_case}")
    print_table(table)
    verdict = "within tolerance" if report.passed else "out of tolerance"
    task = ""
    if report.top1_agreement is not None:
        task = f", top-1 agreement {report.top1_agreement:.2%}"
    if report.matched_detections is not None:
        task = f", {report.matched_detections:.2%} of {report.detections} detections matched"
        if not report.detections:
            threshold = report.tolerance.score_threshold
            task = f", no detection above {threshold} to match: export with --samples that show objects"
    if report.pixel_agreement is not None:
        task += f", {report.pixel_agreement:.3%} of the pixels or more agree"
    if report.mask_iou is not None:
        task += f", masks' IoU {report.mask_iou:.4f} or more"
    if report.attestation is not None:
        products = report.attestation.products
        counted = ", ".join(f"{count} in {name}" for name, count in sorted(products.items()))
        task += f"; matrix products with weights: {counted or 'none'}"
    height, width = report.size
    out.print(f"{report.target} at {height}x{width} ({report.runtime_version}): {verdict}{task}")
