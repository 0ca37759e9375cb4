"""The settings that servers have in Kubernetes: their image's variables, and those of their containers."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ferryman.server.app import ServerConfig
from ferryman.server.settings import read_config

from ..dockerfiles import environment_of
from .manifests import FOLDER, RUNTIME, Document, pods_of, read, rendered


@dataclass(frozen=True)
class Server:
    """name: of the overlay or component; pod: the specification that its container stands in"""

    name: str
    pod: Document
    config: ServerConfig

    @property
    def container(self) -> Document:
        return self.pod["containers"][0]


@cache
def servers() -> dict[str, Server]:
    found: dict[str, Server] = {}
    for name, documents in rendered().items():
        (pod,) = pods_of(documents)
        dockerfile = "server-gpu.Dockerfile" if name == "gpu" else "server-cpu.Dockerfile"
        found[name] = Server(name, pod, _config(pod["containers"][0], dockerfile))
    runtime = read(RUNTIME)["spec"]
    predictor = read(FOLDER / "kserve" / "service.yaml")["spec"]["predictor"]
    pod = {**runtime, "terminationGracePeriodSeconds": predictor["terminationGracePeriodSeconds"]}
    found["kserve"] = Server("kserve", pod, _config(runtime["containers"][0], "server-cpu.Dockerfile"))
    return found


def _config(container: Mapping[str, Any], dockerfile: str) -> ServerConfig:
    environment = variables_of(container, dockerfile)
    command, *arguments = container.get("args", ["serve"])
    assert command == "serve"
    return read_config(None, environment, {"repository": Path(arguments[0])} if arguments else {})


def variables_of(container: Mapping[str, Any], dockerfile: str) -> dict[str, str]:
    """What its process finds in its environment: the image's variables and its own."""
    environment = environment_of(dockerfile)
    for variable in container["env"]:
        found = variable.get("value")
        if found is None:
            assert variable["valueFrom"] == {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1"}}
            found = container["resources"]["limits"]["cpu"]
        environment[variable["name"]] = found
    return environment
