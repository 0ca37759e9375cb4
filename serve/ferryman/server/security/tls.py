"""TLS: the server's certificate, whom it trusts, and both again when the files change."""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc

from ferryman.errors import UsageError
from ferryman.pem import Pair, read_authorities, read_pair
from ferryman.server.security.watched import Watched

log = logging.getLogger(__name__)
WARN_DAYS = 14


@dataclass(frozen=True)
class ServerTls:
    """pair: the server's own; authorities: whose certificates clients must show, None for none"""

    pair: Pair
    authorities: bytes | None

    @property
    def days_left(self) -> int:
        return (self.pair.expires - datetime.now(UTC)).days

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.pair.key, self.pair.chain)], self.authorities)


def read_server_tls(certificate: Path, key: Path, client_ca: Path | None) -> ServerTls:
    """Raises FileAccessError and UsageError for files that no server could use."""
    try:
        return ServerTls(
            read_pair(certificate, key, server=True), None if client_ca is None else read_authorities(client_ca)
        )
    except UsageError as error:
        raise UsageError(f"TLS: {error}") from error


def server_credentials(certificate: Path, key: Path, client_ca: Path | None) -> grpc.ServerCredentials:
    """Credentials that follow the files: each new connection gets what they hold then. Raises as `read_server_tls`."""

    def read() -> ServerTls:
        tls = read_server_tls(certificate, key, client_ca)
        if tls.days_left < WARN_DAYS:
            log.warning("the certificate in %s expires in %d days", certificate, tls.days_left)
        return tls

    paths = [path for path in (certificate, key, client_ca) if path is not None]
    watched = Watched(paths, read, f"TLS certificate {certificate}")

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        return watched.value.configuration() if watched.refresh() else None  # None: as before

    return grpc.dynamic_ssl_server_credentials(
        watched.value.configuration(),
        fetch,  # pyright: ignore[reportArgumentType]  # its stub forgets None, which grpc documents
        require_client_authentication=client_ca is not None,
    )
