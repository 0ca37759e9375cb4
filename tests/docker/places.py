"""Where servers run, each at an address of its own: in a network namespace where one may be made, else at 127.0.0.N."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Where a server runs. command: what its own is put behind, to be in a namespace; empty for none"""

    host: str
    command: tuple[str, ...] = ()

    def cut(self) -> None:
        """At its far end: nothing goes in or out any more, and nobody is told."""
        subprocess.run([*self.command, "ip", "link", "set", "eth0", "down"], check=True, capture_output=True)


@contextmanager
def places(count: int) -> Generator[list[Place]]:
    """So many, each of its own network namespace where this process may make one."""
    with ExitStack() as opened:
        try:
            found = [opened.enter_context(_namespace(number)) for number in range(count)]
        except (OSError, subprocess.CalledProcessError):
            found = [Place(f"127.0.0.{20 + number}") for number in range(count)]
        yield found


@contextmanager
def _namespace(number: int) -> Generator[Place]:
    """One that ends with its process."""
    if os.geteuid() != 0:
        raise PermissionError("a network namespace needs root")
    net = f"198.18.{os.getpid() % 200}.{4 * number}"  # a network that is set apart for measuring
    near, far = (f"{net.rpartition('.')[0]}.{4 * number + end}" for end in (1, 2))
    wire = f"ferry{os.getpid() % 100000}n{number}"
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"], stdout=subprocess.PIPE) as one:
        try:
            assert one.stdout is not None
            if not one.stdout.readline():
                raise PermissionError("no network namespace can be made here")
            inside = ("nsenter", "--target", str(one.pid), "--net")
            for line in (
                f"ip link add {wire} type veth peer name eth0 netns {one.pid}",
                f"ip addr add {near}/30 dev {wire}",
                f"ip link set {wire} up",
                f"{' '.join(inside)} ip addr add {far}/30 dev eth0",
                f"{' '.join(inside)} ip link set eth0 up",
                f"{' '.join(inside)} ip link set lo up",
            ):
                subprocess.run(line.split(), check=True, capture_output=True)
            yield Place(far, inside)
        finally:
            # The kernel would take the wire away too, some time after the process.
            subprocess.run(["ip", "link", "del", wire], check=False, capture_output=True)
            one.kill()


def free_port(host: str) -> int:
    """That nothing listens on there."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]
