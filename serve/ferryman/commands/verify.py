"""`ferryman verify`: parity on this device, without PyTorch, and the certificate."""

from datetime import UTC, datetime
from pathlib import Path

from ferryman.bundle import Bundle
from ferryman.commands.console import make_table, out, print_json, print_table, show_stages
from ferryman.device import DeviceFacts, read_device
from ferryman.errors import FileAccessError
from ferryman.files import replace_file
from ferryman.golden import FILE_NAME, load_golden
from ferryman.parity import ParityReport, check_parity, count_runs
from ferryman.runtimes import RUNTIMES, open_session
from ferryman.specs import Facts


class Certificate(Facts):
    """What `verify` measured, where, and on which files. Digests are SHA-256."""

    bundle: str
    bundle_digest: str
    variant_digest: str
    created: str
    device: DeviceFacts
    report: ParityReport
    passed: bool


def verify_bundle(bundle: Bundle, target: str | None, threads: int | None) -> Certificate:
    """Runs the variant on every golden sample, alone and in batches, against PyTorch's stored answers."""
    variant = bundle.variant(target)
    golden = load_golden(bundle.file(FILE_NAME), bundle.spec)
    tolerance = bundle.tolerance(variant)
    total, done = count_runs(len(golden)), 0
    with show_stages() as show, open_session(bundle, target, threads) as session:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            show(f"compare {variant.target} with PyTorch's answers", done, total)

        runtime = RUNTIMES[variant.target.runtime]
        report = check_parity(
            session.run,
            golden,
            bundle.spec,
            tolerance,
            str(variant.target),
            runtime.version(),
            advance=advance,
        )
    return Certificate(
        bundle=f"{bundle.name}/{bundle.version}",
        bundle_digest=bundle.digest,
        variant_digest=bundle.manifest.files[variant.path].sha256,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        device=read_device(),
        report=report,
        passed=report.passed,
    )


def run_verify(path: Path, target: str | None, where: Path | None, threads: int | None, json_output: bool) -> None:
    """Raises ParityError (exit status 3) when out of tolerance; the certificate is written either way.

    Raises FileAccessError when it can't be written and all else is fine.
    """
    bundle = Bundle.open(path)
    certificate = verify_bundle(bundle, target, threads)
    text = certificate.model_dump_json(indent=2) + "\n"
    try:
        if where is None:
            where = bundle.write_certificate(certificate.report.target, text)
        else:
            with replace_file(where) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except FileAccessError as error:
        certificate.report.raise_for_failures()
        message = f"within tolerance, but without a certificate: {error}, or name a file with --certificate"
        raise FileAccessError(message) from error
    certificate.report.raise_for_failures()
    if json_output:
        print_json(certificate.model_dump(mode="json"))
        return
    print_report(certificate.report)
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
    out.print(f"{report.target} ({report.runtime_version}): {verdict}{task}")
