"""Certificates: that a bundle's variants for a target answer like PyTorch on this device, as it is now.

One is kept in the bundle's `certificates/`, or in a folder for all bundles where that can't be written.
"""

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from ferryman.bundle import CERTIFICATES, Bundle
from ferryman.device import DeviceFacts, read_device
from ferryman.errors import CertificateError
from ferryman.files import write_text
from ferryman.parity import ParityReport
from ferryman.runtimes import find_runtime
from ferryman.runtimes.base import Session
from ferryman.specs import Facts, Target


class Certificate(Facts):
    """What was measured, where, and on which files. Digests are SHA-256; variants and reports are one a size.

    bundle: NAME/VERSION; variant_digests: of what was loaded, see `Runtime.loaded_digest`
    accelerator: see `Runtime.accelerator`; passed: whether every report did
    """

    bundle: str
    bundle_digest: str
    variant_digests: tuple[str, ...]
    created: str
    device: DeviceFacts
    accelerator: str
    reports: Annotated[tuple[ParityReport, ...], Field(min_length=1)]
    passed: bool

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.passed != all(report.passed for report in self.reports):
            raise ValueError(f"passed is {self.passed}, and the reports say otherwise: it was edited")
        return self

    @property
    def target(self) -> str:
        return self.reports[0].target

    def raise_for_failures(self) -> None:
        """Raises ParityError for the first size that is out of tolerance."""
        for report in self.reports:
            report.raise_for_failures()


def make_certificate(bundle: Bundle, reports: Sequence[ParityReport], sessions: Sequence[Session] = ()) -> Certificate:
    """What `reports`, measured just now on this machine, prove; a report a size, in the order of the manifest.

    sessions: that were measured, a size each: an engine may have been built since they were opened
    """
    variants = bundle.variants(reports[0].target)
    built = variants[0].target
    if [(one.target, one.size) for one in reports] != [(str(built), variant.size) for variant in variants]:
        raise ValueError(f"{len(reports)} reports, expected one of {built} for each size of the bundle")
    return Certificate(
        bundle=f"{bundle.name}/{bundle.version}",
        bundle_digest=bundle.digest,
        variant_digests=digest_sessions(bundle, built, sessions) if sessions else _digests(bundle, built),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        device=read_device(),
        accelerator=find_runtime(built).accelerator(built.device),
        reports=tuple(reports),
        passed=all(report.passed for report in reports),
    )


def write_certificate(bundle: Bundle, certificate: Certificate, folder: Path | None = None) -> Path:
    """Puts it in the bundle, or in `folder`; an older one is replaced. Raises FileAccessError."""
    path = certificate_path(bundle, certificate.target, folder)
    write_text(path, certificate.model_dump_json(indent=2) + "\n")
    return path


def certify(bundle: Bundle, reports: Sequence[ParityReport], folder: Path | None = None) -> Path:
    """Writes the certificate of one target; see `make_certificate` and `write_certificate`."""
    return write_certificate(bundle, make_certificate(bundle, reports), folder)


def certificate_path(bundle: Bundle, target: str, folder: Path | None = None) -> Path:
    """TARGET.json in the bundle's certificates, or in the bundle's own folder, named by its digest, in `folder`."""
    place = bundle.path / CERTIFICATES if folder is None else folder / bundle.digest[:16]
    return place / f"{target}.json"


def check_certificate(bundle: Bundle, target: Target, folder: Path | None = None) -> Certificate:
    """The valid certificate of a target. Raises CertificateError that says what is wrong and what mends it.

    Raises EngineError when the target can't run here, certificate or not.
    """
    try:
        certificate = read_certificate(bundle, target, folder)
        if not certificate.passed:
            raise CertificateError("it was found out of tolerance here")
    except CertificateError as error:
        where = "" if folder is None else f" --certificates {shlex.quote(str(folder))}"
        raise CertificateError(
            f"{target} has no valid certificate for this device: {error}; "
            f"prove it with: ferryman verify {shlex.quote(str(bundle.path))} --target {target}{where}"
        ) from error
    return certificate


def read_certificate(bundle: Bundle, target: Target, folder: Path | None = None) -> Certificate:
    """The certificate of a target that was made for this bundle, runtime and device, passed or not.

    Raises CertificateError that says what is missing or differs, EngineError when the target can't run here.
    """
    runtime = find_runtime(target)
    path = certificate_path(bundle, str(target), folder)
    try:
        found = Certificate.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CertificateError("there is none") from error
    except OSError as error:
        raise CertificateError(f"{path} can't be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        why = first["msg"].removeprefix("Value error, ")
        raise CertificateError(
            f"{path} holds none that this version can read: {f'{where}: ' if where else ''}{why}"
        ) from error
    device = read_device()
    # Cores, memory, kernel and Python change the speed at most.
    for what, then, now in (
        ("bundle", found.bundle_digest[:12], bundle.digest[:12]),
        ("variant", ", ".join(found.variant_digests), ", ".join(_digests(bundle, target))),
        ("target", found.target, str(target)),
        (f"{target.runtime} version", found.reports[0].runtime_version, runtime.version()),
        ("machine", found.device.machine, device.machine),
        ("processor", found.device.cpu, device.cpu),
        ("processor's features", " ".join(found.device.cpu_features), " ".join(device.cpu_features)),
        ("accelerator", found.accelerator, runtime.accelerator(target.device)),
    ):
        if then != now:
            raise CertificateError(f"it was made for another {what}, {then or 'none'} and not {now or 'none'}")
    return found


def digest_sessions(bundle: Bundle, target: Target, sessions: Sequence[Session]) -> tuple[str, ...]:
    """Of what these run, one a size: what a certificate of them names."""
    files = [bundle.manifest.files[variant.path].sha256 for variant in bundle.variants(str(target))]
    return tuple(one.engine_sha256 or file for one, file in zip(sessions, files, strict=True))


def _digests(bundle: Bundle, target: Target) -> tuple[str, ...]:
    """Of what is loaded for a target, one a size. Raises EngineError when it can't run here."""
    runtime, variants = find_runtime(target), bundle.variants(str(target))
    digests = [(variant.path, bundle.manifest.files[variant.path].sha256) for variant in variants]
    return tuple(runtime.loaded_digest(bundle.file(path), target, sha256) for path, sha256 in digests)
