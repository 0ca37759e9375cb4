"""How a client proves itself to a server, and a server to it."""

from dataclasses import dataclass, field
from pathlib import Path

import grpc

from ferryman.addresses import is_loopback
from ferryman.errors import UsageError
from ferryman.pem import read_authorities, read_pair


@dataclass(frozen=True)
class Security:
    """What travels with a client's calls, and what they travel in. Raises UsageError where it contradicts itself.

    tls: encrypted, to a server whose certificate is checked; implied by the files
    ca: PEM file of the certificates to trust, by default those that gRPC brings
    certificate, key: PEM files of the client's own, for servers that ask for one
    token: bearer token; plaintext_token: send it unencrypted to other machines too
    """

    tls: bool = False
    ca: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None
    token: str | None = field(default=None, repr=False)
    plaintext_token: bool = False

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise UsageError("a client's certificate and key belong together; one of them was given")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise UsageError("the token is empty or has characters that no header can carry")

    @property
    def encrypted(self) -> bool:
        return self.tls or self.ca is not None or self.certificate is not None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token.strip()}"),)

    def credentials(self, address: str) -> grpc.ChannelCredentials | None:
        """For a channel to HOST:PORT, None for a plain one.

        Raises FileAccessError, and UsageError for files that can't be used and a token that would leave unencrypted.
        """
        if not self.encrypted:
            if (
                self.token is not None
                and not self.plaintext_token
                and not is_loopback(address.removeprefix("dns:///").rpartition(":")[0].strip("[]"))
            ):
                raise UsageError(
                    f"the token would travel to {address} unencrypted, for all on the way to read; use TLS (tls=True, "
                    "--tls), or allow it with plaintext_token=True"
                )
            return None
        own = None
        if self.certificate is not None and self.key is not None:
            own = read_pair(Path(self.certificate), Path(self.key), server=False)
        return grpc.ssl_channel_credentials(
            None if self.ca is None else read_authorities(Path(self.ca)), own and own.key, own and own.chain
        )
