"""What settings leave open, and which of them contradict each other."""

from pathlib import Path
from typing import Protocol

from ferryman.addresses import is_loopback, split_address


class SecuritySettings(Protocol):
    """Those of ServerConfig that matter here, which says what they are."""

    @property
    def address(self) -> str: ...
    @property
    def metrics_address(self) -> str | None: ...
    @property
    def admin_address(self) -> str | None: ...
    @property
    def tls_certificate(self) -> Path | None: ...
    @property
    def tls_key(self) -> Path | None: ...
    @property
    def tls_client_ca(self) -> Path | None: ...
    @property
    def tokens(self) -> Path | None: ...
    @property
    def allow_plaintext_tokens(self) -> bool: ...


def check_security(settings: SecuritySettings) -> None:
    """Raises ValueError for settings that don't belong together."""
    host, _ = split_address(settings.address)
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        raise ValueError("tls_certificate and tls_key belong together; one of them was given")
    if settings.tls_client_ca is not None and settings.tls_certificate is None:
        raise ValueError("tls_client_ca needs tls_certificate and tls_key")
    encrypted = settings.tls_certificate is not None or is_loopback(host)
    if settings.tokens is not None and not encrypted and not settings.allow_plaintext_tokens:
        raise ValueError(
            f"tokens would travel to {settings.address} unencrypted, for all on the way to read; give tls_certificate "
            "and tls_key, or allow_plaintext_tokens where something in front of the server encrypts"
        )
    if settings.admin_address is not None and not is_loopback(split_address(settings.admin_address)[0]):
        raise ValueError(
            f"admin_address {settings.admin_address} must be of this machine alone, such as 127.0.0.1:8002: it asks "
            "for no token"
        )


def describe_exposure(settings: SecuritySettings) -> list[str]:
    """A line for each thing that others can do at the addresses; none where only this machine reaches them."""
    lines: list[str] = []
    if settings.metrics_address is not None and not is_loopback(split_address(settings.metrics_address)[0]):
        lines.append(
            f"{settings.metrics_address} tells other machines the models' names and how they are used, without TLS or "
            "a token; let a network policy keep it to the monitoring"
        )
    if is_loopback(split_address(settings.address)[0]):
        return lines
    if settings.tls_certificate is None:
        what = "pictures and answers" if settings.tokens is None else "pictures, answers and tokens"
        lines.append(
            f"{settings.address} is open to other machines without TLS: {what} can be read and changed on the way; "
            "give tls_certificate and tls_key"
        )
    if settings.tokens is None and settings.tls_client_ca is None:
        lines.append(
            f"{settings.address} is open to other machines, and whoever reaches it may ask every model; give tokens "
            "or tls_client_ca"
        )
    return lines
