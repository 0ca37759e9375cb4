"""What `pip install ferryman` brings: the three packages, whole, and nothing else."""

import configparser
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"ferryman": "serve", "ferryman_models": "models", "ferryman_export": "export"}
SDIST_EXTRAS = {"protos", "tests"}
SDIST_FILES = {
    "CONTRIBUTING.md", "LICENSE", "Makefile", "PKG-INFO", "README.md", "constraints.txt",
    "pyproject.toml", ".gitignore",
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution, built with the hatchling of this environment."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    [path] = built.glob("ferryman-*-py3-none-any.whl")
    return zipfile.ZipFile(path)


def _files_of(package: str) -> set[str]:
    """The files of a package in the working tree as the wheel names them."""
    folder = ROOT / PACKAGES[package]
    files = {
        path.relative_to(folder).as_posix()
        for path in (folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert f"{package}/__init__.py" in files
    return files


def _metadata(wheel: zipfile.ZipFile, name: str) -> str:
    [path] = [entry for entry in wheel.namelist() if entry.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    wanted = {name for package in PACKAGES for name in _files_of(package)}
    assert found == wanted


def test_the_wheel_holds_the_embedded_checkpoints(wheel: zipfile.ZipFile) -> None:
    zoo = {name for name in wheel.namelist() if name.startswith("ferryman_models/zoo/")}
    weights = [name for name in zoo if name.endswith(".safetensors")]
    assert len(weights) >= 2
    assert sum(wheel.getinfo(name).file_size for name in weights) < 12e6
    for name in weights:
        assert f"{name.rpartition('/')[0]}/README.md" in zoo, "a checkpoint without its model card"
    assert sum(name.endswith(".png") for name in zoo) >= 12


def test_every_package_says_that_it_is_typed(wheel: zipfile.ZipFile) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(wheel.namelist())


def test_the_wheel_declares_the_command_and_no_training_library(wheel: zipfile.ZipFile) -> None:
    scripts = configparser.ConfigParser()
    scripts.read_string(_metadata(wheel, "entry_points.txt"))
    assert dict(scripts["console_scripts"]) == {"ferryman": "ferryman.__main__:main"}
    core = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", _metadata(wheel, "METADATA"), re.MULTILINE)
    assert {"numpy", "onnxruntime", "grpcio"} <= set(core)
    assert not {"torch", "onnx", "onnxscript", "safetensors", "transformers", "scipy"} & set(core)
    assert "Apache License" in _metadata(wheel, "licenses/LICENSE")


def test_the_source_distribution_holds_no_junk(built: Path) -> None:
    [path] = built.glob("ferryman-*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    code = {f"{PACKAGES[package]}/{name}" for package in PACKAGES for name in _files_of(package)}
    assert code <= names
    rest = {name for name in names - code if name.partition("/")[0] not in SDIST_EXTRAS}
    assert rest <= SDIST_FILES
    assert {"README.md", "LICENSE", "pyproject.toml"} <= rest
