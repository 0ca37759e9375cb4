"""`ferryman export` and `ferryman demo` as a user runs them, interrupted too."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ferryman_models.zoo import EMBEDDED, pictures_folder

FERRYMAN = [sys.executable, "-m", "ferryman"]


def run(*arguments: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    command = [*FERRYMAN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def complaint(stderr: str) -> str:
    """The one line of a failure; stages that were reported before it start with a dash."""
    lines = [line for line in stderr.splitlines() if not line.startswith("- ")]
    assert len(lines) == 1, stderr
    return lines[0]


def test_export_prints_one_document(checkpoints: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    result = run("export", checkpoints["vit"], "-o", tmp_path / "r", "--samples", pictures, "--name", "named", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["bundle"] == str(tmp_path / "r" / "named" / "1")
    assert (document["name"], document["version"]) == ("named", 1)
    assert document["parity"][0]["failures"] == []
    assert "\x1b" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["no-such-model"], 1, "there is no checkpoint 'no-such-model': give vit-digits, detr-digits"),
        (["vit-digits", "--size", "32"], 2, "--size must be HxW"),
        (["vit-digits", "--size", "0x32"], 2, "--size must be HxW"),
        (["vit-digits", "--target", "openvino-gpu-bf16"], 2, "can't be built by this version"),
        (["vit-digits", "--name", "a/b"], 2, "can't be a model's name"),
        (["vit-digits", "--tolerance", "1e-12"], 3, "is above 1e-12"),
        (["vit-digits", "--tolerance", "nan"], 2, "tolerance must be above 0"),
        (["vit-digits", "--tolerance", "inf"], 2, "tolerance must be above 0 and finite"),
    ],
    ids=[
        "unknown source",
        "size of one side",
        "size of nothing",
        "target",
        "name",
        "tolerance",
        "tolerance NaN",
        "tolerance infinite",
    ],
)
def test_export_fails_with_one_line(arguments: list[str], status: int, message: str, tmp_path: Path) -> None:
    result = run("export", *arguments, "-o", tmp_path / "r", "--json")
    assert result.returncode == status, result.stderr
    line = complaint(result.stderr)
    assert message in line
    assert message in json.loads(result.stdout)["error"]["message"]
    assert not (tmp_path / "r").exists()


def test_export_into_a_file(checkpoints: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = run("export", checkpoints["vit"], "-o", tmp_path / "file", "--samples", pictures)
    assert result.returncode == 1
    assert re.search(r"can't write .*file", complaint(result.stderr))
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("stage", ["load the checkpoint", "write the ONNX graph", "write the bundle"])
def test_interrupted_export_leaves_nothing(
    stage: str, number: signal.Signals, checkpoints: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "r"
    command = [
        *FERRYMAN,
        "export",
        str(checkpoints["vit"]),
        "-o",
        str(repository),
        "--samples",
        str(pictures),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if stage in line:
                process.send_signal(number)
                break
        rest = process.stderr.read()
        status = process.wait()
    assert "Traceback" not in rest
    assert status == 128 + number or (status == 0 and stage == "write the bundle")
    # The bundle is in its place while the command still checks it: a signal that late leaves it there, whole.
    if stage == "write the bundle" and repository.exists():
        assert [path.name for path in repository.iterdir()] == ["tiny-vit"]
        assert run("verify", repository / "tiny-vit").returncode == 0
    else:
        assert status != 0
        assert not repository.exists()


def servers_of(folder: Path) -> list[int]:
    """Processes whose command line names a place in `folder`."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:  # it has ended meanwhile
                continue
            if "serve" in command.split("\0") and str(folder) in command:
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, run("demo", "-o", folder, "--json")


@pytest.mark.slow
def test_demo_does_all_that_it_says(demo: tuple[Path, "subprocess.CompletedProcess[str]"]) -> None:
    folder, result = demo
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert [model["name"] for model in document["models"]] == list(EMBEDDED)
    for model in document["models"]:
        assert all(0 <= error <= 1e-4 for error in model["max_abs_errors"].values())
        assert {row["way"] for row in model["latency"]} == {"PyTorch eager", "ONNX Runtime", "through gRPC"}
        assert all(0 < row["median_ms"] <= row["p99_ms"] for row in model["latency"])
        assert all(Path(answer["drawn"]).stat().st_size > 1000 for answer in model["answers"])
    assert len(list((folder / "pictures").glob("*.png"))) == 12
    assert "<img" in (folder / "report.html").read_text(encoding="utf-8")
    assert not servers_of(folder)


@pytest.mark.slow
def test_demo_answers_are_right(demo: tuple[Path, "subprocess.CompletedProcess[str]"]) -> None:
    """The digits' files are named by what they show."""
    answers = json.loads(demo[1].stdout)["models"][0]["answers"]
    assert len(answers) == len(list(pictures_folder("classification").glob("*.png")))
    wrong = [a for a in answers if a["image"] != f"digit-{a['answer'][0]}.png"]
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "whom"),
    [pytest.param("start a server", "parent", marks=pytest.mark.nightly), ("ask the server", "group")],
)
def test_interrupted_demo_stops_its_server(tmp_path: Path, stage: str, whom: str) -> None:
    """Ctrl-C reaches the whole process group from a terminal; `kill` reaches the demo alone."""
    folder = tmp_path / "out"
    command = [*FERRYMAN, "demo", "-o", str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if stage in line:
                (os.killpg if whom == "group" else os.kill)(process.pid, signal.SIGINT)
                break
        rest = process.stderr.read()
        assert process.wait() == 130
    assert "Traceback" not in rest
    for _ in range(100):
        if not servers_of(folder):
            return
        time.sleep(0.1)
    pytest.fail("the demo's server is still there")
