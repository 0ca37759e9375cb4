"""What a server tells the supervisor that started it, over a socket as systemd's."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ferryman.client import Client
from ferryman.server.supervised import Supervisor

from ..toy import make_pictures
from .process import ServerProcess


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(tmp_path / "notify"))
        line.settimeout(240)
        yield line


def _read(line: socket.socket) -> list[str]:
    """What lies there now."""
    found: list[str] = []
    with line.dup() as now:
        now.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(now.recv(4096).decode())
    return found


def _until(line: socket.socket, start: str) -> list[str]:
    """All up to the first message that starts so."""
    found = [line.recv(4096).decode()]
    while not found[-1].startswith(start):
        found.append(line.recv(4096).decode())
    return found


@pytest.mark.parametrize("abstract", [False, True], ids=["in a folder", "abstract"])
def test_a_life(
    toy_repository: Path, tmp_path: Path, heard: socket.socket, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    with contextlib.ExitStack() as stack:
        address = str(tmp_path / "notify")
        if abstract:
            address = f"@{tmp_path}/notify"
            heard = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            heard.bind(address.replace("@", "\0", 1))
            heard.settimeout(240)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", "300000")
        server = stack.enter_context(ServerProcess({"repository": str(toy_repository), "threads": 1}))
        *before, ready = _until(heard, "READY=1")
        assert set(before) <= {"WATCHDOG=1"}  # from the first moment: loading holds nothing up
        assert ready == f"READY=1\nSTATUS=serving {', '.join(server.models)} on {server.address}"
        with Client(server.address, timeout=240) as client:
            assert client.classify(make_pictures(1), model="toy-classifier").results
        _read(heard)
        assert [heard.recv(4096), heard.recv(4096)] == [b"WATCHDOG=1"] * 2
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        *pings, stopping = _until(heard, "STOPPING=1")
        assert set(pings) <= {"WATCHDOG=1"}
        assert stopping.startswith("STOPPING=1\nSTATUS=")
        assert not [one for one in _read(heard) if one != "WATCHDOG=1"]


async def test_a_loop_that_hangs_does_not_ping(tmp_path: Path, heard: socket.socket) -> None:
    supervisor = Supervisor({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000"})
    assert supervisor.watchdog_s == 0.03
    feeding = asyncio.create_task(supervisor.feed())
    await asyncio.to_thread(_until, heard, "WATCHDOG=1")
    _read(heard)
    time.sleep(0.3)  # ten times what a ping takes
    assert _read(heard) == []
    await asyncio.to_thread(_until, heard, "WATCHDOG=1")
    feeding.cancel()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "2000000"}, 2.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}, 2.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, None),  # meant for its parent
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_when_a_watchdog_waits(environment: dict[str, str], expected: float | None) -> None:
    assert Supervisor({"NOTIFY_SOCKET": "/notify", **environment}).watchdog_s == expected
    assert Supervisor(environment).watchdog_s is None


async def test_nobody_listens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Said once, and the server goes on; without a supervisor nothing is said."""
    supervisor = Supervisor({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    supervisor.ready("serving")
    supervisor.stopping()
    assert [record.message for record in caplog.records] == [
        "NOTIFY_SOCKET can't be told READY=1: [Errno 2] No such file or directory"
    ]
    caplog.clear()
    Supervisor({}).ready("serving")
    await Supervisor({}).feed()
    assert not caplog.records
