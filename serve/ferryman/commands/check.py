"""`ferryman serve --check`: whether a server would start with these settings, and whom it would let in."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ferryman.bundle import Bundle
from ferryman.certificates import check_certificate
from ferryman.commands.console import make_table, print_json, print_table
from ferryman.errors import BundleNotFoundError, CertificateError, FerrymanError, UsageError, propose
from ferryman.server.config import ServerConfig
from ferryman.server.folder import CHOICES, look
from ferryman.server.security.exposure import describe_exposure
from ferryman.server.security.tls import WARN_DAYS, read_server_tls
from ferryman.server.security.tokens import read_tokens
from ferryman.server.tracing import find_exporters

Outcome = Literal["fine", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """what: was looked at; detail: what was found there"""

    what: str
    outcome: Outcome
    detail: str


def run_check(config: ServerConfig, json_output: bool) -> None:
    """Prints what was found. Nothing is loaded, and no address is listened on. SystemExit 1 when anything failed."""
    findings = list(check_server(config))
    failed = any(finding.outcome == "failed" for finding in findings)
    if json_output:
        print_json({"passed": not failed, "findings": [asdict(finding) for finding in findings]})
    else:
        table = make_table("outcome", "of", "")
        for finding in findings:
            table.add_row(finding.outcome, finding.what, finding.detail)
        print_table(table)
    if failed:
        raise SystemExit(FerrymanError.exit_status)


def check_server(config: ServerConfig) -> Iterator[Finding]:
    """The address, TLS, the file of versions, traces, tokens, and the version of each model that would answer."""
    exposure = describe_exposure(config)
    yield from (Finding("address", "warning", line) for line in exposure)
    if not exposure:
        yield Finding("address", "fine", config.address)
    certificate, key = config.tls_certificate, config.tls_key
    if certificate is not None and key is not None:
        yield _find("TLS", lambda: _check_tls(certificate, key, config.tls_client_ca))
    models: Mapping[str, int] = {}  # the version that answers
    names: list[str] = []
    try:
        seen = look(config.repository)
        served = {name: seen.versions.get(name, ()) for name in config.models or seen.versions}
        models = {name: seen.choices.choose(name, versions) if versions else 0 for name, versions in served.items()}
        seen.choices.check_pinned(seen.versions)
        seen.choices.check_aliases(served)
        names = [*models, *seen.choices.aliases]
    except FerrymanError as error:
        yield Finding("repository", "failed", str(error))
    for name in config.per_model:
        if models and name not in models:
            yield Finding("per_model", "warning", f"there is no model {name}{propose(name, models)}")
    exporter = config.trace_exporter
    if exporter is not None:
        yield _find("traces", lambda: _check_exporter(exporter))
    if config.tokens is not None:
        tokens = config.tokens
        yield _find("tokens", lambda: _check_tokens(tokens, names))
    for name, version in models.items():
        yield _find(f"model {name}", lambda name=name, version=version: _check_model(config, name, version))


def _find(what: str, check: Callable[[], tuple[Outcome, str]]) -> Finding:
    try:
        return Finding(what, *check())
    except FerrymanError as error:
        return Finding(what, "failed", str(error))


def _check_tls(certificate: Path, key: Path, client_ca: Path | None) -> tuple[Outcome, str]:
    tls = read_server_tls(certificate, key, client_ca)
    outcome = "warning" if tls.days_left < WARN_DAYS else "fine"
    return outcome, f"for {', '.join(tls.pair.names)}, until {tls.pair.expires:%Y-%m-%d} ({tls.days_left} days)"


def _check_exporter(exporter: str) -> tuple[Outcome, str]:
    find_exporters(exporter)
    return "fine", exporter


def _check_tokens(path: Path, names: list[str]) -> tuple[Outcome, str]:
    """names: of models and aliases, none when they are not known"""
    tokens = read_tokens(path)
    for token in tokens:
        for name in token.models:
            if names and name not in names:
                raise UsageError(
                    f"{token.name} may ask {name}, and there is no such model{propose(name, names)}"
                    + (f"; for one version alone give it an alias in {CHOICES}" if "/" in name else "")
                )
    if not tokens:
        return "warning", f"{path} holds no token: nobody gets in"
    return "fine", f"{len(tokens)}, of which {sum(token.admin for token in tokens)} of administrators"


def _check_model(config: ServerConfig, name: str, version: int) -> tuple[Outcome, str]:
    """version: 0 where there is none"""
    if not version:
        raise BundleNotFoundError(f"{config.repository} holds no bundle of it")
    bundle = Bundle.open(config.repository / name / str(version))
    target = bundle.variants(config.of(name).target)[0].target
    try:
        certificate = check_certificate(bundle, target, config.certificates)
    except CertificateError as error:
        if not config.certify:
            raise
        return "warning", f"version {version} will be proved at the start: {error}"
    return "fine", f"version {version} with {target}, certified {certificate.created}"
