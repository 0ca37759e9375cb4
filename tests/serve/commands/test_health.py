"""`ferryman health`: the exit status tells."""

from ..server.process import free_address
from .outcome import Cli


def test_health(cli: Cli, toy_server: str) -> None:
    assert cli("health", toy_server).status == 0
    ready = cli("health", toy_server, "--model", "toy-detector", "--json")
    assert ready.document == {"address": toy_server, "model": "toy-detector", "ready": True}
    assert cli("health", toy_server, "--model", "nothing").status == 1
    nobody = cli("health", free_address(), "--timeout", "1")
    assert nobody.status == 1
    assert nobody.stdout.endswith("is not ready\n")
