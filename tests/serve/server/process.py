"""A server in a process of its own, and the gate at which its batches can be held."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

MAIN = Path(__file__).with_name("main.py")


class ServerProcess:
    """Starts a server and waits until it is ready; it is killed when the block ends.

    settings: of ServerConfig; the address is a free port unless it is given
    gate: a folder; each batch leaves a file `batch-N` in it, and waits until there is a file `open`
    """

    def __init__(self, settings: Mapping[str, object], gate: Path | None = None) -> None:
        facts = {"address": "127.0.0.1:0"} | dict(settings)
        command = [sys.executable, str(MAIN), json.dumps(facts), *([str(gate)] if gate else [])]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.kill()
            raise RuntimeError(f"the server did not start: {self.stderr}")
        self.address, self.models = json.loads(line)

    @property
    def stderr(self) -> str:
        """What it wrote to stderr, once it has ended."""
        return self._stderr

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit status, once it has ended by itself."""
        _, self._stderr = self.process.communicate(timeout=240)
        return self.process.returncode

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        with contextlib.suppress(ValueError):  # read by `wait` already
            _, self._stderr = self.process.communicate(timeout=240)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def free_address() -> str:
    """HOST:PORT of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def open_gate(folder: Path) -> None:
    """Lets all batches pass from now on."""
    os.mknod(folder / "open")
