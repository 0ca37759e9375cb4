"""`ferryman serve --check`: whether a server would start with these settings, and whom it would let in."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ferryman.bundle import Bundle, find_bundles
from ferryman.certificates import check_certificate
from ferryman.commands.console import make_table, print_json, print_table
from ferryman.errors import BundleNotFoundError, CertificateError, FerrymanError, UsageError, propose
from ferryman.server.app import ServerConfig
from ferryman.server.security.exposure import describe_exposure
from ferryman.server.security.tls import WARN_DAYS, read_server_tls
from ferryman.server.security.tokens import read_tokens

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
    """The address, TLS, tokens, and the newest version of each model."""
    exposure = describe_exposure(config)
    yield from (Finding("address", "warning", line) for line in exposure)
    if not exposure:
        yield Finding("address", "fine", config.address)
    certificate, key = config.tls_certificate, config.tls_key
    if certificate is not None and key is not None:
        yield _find("TLS", lambda: _check_tls(certificate, key, config.tls_client_ca))
    found: dict[str, list[int]] = {}
    try:
        found = find_bundles(config.repository)
    except FerrymanError as error:
        yield Finding("repository", "failed", str(error))
    else:
        if not found:
            yield Finding("repository", "failed", f"{config.repository} holds no bundle as NAME/VERSION")
    if config.tokens is not None:
        tokens = config.tokens
        yield _find("tokens", lambda: _check_tokens(tokens, list(found)))
    for name in config.models or found:
        yield _find(f"model {name}", lambda name=name: _check_model(config, name, found.get(name, [])))


def _find(what: str, check: Callable[[], tuple[Outcome, str]]) -> Finding:
    try:
        return Finding(what, *check())
    except FerrymanError as error:
        return Finding(what, "failed", str(error))


def _check_tls(certificate: Path, key: Path, client_ca: Path | None) -> tuple[Outcome, str]:
    tls = read_server_tls(certificate, key, client_ca)
    outcome = "warning" if tls.days_left < WARN_DAYS else "fine"
    return outcome, f"for {', '.join(tls.pair.names)}, until {tls.pair.expires:%Y-%m-%d} ({tls.days_left} days)"


def _check_tokens(path: Path, models: list[str]) -> tuple[Outcome, str]:
    tokens = read_tokens(path)
    for token in tokens:
        for model in token.models:
            if models and model not in models:
                raise UsageError(f"{token.name} may ask {model}, and there is no such model{propose(model, models)}")
    if not tokens:
        return "warning", f"{path} holds none: nobody gets in"
    return "fine", f"{len(tokens)}, of which {sum(token.admin for token in tokens)} of administrators"


def _check_model(config: ServerConfig, name: str, versions: list[int]) -> tuple[Outcome, str]:
    if not versions:
        raise BundleNotFoundError(f"{config.repository} holds no bundle of it")
    bundle = Bundle.open(config.repository / name / str(versions[-1]))
    target = bundle.variants(config.target)[0].target
    try:
        certificate = check_certificate(bundle, target, config.certificates)
    except CertificateError as error:
        if not config.certify:
            raise
        return "warning", f"version {versions[-1]} will be proved at the start: {error}"
    return "fine", f"version {versions[-1]} with {target}, certified {certificate.created}"
