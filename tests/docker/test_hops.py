"""The hop behind Envoy with a certificate that is wrong or out of date: who refuses it says in its log what it lacks.

Callers are told that no server can be reached, and not why: what the inside lacks is nobody else's business.
"""

import json
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ferryman.client import Client, RetryPolicy, Security
from ferryman.errors import DeadlineError, UnavailableError

from ..serve.server.security.certificates import LONG_AGO, Authority, Pem
from .fleet import Envoy, envoy_binary


@contextmanager
def server(pem: Pem, authority: Authority) -> Generator[str]:
    """gRPC's own, as ferryman's refuses to start with what is wrong here; serves health alone, to whom it trusts."""
    with ThreadPoolExecutor(4) as pool:
        one, servicer = grpc.server(pool), health.HealthServicer()
        servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, one)
        pair = (pem.key.read_bytes(), pem.certificate.read_bytes())
        port = one.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials([pair], authority.ca.read_bytes(), require_client_auth=True)
        )
        one.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            one.stop(None).wait()


def ask(address: str, ca: Path) -> str:
    """What a client without retries is told; empty when it was answered."""
    with Client(address, retry=RetryPolicy(attempts=1), security=Security(ca=ca), timeout=20) as client:
        try:
            client.wait_ready(timeout=1)
        except DeadlineError:  # without a reason, which the next call tells
            with pytest.raises(UnavailableError) as caught:
                client.model_info("any")
            return str(caught.value)
    return ""


def test_a_wrong_certificate_between_the_hops_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        envoy_binary()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    ours, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    good, own = ours.issue("server", "server"), ours.issue("envoy")
    cases = {
        "nothing": (good, own, ""),
        "expired": (ours.issue("expired", "server", **LONG_AGO), own, "certificate_has_expired"),
        "of a stranger": (stranger.issue("strange", "server"), own, "unable_to_get_local_issuer_certificate"),
        "of another server": (ours.issue("other"), own, "SAN_matcher,_certificate_SANs_are_[localhost,_127.0.0.1]"),
        "Envoy's, expired": (good, ours.issue("old", **LONG_AGO), "certificate has expired"),
        "Envoy's, of a stranger": (good, stranger.issue("strange-envoy"), "unable to get local issuer certificate"),
    }
    told: dict[str, str] = {}
    logged: dict[str, str] = {}
    for name, (theirs, shown, _) in cases.items():
        with ExitStack() as opened:
            address = opened.enter_context(server(theirs, ours))
            envoy = Envoy([address], tmp_path, tmp_path, shown=(shown.certificate, shown.key))
            opened.callback(envoy.end)
            told[name] = ask(envoy.address, ours.ca)
            envoy.end()
            lines = envoy.log.read_text(encoding="utf-8").splitlines()
            calls = [json.loads(line) for line in lines if line.startswith("{") and "ModelInfo" in line]
            # Of Envoy's own certificate it is the server that says it.
            logged[name] = " ".join(str(call["reason"]) for call in calls) if shown is own else capfd.readouterr().err
            capfd.readouterr()
    assert told.pop("nothing") == ""
    assert all("upstream connect error" in line and "certificate" not in line.lower() for line in told.values()), told
    assert {name: expected in logged[name] for name, (*_, expected) in cases.items()} == dict.fromkeys(cases, True)
