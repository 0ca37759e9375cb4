"""The manifests and the server agree: settings, ports, probes, the time to stop, images."""

import re
import tomllib

import ferryman
from ferryman.addresses import split_address

from .manifests import FOLDER
from .settings import servers

DOCKER = FOLDER.parent


def test_the_server_takes_its_settings() -> None:
    """An unknown one is an error."""
    found = servers()
    assert len(found) > 8
    for server in found.values():
        config, container = server.config, server.container
        assert config.threads == config.decode_threads == int(container["resources"]["limits"]["cpu"]), server.name
        mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
        assert mounts[str(config.certificates)] is False
        if server.name != "kserve":  # whose own initializer mounts them
            assert mounts[str(config.repository)] is True
        assert split_address(config.address)[1] in {port["containerPort"] for port in container["ports"]}


def test_probes_ask_where_the_server_listens() -> None:
    """Kubernetes' own gRPC probe speaks no TLS; that of liveness must not wait for a place among the calls."""
    for server in servers().values():
        config, container = server.config, server.container
        named = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert config.metrics_address is not None
        assert config.open_health, "probes have no token"
        metrics = split_address(config.metrics_address)[1]
        for kind in ("startupProbe", "readinessProbe"):
            probe = container[kind]
            if config.tls_certificate is None:
                assert probe["grpc"]["port"] == split_address(config.address)[1], server.name
                assert "httpGet" not in probe
            else:
                assert "grpc" not in probe, server.name
                assert (probe["httpGet"]["path"], named[probe["httpGet"]["port"]]) == ("/readyz", metrics)
        probe = container["livenessProbe"]["httpGet"]
        assert (probe["path"], named.get(probe["port"], probe["port"])) == ("/livez", metrics)
        startup = container["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 300
    assert {server.name for server in servers().values() if server.config.tls_certificate} == {"secured", "edge"}


def test_a_server_has_the_time_that_it_takes_to_stop() -> None:
    for server in servers().values():
        before = server.container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert server.pod["terminationGracePeriodSeconds"] >= before + server.config.grace_seconds + 10, server.name


def test_the_edge_has_the_settings_of_an_edge_box() -> None:
    server = servers()["edge"]
    elsewhere = {"repository", "certificates", "address", "grace_seconds"}
    written = tomllib.loads((DOCKER / "edge" / "ferryman.toml").read_text(encoding="utf-8"))
    wanted = {name: value for name, value in written.items() if name not in elsewhere}
    assert len(wanted) > 8
    assert {name: getattr(server.config, name) for name in wanted} == wanted
    unit = (DOCKER / "edge" / "ferryman.service").read_text(encoding="utf-8")
    (limit,) = re.findall(r"^MemoryMax=(\d+)M$", unit, re.MULTILINE)
    assert server.container["resources"]["limits"]["memory"] == f"{limit}Mi"
    assert server.config.tokens is not None, "everybody outside of the cluster reaches it"


def test_images_are_those_of_the_dockerfiles() -> None:
    built = {f"ferryman/{file.name.partition('.')[0]}" for file in DOCKER.glob("*.Dockerfile")}
    for server in servers().values():
        name, _, tag = server.container["image"].partition(":")
        assert name in built
        assert tag == ferryman.__version__
