"""Whether an address is this machine's own."""

import socket
from types import SimpleNamespace

import psutil
import pytest

from ferryman.bench.nearby import is_nearby

NAMES = {
    "one.test": ["127.0.0.1", "::1"],
    "self.test": ["192.0.2.7"],
    "other.test": ["192.0.2.8"],
    "both.test": ["192.0.2.7", "192.0.2.8"],
}


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with the addresses 127.0.0.1, ::1 and 192.0.2.7, and a resolver that knows NAMES."""
    mine = {"lo": ("127.0.0.1", "::1"), "eth0": ("192.0.2.7", "fe80::1%eth0")}
    told = {name: [SimpleNamespace(address=one) for one in addresses] for name, addresses in mine.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: told)
    real = socket.getaddrinfo

    def resolve(host: str, *rest: object, **options: object) -> object:
        if host.endswith(".test"):
            if host not in NAMES:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 0)) for one in NAMES[host]]
        return real(host, 0, flags=socket.AI_NUMERICHOST)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


PLACES = {
    "127.0.0.1:8001": True,
    "127.0.3.1:8001": True,
    "[::1]:8001": True,
    "localhost:8001": True,
    "0.0.0.0:8001": True,
    "192.0.2.7:8001": True,
    "192.0.2.8:8001": False,
    "[2001:db8::1]:8001": False,
    "one.test:8001": True,
    "self.test:8001": True,
    "self.test": True,
    "other.test:8001": False,
    "both.test:8001": False,
    "nowhere.test:8001": False,
    "dns:///self.test:8001": True,
    "dns://192.0.2.53/other.test:8001": False,
    "ipv4:127.0.0.1:8001,192.0.2.7:8001": True,
    "ipv4:127.0.0.1:8001,192.0.2.8:8001": False,
    "ipv6:[::1]:8001": True,
    "unix:///run/ferryman.sock": True,
    "unix:ferryman.sock": True,
}


@pytest.mark.parametrize(("address", "nearby"), PLACES.items(), ids=PLACES)
def test_addresses(address: str, nearby: bool) -> None:
    assert is_nearby(address) == nearby
