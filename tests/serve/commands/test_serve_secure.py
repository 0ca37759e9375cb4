"""`ferryman serve` with TLS and tokens, `--check`, `--schema`, and `ferryman token`, with real processes."""

import contextlib
import json
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from ferryman.client import Client, Security
from ferryman.errors import UnauthenticatedError
from ferryman.server.app import ServerConfig
from ferryman.server.security.tokens import make_token, read_tokens

from ..server.process import free_address
from ..server.security.certificates import LONG_AGO, Authority
from ..toy import flip_a_byte
from .outcome import Cli, finish, spawn


def ready(*arguments: object) -> tuple[Any, str]:
    """A server that is ready, and its address."""
    process = spawn("serve", *arguments, "--threads", 1, "--json")
    assert process.stdout is not None
    lines: list[str] = []
    while "}" not in (line := process.stdout.readline()):
        assert line, process.communicate()[1]
        lines.append(line)
    return process, json.loads("".join([*lines, line]))["address"]


def test_a_server_of_which_everything_is_asked_for(
    cli: Cli, toy_repository: Path, pictures: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Certificates of both sides, a token of one model: from the command that makes it to the one that uses it."""
    authority = Authority(tmp_path)
    server, mine = authority.issue("server"), authority.issue("mine")
    made = cli("token", "camera-7", "--model", "toy-classifier", "--rate", 50, "--json").document
    (tmp_path / "tokens").write_text(made["line"], encoding="utf-8")
    (tmp_path / "token").write_text(f"{made['token']}\n", encoding="utf-8")
    admin = free_address()
    tls = ("--tls-certificate", server.certificate, "--tls-key", server.key, "--tls-client-ca", authority.ca)
    arguments = ("--tokens", tmp_path / "tokens", "--admin-address", admin, "--address", "0.0.0.0:0")
    process, address = ready(toy_repository, *tls, *arguments)
    address = address.replace("0.0.0.0", "localhost")
    ask = ("classify", pictures["red.png"], "--address", address, "--model", "toy-classifier", "--json")
    shown = ("--certificate", mine.certificate, "--key", mine.key)
    try:
        answered = cli(*ask, "--ca", authority.ca, *shown, "--token-file", tmp_path / "token")
        assert answered.document[0]["predictions"][0]["label"] == "red"
        assert cli(*ask, "--ca", authority.ca, *shown).status == 1
        assert "send one token" in cli(*ask, "--ca", authority.ca, *shown).stderr
        monkeypatch.setenv("FERRYMAN_TOKEN", made["token"])
        assert cli(*ask, "--ca", authority.ca, *shown).status == 0
        other = cli("detect", *ask[1:-2], "toy-detector", "--ca", authority.ca, *shown)
        assert (other.status, "this token may ask toy-classifier alone" in other.stderr) == (1, True)
        with Client(admin) as client:
            assert client.model_info("toy-detector").task == "detection"
    finally:
        process.send_signal(signal.SIGTERM)
        log = finish(process).stderr
    assert "open to other machines" not in log
    assert made["token"] not in log
    assert f"everything is allowed at admin_address={admin}" in log


def test_strangers_at_the_tls_port_do_not_fill_the_log(toy_repository: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pem = authority.issue("server")
    tls = ("--tls-certificate", pem.certificate, "--tls-key", pem.key, "--address", "127.0.0.1:0")
    process, address = ready(toy_repository, *tls)
    host, port = address.split(":")
    for request in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x02\x01\x00", bytes(range(256))) * 5:
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(4096):  # until the server hangs up
                    pass
    with Client(f"localhost:{port}", security=Security(ca=authority.ca)) as client:
        assert client.is_ready()
    process.send_signal(signal.SIGTERM)
    lines = finish(process).stderr.splitlines()
    assert all("ferryman" in line or line == "stopped" for line in lines), lines


def test_it_says_what_is_open(toy_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERRYMAN_SERVE_ADDRESS", "0.0.0.0:0")
    process, address = ready(toy_repository)
    with Client(address.replace("0.0.0.0", "127.0.0.1"), security=Security(tls=False)) as client:
        assert client.is_ready()
    process.send_signal(signal.SIGTERM)
    lines = [line for line in finish(process).stderr.splitlines() if "WARNING" in line]
    assert len(lines) == 2
    assert "0.0.0.0:0 is open to other machines without TLS: pictures and answers can be read" in lines[0]
    assert "whoever reaches it may ask every model; give tokens or tls_client_ca" in lines[1]


def test_a_file_of_tokens_that_holds_none(cli: Cli, toy_repository: Path, tmp_path: Path) -> None:
    """The server runs, as one whose tokens were all taken away, and says that nobody gets in."""
    tokens = tmp_path / "tokens"
    tokens.write_text("# camera-7, from Monday on\n", encoding="utf-8")
    message = f"{tokens} holds no token: nobody gets in"
    checked = cli("serve", toy_repository, "--tokens", tokens, "--check", "--json")
    assert checked.status == 0
    assert {"what": "tokens", "outcome": "warning", "detail": message} in checked.document["findings"]
    process, address = ready(toy_repository, "--tokens", tokens, "--address", "127.0.0.1:0")
    with pytest.raises(UnauthenticatedError), Client(address, security=Security(token="fm_any")) as client:
        client.model_info("toy-detector")
    process.send_signal(signal.SIGTERM)
    assert [line for line in finish(process).stderr.splitlines() if "WARNING" in line and line.endswith(message)]


def test_check(cli: Cli, copy: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pem = authority.issue("server")
    tokens = tmp_path / "tokens"
    tokens.write_text(cli("token", "a", "--model", "toy-detector", "--json").document["line"], encoding="utf-8")
    settings = tmp_path / "serving.toml"
    settings.write_text(
        f"address = '[::]:1'\ntokens = '{tokens}'\ntls_certificate = '{pem.certificate}'\ntls_key = '{pem.key}'\n",
        encoding="utf-8",
    )
    arguments = ("serve", copy, "--config", settings, "--check", "--json")

    def findings() -> dict[str, tuple[str, str]]:
        outcome = cli(*arguments)
        document = outcome.document
        assert document["passed"] == (outcome.status == 0)
        return {one["what"]: (one["outcome"], one["detail"]) for one in document["findings"]}

    good = findings()
    assert {what: outcome for what, (outcome, _) in good.items()} == dict.fromkeys(
        ("address", "TLS", "tokens", "model toy-classifier", "model toy-detector", "model toy-embedder"), "fine"
    )
    assert re.fullmatch(r"for localhost, 127\.0\.0\.1, until 3000-01-01 \(\d+ days\)", good["TLS"][1])
    text = cli(*arguments[:-1])
    assert (text.status, text.stdout.count("fine")) == (0, 6)

    flip_a_byte(copy / "toy-classifier" / "1" / "model.onnx")
    (copy / "toy-embedder" / "1" / "certificates" / "onnxruntime-cpu-fp32.json").unlink()
    tokens.write_text(tokens.read_text(encoding="utf-8").replace("toy-detector", "toy-detectro"), encoding="utf-8")
    authority.issue("server", **LONG_AGO)
    bad = findings()
    expected = {
        "address": ("fine", ""),
        "TLS": ("failed", "certificate has expired"),
        "tokens": ("failed", "a may ask toy-detectro, and there is no such model; did you mean toy-detector?"),
        "model toy-classifier": ("failed", "model.onnx is not the file that was exported"),
        "model toy-detector": ("fine", "version 1 with onnxruntime-cpu-fp32, certified 20"),
        "model toy-embedder": ("failed", "has no valid certificate for this device: there is none; prove it with"),
    }
    assert list(bad) == list(expected)
    for what, (outcome, detail) in expected.items():
        assert bad[what][0] == outcome, what
        assert detail in bad[what][1]
    assert cli(*arguments[:-1]).status == 1


def test_check_of_versions_that_are_chosen(cli: Cli, copy: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"

    def findings(choices: str, model: str) -> dict[str, tuple[str, str]]:
        (copy / "versions.toml").write_text(choices, encoding="utf-8")
        tokens.write_text(make_token("a", "fm_a", models=(model,)).line, encoding="utf-8")
        document = cli("serve", copy, "--tokens", tokens, "--check", "--json").document
        return {one["what"]: (one["outcome"], one["detail"]) for one in document["findings"]}

    champion = '[aliases]\nchampion = "toy-detector/1"\n'
    good = findings(champion, "champion")
    assert {outcome for outcome, _ in good.values()} == {"fine"}
    assert findings(champion, "toy-detector/1")["tokens"] == (
        "failed", "a may ask toy-detector/1, and there is no such model; did you mean toy-detector?; for one version "
        "alone give it an alias in versions.toml",
    )  # fmt: skip
    for choices, message in (
        ("[serv]", "versions.toml: serv: Extra inputs are not permitted"),
        ("[serve]\ntoy-detector = 7", "versions.toml: toy-detector has no version 7 to serve; it has 1"),
        (champion.replace("/1", "/7"), "versions.toml: champion stands for toy-detector/7, which is not there"),
    ):
        outcome, detail = findings(choices, "champion")["repository"]
        assert (outcome, message in detail) == ("failed", True), detail


CHECKS = {
    "an unknown setting": ("max_bach = 1", 2, "there is no setting max_bach; did you mean max_batch?"),
    "settings that contradict each other": ("tls_key = 'k'", 2, "tls_certificate and tls_key belong together"),
    "no TOML": ("max_batch", 2, "is not TOML"),
    "one port for two": (
        "metrics_address = '127.0.0.1:8001'",
        2,
        "8001, which is address too",
    ),
}


@pytest.mark.parametrize(("settings", "status", "message"), CHECKS.values(), ids=CHECKS)
def test_check_of_wrong_settings(
    cli: Cli, toy_repository: Path, tmp_path: Path, settings: str, status: int, message: str
) -> None:
    (tmp_path / "serving.toml").write_text(settings, encoding="utf-8")
    outcome = cli("serve", toy_repository, "--config", tmp_path / "serving.toml", "--check")
    assert (outcome.status, message in outcome.complaint) == (status, True)


def test_check_of_no_exporter(cli: Cli, toy_repository: Path, tmp_path: Path) -> None:
    (tmp_path / "serving.toml").write_text("trace_exporter = 'nope'", encoding="utf-8")
    outcome = cli("serve", toy_repository, "--config", tmp_path / "serving.toml", "--check", "--json")
    found = {one["what"]: one["detail"] for one in outcome.document["findings"] if one["outcome"] == "failed"}
    assert "nope is not installed" in found["traces"]


def test_check_of_no_repository(cli: Cli, tmp_path: Path) -> None:
    for place, message in ((tmp_path, "holds no bundle as NAME/VERSION"), (tmp_path / "x", "there is no model repos")):
        outcome = cli("serve", place, "--check")
        assert (outcome.status, message in outcome.stdout) == (1, True)
    assert cli("serve", "--check").status == 2


def test_the_schema(cli: Cli) -> None:
    schema = cli("serve", "--schema").document
    assert set(schema["properties"]) == set(ServerConfig.model_fields)


def test_a_new_token(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("token", "ops", "--admin", "--in-flight", 3)
    secret, line = outcome.stdout.split("\n")[:2]
    (tmp_path / "tokens").write_text(line, encoding="utf-8")
    (token,) = read_tokens(tmp_path / "tokens")
    assert (token.name, token.admin, token.in_flight, token.models) == ("ops", True, 3, ())
    assert secret not in line
    for arguments, message in (
        (("a b",), "name: "),
        (("ops", "--admin", "--model", "x"), "an administrator may ask every model"),
        (("ops", "--rate", "0"), "rate: "),
    ):
        wrong = cli("token", *arguments)
        assert (wrong.status, message in wrong.complaint) == (2, True)


def test_security_belongs_to_an_address(cli: Cli, pictures: dict[str, Path], toy_repository: Path) -> None:
    local = ("classify", pictures["red.png"], "--bundle", toy_repository / "toy-classifier")
    assert "belong to --address" in cli(*local, "--tls").complaint
    outcome = cli(
        "classify", pictures["red.png"], "--address", "vision.example:1", "--model", "x", "--token-file", "no"
    )
    assert (outcome.status, "can't read a token in no" in outcome.complaint) == (1, True)
