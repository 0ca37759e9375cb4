"""The file of bearer tokens: one a line, as its SHA-256.

    # name     SHA-256   what it may
    camera-7   5a1f...   models=detr-digits in_flight=4 rate=20
    ops        c03b...   admin=true

A plain hash is right here, and a slow or salted one is not: tokens are 256 random bits, which nobody can guess however
fast they hash, and which no table holds; a slow hash would cost every call what it costs a thief. Words that people
think of must never stand here.
"""

import hashlib
import logging
import secrets
from collections.abc import Callable, Collection
from hmac import compare_digest
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from ferryman.errors import FileAccessError, UsageError, propose
from ferryman.server.security.watched import Watched
from ferryman.specs import Facts

log = logging.getLogger(__name__)
PREFIX = "fm_"  # by which scanners for leaked secrets can know one
_BYTES = 32


class Token(Facts):
    """name: in logs and messages; sha256: of the secret, in hexadecimal digits

    models: that it may ask, all when empty; in_flight: calls at a time; rate: requests a second
    admin: may call what is for administrators
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    models: tuple[str, ...] = ()
    in_flight: Annotated[int, Field(ge=1)] | None = None
    rate: Annotated[float, Field(gt=0)] | None = None
    admin: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.admin and self.models:
            raise ValueError("an administrator may ask every model: leave out models or admin")
        return self

    @property
    def line(self) -> str:
        """Its line in the file."""
        options = {
            "models": ",".join(self.models),
            "in_flight": "" if self.in_flight is None else str(self.in_flight),
            "rate": "" if self.rate is None else f"{self.rate:g}",
            "admin": "true" if self.admin else "",
        }
        return " ".join((self.name, self.sha256, *(f"{key}={text}" for key, text in options.items() if text)))


_OPTIONS = [name for name in Token.model_fields if name not in {"name", "sha256"}]


def make_secret() -> str:
    """A new token, as its bearer sends it: `fm_` and 43 characters that are safe in headers and shells."""
    return PREFIX + secrets.token_urlsafe(_BYTES)


def hash_secret(secret: str) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def make_token(name: str, secret: str, **options: object) -> Token:
    """options: fields of Token. Raises UsageError for the first that is wrong."""
    return _token_from_fields({"name": name, "sha256": hash_secret(secret), **options}, "")


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Raises FileAccessError, and UsageError for the first line that is wrong; no word of a line is repeated that
    could be a secret.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileAccessError(f"can't read the tokens in {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} holds no tokens: it is not UTF-8") from error
    tokens: list[Token] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"{path} line {number}: "
        token = _token_from_fields(_fields_from_words(words, where), where)
        if any(token.name == other.name or token.sha256 == other.sha256 for other in tokens):
            raise UsageError(f"{where}a token of this name or hash stands above")
        tokens.append(token)
    return tuple(tokens)


def _fields_from_words(words: list[str], where: str) -> dict[str, object]:
    name, *rest = words
    if not rest or len(rest[0]) != 64:
        raise UsageError(f"{where}expected NAME SHA256 and options; `ferryman token NAME` makes such a line")
    fields: dict[str, object] = {"name": name, "sha256": rest[0].lower()}
    for word in rest[1:]:
        key, equals, text = word.partition("=")
        if not equals or key not in _OPTIONS or key in fields:
            raise UsageError(
                f"{where}options are {', '.join(_OPTIONS)}, each once as NAME=VALUE; got {key[:20]!r}"
                f"{propose(key, _OPTIONS)}"
            )
        fields[key] = [model for model in text.split(",") if model] if key == "models" else text
    return fields


def _token_from_fields(fields: dict[str, object], where: str) -> Token:
    try:
        return Token.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}{f'{field}: ' if field else ''}{message}") from error


class TokenFile:
    """The tokens of a file, as it is now. Raises what `read_tokens` raises; later changes that are wrong are logged,
    and that there are no tokens, each time: a file from which all were taken away is as good as any other.
    """

    def __init__(self, path: Path, changed: Callable[[Collection[str]], None] = lambda names: None) -> None:
        """changed: is told the names of the tokens that there are now"""
        self._changed = changed

        def read() -> list[tuple[bytes, Token]]:
            tokens = read_tokens(path)
            if not tokens:
                log.warning("%s holds no token: nobody gets in", path)
            return [(bytes.fromhex(token.sha256), token) for token in tokens]

        self._watched = Watched((path,), read, f"file of tokens {path}")

    def now(self, token: Token) -> Token | None:
        """As its line says now, None when it has been taken out of the file."""
        self._refresh()
        return next(
            (one for _, one in self._watched.value if (one.name, one.sha256) == (token.name, token.sha256)), None
        )

    def _refresh(self) -> None:
        if self._watched.refresh():
            self._changed({token.name for _, token in self._watched.value})

    def find(self, secret: str) -> Token | None:
        """The token of a secret. Takes as long for every secret: all hashes are compared, each in constant time."""
        self._refresh()
        given = hashlib.sha256(secret.encode()).digest()
        found = None
        for digest, token in self._watched.value:
            if compare_digest(digest, given):
                found = token
        return found
