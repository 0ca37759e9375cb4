"""TLS between a real server and clients: whom each trusts, files that can't be used, and files that change."""

import asyncio
import logging
import os
import re
import ssl
from pathlib import Path
from typing import Any

import pytest

from ferryman.client import AsyncClient, Client, RetryPolicy, Security
from ferryman.errors import FerrymanError, FileAccessError, UnavailableError, UsageError
from ferryman.pem import read_authorities, read_pair
from ferryman.server.app import ServerConfig, VisionServer

from ...toy import make_pictures
from ..inside import running
from .certificates import LONG_AGO, Authority, Pem

ONCE = RetryPolicy(attempts=1)
PICTURES = make_pictures(1)


def settings_of(pem: Pem, client_ca: Path | None = None) -> dict[str, Any]:
    return {"tls_certificate": pem.certificate, "tls_key": pem.key, "tls_client_ca": client_ca}


async def classify(address: str, security: Security | None) -> int:
    """How many answers came."""
    async with AsyncClient(address, retry=ONCE, security=security) as client:
        return len((await client.classify(PICTURES, model="toy-classifier")).results)


async def serial_number(address: str, authority: Authority) -> str:
    """Of the certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=authority.ca)
    context.set_alpn_protocols(["h2"])
    host, port = address.split(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    serial = writer.get_extra_info("peercert")["serialNumber"]
    writer.close()
    return serial


async def test_only_who_is_trusted_talks(toy_repository: Path, tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    async with running(toy_repository, **settings_of(authority.issue("server"))) as server:
        assert await classify(server.address, Security(ca=authority.ca)) == 1
        for security in (None, Security(tls=True), Security(ca=stranger.ca)):
            with pytest.raises(UnavailableError):
                await classify(server.address, security)

        def ask() -> int:
            with Client(server.address, retry=ONCE, security=Security(ca=str(authority.ca))) as client:
                return len(client.classify(PICTURES, model="toy-classifier").results)

        assert await asyncio.to_thread(ask) == 1


def listening() -> set[int]:
    """Ports of 127.0.0.1 and of everything that this process listens on."""
    mine = {os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _is_link(name)}
    lines = [
        line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/self/net/{kind}").read_text().splitlines()
    ]
    return {int(line[1].rpartition(":")[2], 16) for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in mine}


def _is_link(name: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{name}")  # the folder's own is gone


async def test_a_server_listens_where_it_says_and_nowhere_else(toy_repository: Path, tmp_path: Path) -> None:
    before, pem = listening(), Authority(tmp_path).issue("server")
    async with running(toy_repository, admin_address="127.0.0.1:0", **settings_of(pem)) as server:
        told = {int(address.rpartition(":")[2]) for address in (server.address, str(server.admin_address))}
        assert listening() - before == told


async def test_clients_show_their_certificate(toy_repository: Path, tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    mine, theirs = authority.issue("mine"), stranger.issue("theirs")
    async with running(toy_repository, **settings_of(authority.issue("server"), authority.ca)) as server:
        assert await classify(server.address, Security(True, authority.ca, mine.certificate, mine.key)) == 1
        for pem in (None, theirs):
            shown: dict[str, Any] = {} if pem is None else {"certificate": pem.certificate, "key": pem.key}
            with pytest.raises(UnavailableError):
                await classify(server.address, Security(ca=authority.ca, **shown))


async def test_new_files_are_used_and_bad_ones_are_not(
    toy_repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path)
    pem = authority.issue("server")
    caplog.set_level(logging.INFO, "ferryman")
    security = Security(ca=authority.ca)
    async with (
        running(toy_repository, **settings_of(pem)) as server,
        AsyncClient(server.address, retry=ONCE, security=security) as old,
    ):
        await old.classify(PICTURES, model="toy-classifier")
        first = await serial_number(server.address, authority)
        good = pem.key.read_bytes()
        os.truncate(pem.key, 100)
        for _ in range(3):
            assert await serial_number(server.address, authority) == first
        (complaint,) = (record for record in caplog.records if "can't be used" in record.message)
        assert complaint.levelname == "ERROR"
        assert f"{pem.key} holds no private key in PEM" in complaint.message
        pem.key.write_bytes(good)
        authority.issue("server")  # another key and another certificate
        second = await serial_number(server.address, authority)
        assert second != first
        authority.issue("server", **LONG_AGO)
        assert await serial_number(server.address, authority) == second
        assert "certificate has expired" in caplog.text
        assert await classify(server.address, security) == 1
        assert len((await old.classify(PICTURES, model="toy-classifier")).results) == 1


async def test_another_authority_for_clients(toy_repository: Path, tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.ca.read_bytes())
    mine, theirs = authority.issue("mine"), other.issue("theirs")
    async with running(toy_repository, **settings_of(authority.issue("server"), trusted)) as server:
        before = Security(ca=authority.ca, certificate=mine.certificate, key=mine.key)
        after = Security(ca=authority.ca, certificate=theirs.certificate, key=theirs.key)
        assert await classify(server.address, before) == 1
        trusted.write_bytes(other.ca.read_bytes())
        assert await classify(server.address, after) == 1
        with pytest.raises(UnavailableError):
            await classify(server.address, before)


def broken(folder: Path) -> dict[str, tuple[Pem, str]]:
    """Pairs that no server could use, and what is said of each."""
    authority = Authority(folder)
    good, expired = authority.issue("good"), authority.issue("expired", **LONG_AGO)
    other = authority.issue("other")
    for name, data in {"garbled": b"\x00\xff" * 40, "empty": b"", "text": b"hello"}.items():
        (folder / name).write_bytes(data)
    locked = folder / "locked.key"
    locked.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n", "ascii")
    return {
        "no file": (Pem(folder / "none.pem", good.key), "can't read .*none.pem: No such file or directory"),
        "a folder": (Pem(good.certificate, folder), "can't read .*: Is a directory"),
        "bytes": (Pem(folder / "garbled", good.key), "garbled holds no certificate in PEM"),
        "nothing": (Pem(folder / "empty", good.key), "empty holds no certificate in PEM"),
        "a key for a certificate": (Pem(good.key, good.key), "good.key holds no certificate in PEM"),
        "text for a key": (Pem(good.certificate, folder / "text"), "text holds no private key in PEM"),
        "another's key": (Pem(good.certificate, other.key), "other.key is not that of the certificate in .*good.pem"),
        "out of date": (expired, "expired.pem can't be used: certificate has expired"),
        "a password": (Pem(good.certificate, locked), "locked.key has a password; take it off with: openssl pkey"),
    }


def test_files_that_can_not_be_used(tmp_path: Path, toy_repository: Path) -> None:
    for name, (pem, message) in broken(tmp_path).items():
        for server in (True, False):
            with pytest.raises((UsageError, FileAccessError), match=message):
                read_pair(pem.certificate, pem.key, server=server)
        config = ServerConfig(repository=toy_repository, tls_certificate=pem.certificate, tls_key=pem.key)
        with pytest.raises(FerrymanError, match=message):
            VisionServer(config)
        with pytest.raises(FerrymanError, match=message):
            Client("localhost:1", security=Security(certificate=pem.certificate, key=pem.key))
        assert name


def test_a_pair_tells_of_itself(tmp_path: Path) -> None:
    pem = Authority(tmp_path).issue("good")
    pair = read_pair(pem.certificate, pem.key, server=True)
    assert pair.names == ("localhost", "127.0.0.1")
    assert pair.expires.year == 3000
    assert "PRIVATE" not in repr(pair)
    with pytest.raises(UsageError, match=r"good\.key holds no certificate"):
        read_authorities(pem.key)


def test_what_a_client_refuses() -> None:
    with pytest.raises(UsageError, match="belong together"):
        Security(certificate="c.pem")
    for token in ("", " ", "two\nlines", "ümlaut"):
        with pytest.raises(UsageError, match="no header can carry"):
            Security(token=token)
    secret = Security(token="fm_secret")
    assert "secret" not in repr(secret)
    for address in ("vision.example:8001", "192.0.2.7:8001", "[2001:db8::1]:8001"):
        with pytest.raises(UsageError, match=f"the token would travel to {re.escape(address)} unencrypted"):
            Client(address, security=secret)
    for address, security in (
        ("127.0.0.1:1", secret),
        ("[::1]:1", secret),
        ("localhost:1", secret),
        ("192.0.2.7:1", Security(token="fm_secret", plaintext_token=True)),
        ("192.0.2.7:1", Security(token="fm_secret", tls=True)),
    ):
        Client(address, security=security).close()
