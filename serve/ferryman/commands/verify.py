"""`ferryman verify`: parity on this device, without PyTorch, and a certificate of each target."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from ferryman.accuracy import measure_accuracy, read_truth
from ferryman.attest import Attestation
from ferryman.bundle import Bundle
from ferryman.certificates import Certificate, make_certificate, write_certificate
from ferryman.commands.accuracy import print_accuracy
from ferryman.commands.console import make_table, out, print_json, print_table, show_stages
from ferryman.errors import EngineError, FileAccessError
from ferryman.parity import ParityReport
from ferryman.proof import prove_sessions
from ferryman.runtimes import find_runtime, open_sessions, why_not
from ferryman.runtimes.base import Session, Settings
from ferryman.specs import Target


def choose_targets(bundle: Bundle, names: Sequence[str]) -> tuple[list[Target], dict[Target, str]]:
    """Those named, or all of a bundle's that can run here; and why the others can't.

    Raises EngineError when none can, or one that is named can't; UsageError for one that the bundle has not.
    """
    if names:
        found = [bundle.variants(name)[0].target for name in dict.fromkeys(names)]
        for target in found:
            find_runtime(target)
        return found, {}
    reasons = {one: why for one in bundle.targets if (why := why_not(one)) is not None}
    able = [one for one in bundle.targets if one not in reasons]
    if not able:
        raise none_can_run(bundle, reasons)
    return able, reasons


def none_can_run(bundle: Bundle, reasons: Mapping[Target, str]) -> EngineError:
    """reasons: why not, of every target"""
    told = "; ".join(f"{one}: {why}" for one, why in reasons.items())
    return EngineError(f"no variant of {bundle.path} can run here: {told}")


def run_verify(
    path: Path,
    target: str | None,
    folder: Path | None,
    accuracy: Path | None,
    settings: Settings,
    json_output: bool,
) -> None:
    """Proves the target, or every one that can run here; each gets a certificate, in tolerance or not.

    folder: of the certificates, by default the bundle's own; accuracy: labelled pictures to count right answers on
    One of several that can't be loaded, such as one whose engine is not built, is left out and told.
    Raises EngineError when it is the one that is named, or when none can be loaded, ParityError (exit status 3) when
    one is out of tolerance, and FileAccessError when a certificate can't be written and all else is fine.
    """
    bundle = Bundle.open(path)
    targets, reasons = choose_targets(bundle, [] if target is None else [target])
    certificates: list[Certificate] = []
    places: list[Path] = []
    unwritten: FileAccessError | None = None
    with show_stages() as show:
        truth = None if accuracy is None else read_truth(accuracy, bundle.spec, show)
        for one in targets:
            try:
                sessions = open_sessions(bundle, str(one), settings)
            except EngineError as error:
                if target is not None:
                    raise
                reasons[one] = str(error)
                continue
            advance = partial(show, f"compare {one} with PyTorch's answers")
            certificates.append(_certify(bundle, one, sessions, advance))
            try:
                places.append(write_certificate(bundle, certificates[-1], folder))
            except FileAccessError as error:
                unwritten = error
        if not certificates:
            raise none_can_run(bundle, reasons)
        able = [one for one in targets if one not in reasons]
        counted = None if truth is None else measure_accuracy(bundle, able, truth, settings, show)
    if not json_output:
        for report in (report for certificate in certificates for report in certificate.reports):
            print_report(report)
        if counted is not None:
            print_accuracy(counted)
        for one, why in reasons.items():
            out.print(f"{one} can't run here: {why}")
    for certificate in certificates:
        certificate.raise_for_failures()
    if unwritten is not None:
        hint = ", or name a folder with --certificates" if folder is None else ""
        raise FileAccessError(f"within tolerance, but without a certificate: {unwritten}{hint}") from unwritten
    if json_output:
        documents = [
            {"path": str(place), **certificate.model_dump(mode="json")}
            for place, certificate in zip(places, certificates, strict=True)
        ]
        document = {"certificates": documents, "can_not_run": {str(one): why for one, why in reasons.items()}}
        print_json(document if counted is None else document | {"accuracy": counted.model_dump(mode="json")})
        return
    written = ", ".join(place.name for place in places)
    out.print(f"{bundle.path}: every file is the one that was exported; in {places[0].parent}: {written}")


def _certify(
    bundle: Bundle, target: Target, sessions: Sequence[Session], advance: Callable[[int, int], None]
) -> Certificate:
    """Of the open sessions, which are closed then."""
    with ExitStack() as opened:
        for session in sessions:
            opened.callback(session.close)
        return make_certificate(bundle, prove_sessions(bundle, target, sessions, advance), sessions)


def print_report(report: ParityReport) -> None:
    """The verdict, then a line an output: the worst over all samples and batches."""
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
        task += f"; matrix products with weights: {describe_products(report.attestation)}"
    height, width = report.size
    out.print(f"{report.target} at {height}x{width} ({report.runtime_version}): {verdict}{task}")
    table = make_table("output", "max abs error", "limit", "min cosine", "worst at", numbers=(1, 2, 3))
    for output in dict.fromkeys(error.output for error in report.errors):
        errors = [error for error in report.errors if error.output == output]
        worst = max(errors, key=lambda error: error.max_abs)
        limit = "-" if worst.limit is None else f"{worst.limit:.3g}"
        cosine = min(error.cosine for error in errors)
        table.add_row(output, f"{worst.max_abs:.3g}", limit, f"{cosine:.7f}", f"{worst.sample}, {worst.worst_case}")
    print_table(table)


def describe_products(attestation: Attestation) -> str:
    """How many of the matrix products with weights run in which precision: `72 in int8, 2 in fp32`."""
    return ", ".join(f"{count} in {name}" for name, count in sorted(attestation.products.items())) or "none"
