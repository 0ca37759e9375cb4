"""What systemd, or whatever else started the server, is told: that it is ready, that its loop turns, that it stops.

The protocol of sd_notify(3): lines `NAME=value`, each message a datagram to the socket that `NOTIFY_SOCKET` names.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)
_PATIENCE_S = 1.0  # with a supervisor that doesn't read


class Supervisor:
    """Who is told; nobody where the environment has no `NOTIFY_SOCKET`, and then every method does nothing.

    A message that can't be sent is logged once: the supervisor draws its own conclusions.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address  # the former is in no file system
        self.watchdog_s = _read_watchdog(environment) if self._address else None
        self._deaf = False

    def ready(self, status: str) -> None:
        """status: one line for people"""
        self._tell(f"READY=1\nSTATUS={status}")

    def stopping(self) -> None:
        self._tell("STOPPING=1\nSTATUS=answering what is inside")

    async def feed(self) -> None:
        """Pings the watchdog from the event loop, so that a loop that hangs is noticed. Ends when it is cancelled."""
        while self.watchdog_s is not None:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 3)

    def _tell(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
                line.settimeout(_PATIENCE_S)
                line.connect(self._address)
                line.send(message.encode())
        except OSError as error:
            if not self._deaf:
                log.warning("NOTIFY_SOCKET can't be told %s: %s", message.partition("\n")[0], error)
            self._deaf = True


def _read_watchdog(environment: Mapping[str, str]) -> float | None:
    """Seconds within which a ping must come, None where nobody waits for one."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not microseconds.isdecimal():
        return None
    return int(microseconds) / 1e6 or None
