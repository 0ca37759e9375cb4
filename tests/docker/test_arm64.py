"""The root of server-cpu for arm64, built on another architecture and run by an emulator. Of speed it says nothing."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ferryman.client import Client
from ferryman.results import Detection

from ..serve.server.process import ServerProcess, free_address
from .contained import PYTHON, contained, images, serving
from .dockerfiles import DOCKER, environment_of

PAGE = DOCKER.parent / "docs" / "deploy.md"
PICTURES = DOCKER.parent / "models" / "ferryman_models" / "zoo" / "pictures" / "detection"
EMULATOR = shutil.which("qemu-aarch64-static")
MODEL = "detr-digits"
APT = """
APT::Architectures {{ "amd64"; "arm64"; }};
APT::Sandbox::User "root";
Dir::State::lists "{0}/lists";
Dir::Cache "{0}/cache";
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the line of the page, with lists of packages of its own: this system's apt need not know of arm64."""
    folder = tmp_path_factory.mktemp("arm64")
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "apt.conf").write_text(APT.format(folder), encoding="utf-8")
    environment = os.environ | {"APT_CONFIG": str(folder / "apt.conf"), "PYTHON": str(PYTHON)}
    subprocess.run(["apt-get", "-qq", "update"], env=environment, check=True, timeout=300)
    (line,) = re.findall(r"^    (ARCH=arm64 .+\n.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    line = line.replace(" ROOT ", f" {folder}/root ")
    subprocess.run(["sh", "-euc", line], cwd=DOCKER.parent, env=environment, check=True, timeout=900)
    assert EMULATOR is not None
    shutil.copy(EMULATOR, folder / "root")
    return folder / "root"


def detect(address: str) -> Detection:
    with Client(address, timeout=120) as client:
        picture = (PICTURES / "scene-1.png").read_bytes()
        (found,) = client.detect([picture], model=MODEL, score_threshold=0.5).results[0].detections
        return found


@images
@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(EMULATOR is None, reason="qemu-aarch64-static is missing: apt install qemu-user-static")
def test_the_server_runs_in_its_image_for_arm64(root: Path, tmp_path: Path) -> None:
    """It proves the model there before it serves it, and answers as on this machine."""
    export = [sys.executable, "-m", "ferryman", "export", MODEL, "-o", str(tmp_path / "models")]
    subprocess.run(export, check=True, capture_output=True)
    subprocess.run(["chmod", "-R", "a+rX", str(tmp_path)], check=True)
    under, models, address = f"/{Path(str(EMULATOR)).name}", tmp_path / "models", free_address()
    environment = environment_of("server-cpu.Dockerfile") | {"PATH": os.environ["PATH"]}
    line = contained(root, models, "doctor", under=under)
    doctor = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    assert "aarch64" in doctor.stdout
    for package in ("grpcio", "numpy", "onnxruntime", "pillow"):
        assert re.search(rf"^wheel {package} .*manylinux\w+_aarch64", doctor.stdout, re.MULTILINE)
    with serving(root, models, address, under, patience_s=1500):
        there = detect(address)
    with ServerProcess({"repository": str(models), "threads": 1}) as server:
        here = detect(server.address)
    assert there.label == here.label
    assert there.score == pytest.approx(here.score, abs=1e-4)
    assert there.box_xyxy == pytest.approx(here.box_xyxy, abs=0.05)
