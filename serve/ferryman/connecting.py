"""The options with which a command reaches a server: TLS, a certificate of one's own, a token."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ferryman.errors import FileAccessError

if TYPE_CHECKING:
    from ferryman.client import Security

Tls = Annotated[bool, typer.Option("--tls", help="Encrypted, to a server that proves itself; implied by --ca.")]
Ca = Annotated[Path | None, typer.Option(metavar="FILE", help="PEM file of the authorities to trust; of --address.")]
Certificate = Annotated[Path | None, typer.Option(metavar="FILE", help="PEM file to show a server; needs --key.")]
Key = Annotated[Path | None, typer.Option(metavar="FILE", help="PEM file of its key.")]
TokenFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The token for a server; by default the variable FERRYMAN_TOKEN.")
]
Connection = Optional["Security"]


def connects(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command, in the place of its argument `security`, the options from which a Security is made."""

    def run(
        *,
        tls: Tls = False,
        ca: Ca = None,
        certificate: Certificate = None,
        key: Key = None,
        token_file: TokenFile = None,
        **others: Any,
    ) -> None:
        command(**others, security=_read_security(others["address"], tls, ca, certificate, key, token_file))

    added = [one for one in inspect.signature(run).parameters.values() if one.kind is one.KEYWORD_ONLY]
    own = inspect.signature(command).parameters.values()
    # keywords alone, as Typer calls it, so that what has no default may follow what has one
    parameters = [
        one.replace(kind=one.KEYWORD_ONLY) for each in own for one in (added if each.name == "security" else [each])
    ]
    described: Any = run
    described.__name__, described.__doc__ = command.__name__, command.__doc__
    described.__signature__ = inspect.Signature(parameters)
    described.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _read_security(
    address: str | None, tls: bool, ca: Path | None, certificate: Path | None, key: Path | None, token_file: Path | None
) -> "Security | None":
    """None when nothing was given. Raises FileAccessError, and what Security raises."""
    token = None
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise FileAccessError(f"can't read a token in {token_file}: {error}") from error
    elif address is not None:
        token = os.environ.get("FERRYMAN_TOKEN") or None
    if not (tls or ca or certificate or key or token is not None):
        return None
    from ferryman.client import Security

    return Security(tls, ca, certificate, key, token)
