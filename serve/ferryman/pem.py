"""Certificates and keys for TLS in PEM files, checked before gRPC gets them, which only says that it failed."""

import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ferryman.errors import FileAccessError, UsageError


@dataclass(frozen=True)
class Pair:
    """A certificate, with the intermediate ones after it, and its key.

    expires: of the certificate; names: hosts and addresses that it is for
    """

    chain: bytes
    key: bytes = field(repr=False)
    expires: datetime
    names: tuple[str, ...]


def read_authorities(path: Path) -> bytes:
    """Certificates to trust. Raises FileAccessError and UsageError."""
    data = _read(path)
    _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), path)
    return data


def read_pair(certificate: Path, key: Path, *, server: bool) -> Pair:
    """A pair that proved itself in a handshake in memory. server: what it proves, else a client

    Raises FileAccessError, and UsageError for files that are garbled, don't belong together, or are out of date.
    """
    chain, secret = _read(certificate), _read(key)
    if b"ENCRYPTED" in secret:
        raise UsageError(f"the key in {key} has a password; take it off with: openssl pkey -in {key} -out FILE")
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_side.check_hostname = False
    own, other = (server_side, client_side) if server else (client_side, server_side)
    other.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # whom the real other side trusts is its own affair
    _trust(other, certificate)
    own.verify_mode, other.verify_mode = ssl.CERT_NONE, ssl.CERT_REQUIRED
    try:
        for side in (own, server_side):  # a server needs one, whoever proves himself
            side.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise UsageError(f"the key in {key} is not that of the certificate in {certificate}") from error
        raise UsageError(f"{key} holds no private key in PEM") from error
    try:
        facts = _shake_hands(server_side, client_side, server)
    except ssl.SSLCertVerificationError as error:
        raise UsageError(f"the certificate in {certificate} can't be used: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise UsageError(f"the certificate in {certificate} can't be used: {error.reason}") from error
    if (_read(certificate), _read(key)) != (chain, secret):
        raise UsageError(f"{certificate} or {key} changed while they were read")
    expires = datetime.fromtimestamp(ssl.cert_time_to_seconds(facts["notAfter"]), UTC)
    return Pair(chain, secret, expires, tuple(name for _, name in facts.get("subjectAltName", ())))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileAccessError(f"can't read {path}: {error.strerror}") from error


def _trust(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise UsageError(f"{path} holds no certificate in PEM") from error


def _shake_hands(server_side: ssl.SSLContext, client_side: ssl.SSLContext, of_server: bool) -> dict[str, Any]:
    """What the certificate of one of the two says. Raises ssl.SSLError when the other refuses it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    client = client_side.wrap_bio(to_client, to_server)
    for _ in range(4):  # flights there and back; TLS 1.3 needs three
        for side in (client, server):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return dict((client if of_server else server).getpeercert() or {})
