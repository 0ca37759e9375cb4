"""The file of tokens, read and read again; how often a token may ask."""

import os
from pathlib import Path
from typing import Any

import pytest

from ferryman.errors import FileAccessError, OverloadedError, UsageError
from ferryman.server.security.limiter import Limiter
from ferryman.server.security.tokens import Token, TokenFile, hash_secret, make_secret, make_token, read_tokens

HASH = "5a" * 32


def test_a_line_is_read_as_it_was_written(tmp_path: Path) -> None:
    tokens = (
        make_token("plain", "fm_1"),
        make_token("camera-7", "fm_2", models=("a", "b"), in_flight=4, rate=0.5),
        make_token("ops", "fm_3", admin=True),
    )
    path = tmp_path / "tokens"
    path.write_text("# who\n\n" + "\n".join(f"  {token.line}  # note" for token in tokens), encoding="utf-8")
    assert read_tokens(path) == tokens
    assert tokens[1].line == f"camera-7 {hash_secret('fm_2')} models=a,b in_flight=4 rate=0.5"
    # FIPS 180-2's own example
    assert hash_secret("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_secrets_differ_and_travel() -> None:
    secrets = {make_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(len(secret) == 46 and secret.startswith("fm_") and secret.isascii() for secret in secrets)


WRONG = {
    "a name alone": ("camera", "line 2: expected NAME SHA256 and options; `ferryman token NAME` makes such a line"),
    "the token itself": ("camera fm_secret", "line 2: expected NAME SHA256"),
    "no digits": (f"camera {'g' * 64}", "line 2: sha256: String should match"),
    "a name with a slash": (f"a/b {HASH}", "line 2: name: String should match"),
    "an unknown option": (f"camera {HASH} model=a", "got 'model'; did you mean models?"),
    "an option twice": (f"camera {HASH} rate=1 rate=2", "each once as NAME=VALUE; got 'rate'"),
    "an option without a value": (f"camera {HASH} admin", "each once as NAME=VALUE; got 'admin'"),
    "no rate": (f"camera {HASH} rate=0", "line 2: rate: Input should be greater than 0"),
    "rate NaN": (f"camera {HASH} rate=nan", "line 2: rate: "),
    "no calls": (f"camera {HASH} in_flight=0", "line 2: in_flight: Input should be greater than or equal to 1"),
    "an administrator of some": (f"camera {HASH} admin=true models=a", "line 2: an administrator may ask every model"),
    "a name twice": (f"camera {HASH}\ncamera {'b' * 64}", "line 3: a token of this name or hash stands above"),
    "a hash twice": (f"camera {HASH}\nother {HASH.upper()}", "line 3: a token of this name or hash stands above"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_wrong_lines(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tokens").write_text(f"# tokens\n{text}\n", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_tokens(tmp_path / "tokens")
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_files_that_hold_none(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match=r"can't read the tokens in .*: No such file"):
        TokenFile(tmp_path / "nowhere")
    (tmp_path / "tokens").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="it is not UTF-8"):
        TokenFile(tmp_path / "tokens")


def test_a_file_that_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tokens"
    one, two = make_token("one", "fm_1"), make_token("two", "fm_2")
    path.write_text(one.line, encoding="utf-8")
    file = TokenFile(path)

    def known() -> list[Token | None]:
        return [file.find(secret) for secret in ("fm_1", "fm_2", "fm_3", "", "fm_1 ", one.sha256)]

    assert known() == [one, None, None, None, None, None]
    path.write_text(f"{one.line}\n{two.line}", encoding="utf-8")
    assert known() == [one, two, None, None, None, None]
    path.write_text("garbage", encoding="utf-8")
    assert known() == [one, two, None, None, None, None]
    assert len([record for record in caplog.records if "can't be used" in record.message]) == 1
    replacement = tmp_path / "new"
    replacement.write_text(two.line, encoding="utf-8")
    os.replace(replacement, path)
    assert known() == [None, two, None, None, None, None]
    assert "holds no token" not in caplog.text
    path.write_text("# none is left", encoding="utf-8")  # all are revoked
    assert known() == known() == [None] * 6
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warning.getMessage() == f"{path} holds no token: nobody gets in"
    path.write_text(two.line, encoding="utf-8")
    assert known() == [None, two, None, None, None, None]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


CASES: dict[str, tuple[float | None, list[tuple[float, float]]]] = {
    # rate, and at which second a request came and how long it has to wait
    "none": (None, [(0, 0)] * 5),
    "two at once, then one each half second": (2, [(0, 0), (0, 0), (0, 0.5), (0.25, 0.25), (0.5, 0), (0.5, 0.5)]),
    "no more than a second's is saved": (2, [(0, 0), (9, 0), (9, 0), (9, 0.5)]),
    "one each four seconds": (0.25, [(0, 0), (0, 4), (3, 1), (4, 0), (4, 4)]),
}


@pytest.mark.parametrize(("rate", "requests"), CASES.values(), ids=CASES)
def test_rates(rate: float | None, requests: list[tuple[float, float]]) -> None:
    clock = Clock()
    limiter = Limiter(rate, None, clock)
    for at, wait in requests:
        clock.now = 100 + at
        assert limiter.take() == pytest.approx(wait)


def test_who_waits_as_told_is_served() -> None:
    clock = Clock()
    limiter = Limiter(3, None, clock)
    served = 0
    for _ in range(1000):
        try:
            limiter.take_or_refuse()
            served += 1
        except OverloadedError as error:
            clock.now += (error.retry_after_s or 0) + 1e-9
    # three at once, and then one a third of a second
    assert served == pytest.approx(3 + (clock.now - 100) * 3, abs=1.01)


def test_calls_at_a_time() -> None:
    limiter = Limiter(None, 2)
    inside: list[Any] = [limiter.inside() for _ in range(2)]
    for one in inside:
        one.__enter__()
    with pytest.raises(OverloadedError, match="this token may have 2 calls at a time"), limiter.inside():
        pass
    inside[0].__exit__(None, None, None)
    with pytest.raises(KeyError), limiter.inside():
        raise KeyError
    with limiter.inside():
        pass
