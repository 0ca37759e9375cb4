"""What the commands answer, to scripts and to people."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferryman.bundle import Bundle
from ferryman.runtimes import RUNTIMES

from ..toy import LABELS, change_golden, shift_boxes
from .outcome import Cli, finish, spawn


def test_help_names_every_command(cli: Cli) -> None:
    outcome = cli("--help")
    assert outcome.status == 0
    commands = ["demo", "export", "build", "verify", "inspect", "serve", "top", "token"]
    commands += ["classify", "detect", "embed", "segment", "health", "advise", "doctor", "bench"]
    assert re.findall(r"^  (\w+)  ", outcome.stdout, re.MULTILINE) == commands
    for command in commands:
        assert "--json" in cli(command, "--help").stdout


def test_help_is_quick(record_property: Callable[[str, object], None]) -> None:
    """Not held to a time here, where others may keep the machine busy; the modules that take long must be absent."""
    slow = "('numpy', 'grpc', 'onnxruntime', 'PIL', 'pydantic', 'torch')"
    code = f"import sys, ferryman.cli; sys.exit(', '.join(name for name in {slow} if name in sys.modules) or 0)"
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    record_property("seconds", round(time.perf_counter() - start, 3))
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("where", ["here", "server"])
def test_the_document_of_classify(
    cli: Cli, toy_repository: Path, toy_server: str, pictures: dict[str, Path], where: str
) -> None:
    whom = {
        "here": ("--bundle", toy_repository / "toy-classifier"),
        "server": ("--address", toy_server, "--model", "toy-classifier/1"),
    }[where]
    outcome = cli("classify", pictures["red.png"], pictures["blue.jpg"], *whom, "--top-k", 2, "--json")
    assert (outcome.status, outcome.stderr) == (0, "")
    red, blue = outcome.document
    assert list(red) == ["image", "model", "size", "canvas", "predictions"]
    assert (red["image"], red["model"], red["size"]) == (str(pictures["red.png"]), "toy-classifier", [70, 30])
    assert blue["size"] == [30, 70]
    for document, best in ((red, "red"), (blue, "blue")):
        first, second = document["predictions"]
        assert first["label"] == best
        assert list(first) == ["label", "score"]
        assert 1 >= first["score"] >= second["score"] >= 0


@pytest.mark.parametrize("where", ["here", "server"])
def test_the_document_of_detect(
    cli: Cli, toy_repository: Path, toy_server: str, pictures: dict[str, Path], where: str
) -> None:
    whom = {
        "here": ("--bundle", toy_repository / "toy-detector" / "1"),
        "server": ("--address", toy_server, "--model", "toy-detector"),
    }[where]
    outcome = cli("detect", pictures["red.png"], *whom, "--score", 0, "--json")
    assert (outcome.status, outcome.stderr) == (0, "")
    (document,) = outcome.document
    assert list(document) == ["image", "model", "size", "canvas", "detections"]
    assert document["size"] == [70, 30]
    assert len(document["detections"]) == 3
    for detection in document["detections"]:
        assert list(detection) == ["label", "score", "box"]
        assert detection["label"] in LABELS
        x1, y1, x2, y2 = detection["box"]
        assert 0 <= x1 < x2 <= 70
        assert 0 <= y1 < y2 <= 30
    nothing = cli("detect", pictures["red.png"], *whom, "--score", 1, "--json")
    assert nothing.document[0]["detections"] == []


def test_what_people_read(cli: Cli, toy_repository: Path, pictures: dict[str, Path]) -> None:
    bundle = toy_repository / "toy-detector"
    table = cli("detect", pictures["red.png"], "--bundle", bundle, "--score", 0).stdout
    assert len(table.splitlines()) == 4  # a header and three boxes, whatever COLUMNS says
    assert str(pictures["red.png"]) in table
    assert "nothing" in cli("detect", pictures["red.png"], "--bundle", bundle, "--score", 1).stdout
    shown = cli("inspect", bundle).stdout
    assert Bundle.open(bundle).digest in shown
    assert "onnxruntime-cpu-fp32" in shown
    assert "within tolerance" in shown
    assert re.search(r"boxes +\d\S+ +0\.0001 ", shown)


NAMES = ["[bold]a[/bold].png", ":smile:.png", "a b  c.png", "[" + "x" * 240 + "].png"]


@pytest.mark.parametrize("name", NAMES, ids=["markup", "emoji", "spaces", "long"])
def test_names_are_printed_as_they_are(
    cli: Cli, toy_repository: Path, pictures: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """A closing tag without an opening one would even be an error of Rich's."""
    place = tmp_path / "[" / name
    place.parent.mkdir(parents=True)
    shutil.copy(pictures["red.png"], place)
    outcome = cli("classify", place, "--bundle", toy_repository / "toy-classifier")
    assert (outcome.status, outcome.stderr) == (0, "")
    assert f"{place}  " in outcome.stdout


def test_a_name_that_is_no_text(toy_repository: Path, pictures: dict[str, Path]) -> None:
    place = pictures["red.png"].with_name("caf\udce9.png")  # Latin-1 on the disk
    shutil.copy(pictures["red.png"], place)
    bundle = toy_repository / "toy-classifier"
    document = finish(spawn("classify", place, "--bundle", bundle, "--json"))
    assert document.status == 0
    assert document.document[0]["image"] == str(place)
    table = finish(spawn("classify", place, "--bundle", bundle))
    assert table.status == 0
    assert "caf\\udce9.png" in table.stdout


def test_verify(cli: Cli, copy: Path) -> None:
    bundle = Bundle.open(copy / "toy-detector")
    outcome = cli("verify", bundle.path, "--json", "--threads", 1)
    assert (outcome.status, outcome.stderr) == (0, "- compare onnxruntime-cpu-fp32 with PyTorch's answers\n")
    written = json.loads((bundle.path / "certificates" / "onnxruntime-cpu-fp32.json").read_text(encoding="utf-8"))
    assert outcome.document["can_not_run"] == {}
    (told,) = outcome.document["certificates"]
    assert told == {"path": str(bundle.path / "certificates" / "onnxruntime-cpu-fp32.json"), **written}
    assert written["passed"] is True
    assert written["bundle"] == "toy-detector/1"
    assert written["bundle_digest"] == bundle.digest
    assert written["variant_digests"] == [bundle.manifest.files["model.onnx"].sha256]
    assert written["reports"][0]["matched_detections"] == 1.0
    text = cli("verify", bundle.path)
    assert text.status == 0
    assert "within tolerance, 100.00% of" in text.stdout
    assert "certificates: onnxruntime-cpu-fp32.json" in text.stdout.splitlines()[-1]
    assert Bundle.open(bundle.path).digest == bundle.digest


def test_verify_writes_the_certificate_elsewhere(cli: Cli, copy: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(copy / "toy-classifier")
    shutil.rmtree(bundle.path / "certificates")
    assert cli("verify", bundle.path, "--certificates", tmp_path / "new").status == 0
    (place,) = (tmp_path / "new").rglob("*.json")
    assert place.relative_to(tmp_path / "new") == Path(bundle.digest[:16], "onnxruntime-cpu-fp32.json")
    assert json.loads(place.read_text(encoding="utf-8"))["passed"] is True
    assert not (bundle.path / "certificates").exists()


def test_a_certificate_that_can_not_be_written(cli: Cli, copy: Path) -> None:
    """It does not hide the verdict."""
    folder = copy / "toy-detector" / "1"
    shutil.rmtree(folder / "certificates")
    (folder / "certificates").touch()
    outcome = cli("verify", folder)
    assert outcome.status == 1
    assert outcome.complaint.startswith("ferryman: within tolerance, but without a certificate: can't write ")
    assert outcome.complaint.endswith("or name a folder with --certificates")
    (elsewhere := folder / "file").touch()
    assert cli("verify", folder, "--certificates", elsewhere).complaint.endswith(
        "check the folder's permissions and space"
    )
    change_golden(folder, shift_boxes)
    assert cli("verify", folder).status == 3


def test_out_of_tolerance_is_status_3(cli: Cli, copy: Path) -> None:
    folder = copy / "toy-detector" / "1"
    change_golden(folder, shift_boxes)
    for arguments in ((), ("--json",)):
        outcome = cli("verify", folder, *arguments)
        assert outcome.status == 3
        assert re.match(
            r"ferryman: onnxruntime-cpu-fp32 at 32x32 is out of tolerance: output boxes, sample picture-2 "
            r"\(batch \d, slot \d\): max abs error 0\.02\d* is above 0\.0001",
            outcome.complaint,
        )
    assert outcome.document["error"]["type"] == "ParityError"
    proof = json.loads((folder / "certificates" / "onnxruntime-cpu-fp32.json").read_text(encoding="utf-8"))
    assert proof["passed"] is False


def test_inspect(cli: Cli, toy_repository: Path) -> None:
    document = cli("inspect", toy_repository / "toy-classifier", "--json").document
    assert list(document) == ["path", "digest", "manifest", "parity"]
    assert document["manifest"]["specs"][0]["labels"] == list(LABELS)
    assert document["parity"][0]["failures"] == []


def test_doctor(cli: Cli) -> None:
    document = cli("doctor", "--json").document
    assert [runtime["runtime"] for runtime in document["runtimes"]] == list(RUNTIMES)
    assert document["runtimes"][0]["devices"] == ["cpu"]
    assert {extra["extra"] for extra in document["extras"]} >= {"export", "train"}
    for extra in document["extras"]:
        assert (extra["install"] is None) == (extra["missing"] == [])
    wheels = document["wheels"]
    assert wheels["numpy"].startswith(f"{np.__version__}, ")
    assert all(platform.machine() in wheel for wheel in wheels.values())
    assert {"grpcio", "onnxruntime", "pillow", "pydantic-core"} <= wheels.keys()  # the last one is pydantic's own
    assert "typer" not in wheels, "it is not compiled"
    assert re.search(r"^wheel numpy +", cli("doctor").stdout, re.MULTILINE)


@pytest.mark.parametrize("where", ["here", "server"])
def test_bench(cli: Cli, toy_repository: Path, toy_server: str, pictures: dict[str, Path], where: str) -> None:
    arguments: dict[str, Sequence[object]] = {
        "here": (toy_repository / "toy-detector", "--threads", 1),
        "server": ("--address", toy_server, "--model", "toy-detector", "--image", pictures["red.png"]),
    }
    outcome = cli("bench", *arguments[where], "--seconds", 0.3, "--json")
    assert outcome.status == 0
    assert outcome.stderr.splitlines()[-1] == "- measure"
    (run,) = outcome.document["runs"]
    latency = run["figures"]
    assert run["name"] == {"here": "onnxruntime-cpu-fp32", "server": "the server"}[where]
    assert latency["requests"] >= 1
    assert latency["min_ms"] <= latency["percentiles_ms"]["p50"] <= latency["max_ms"]
    assert ("p99" in latency["percentiles_ms"]) == (latency["requests"] >= 1000)
    stages = {
        "here": ["decode", "resize", "compute", "postprocess", "rest"],
        "server": ["decode", "resize", "queue", "compute", "postprocess", "encode", "transfer", "rest"],
    }[where]
    assert list(latency["stages_ms"]) == stages
    assert all(value >= 0 for value in latency["stages_ms"].values())
    assert sum(latency["stages_mean_ms"].values()) == pytest.approx(latency["mean_ms"])
    text = cli("bench", *arguments[where], "--seconds", 0.1).stdout
    assert "single-stream" in text
    assert re.search(rf"^variant +{' +'.join(stages)}$", text, re.MULTILINE)


# --- pictures that can't be answered, and drawing --------------------------------------------------------------------


def test_bad_pictures_do_not_stop_the_good(cli: Cli, toy_repository: Path, pictures: dict[str, Path]) -> None:
    names = ["red.png", "empty.png", "text.png", "half.jpg", "bomb.png", "nowhere.png", "folder.png", "blue.jpg"]
    bundle = toy_repository / "toy-classifier"
    outcome = cli("classify", *(pictures[name] for name in names), "--bundle", bundle, "--json")
    assert outcome.status == 1
    documents = outcome.document
    assert [document["image"] for document in documents] == [str(pictures[name]) for name in names]
    assert ["predictions" in document for document in documents] == [True, *[False] * 6, True]
    reasons = [
        "the image is empty (0 bytes)",
        "the 100 bytes are not a JPEG, PNG, WEBP or BMP image",
        "the image is damaged",
        "the image has too many pixels, the limit is 64,000,000; shrink it first",
        "No such file or directory",
        "Is a directory",
    ]
    lines = outcome.stderr.splitlines()
    assert len(lines) == 6
    for name, reason, line, document in zip(names[1:7], reasons, lines, documents[1:7], strict=True):
        assert line.startswith("ferryman: ")
        assert line.count(str(pictures[name])) == 1
        assert reason in line
        assert reason in document["error"]
    table = cli("classify", *(pictures[name] for name in names), "--bundle", bundle)
    assert table.status == 1
    assert [f"{pictures[name]} " in table.stdout for name in names] == [True, *[False] * 6, True]


def test_drawing(cli: Cli, toy_repository: Path, pictures: dict[str, Path], tmp_path: Path) -> None:
    bundle = toy_repository / "toy-detector"
    out = tmp_path / "new" / "out.png"
    assert f"drawn: {out}" in cli("detect", pictures["red.png"], "--bundle", bundle, "--draw", out).stdout
    with Image.open(out) as drawn:
        assert (drawn.format, drawn.size) == ("PNG", (700, 300))
    folder = tmp_path / "drawn.v1"
    folder.mkdir()
    both = (pictures["red.png"], pictures["blue.jpg"])
    assert cli("detect", *both, "--bundle", bundle, "--draw", folder, "--json").status == 0
    assert sorted(os.listdir(folder)) == ["blue.png", "red.png"]
    assert cli("classify", *both, "--bundle", toy_repository / "toy-classifier", "--draw", tmp_path / "x").status == 0
    assert sorted(os.listdir(tmp_path / "x")) == ["blue.png", "red.png"]


def test_explaining_what_has_no_maps(cli: Cli, toy_repository: Path, pictures: dict[str, Path], tmp_path: Path) -> None:
    out, bundle = tmp_path / "out.png", toy_repository / "toy-detector"
    outcome = cli("detect", pictures["red.png"], "--bundle", bundle, "--explain", out)
    assert outcome.status == 2
    assert outcome.complaint.startswith("ferryman: toy-detector was exported without attention maps; export it with")
    both = cli("detect", pictures["red.png"], "--bundle", bundle, "--explain", out, "--draw", out)
    assert (both.status, both.complaint) == (2, "ferryman: --draw and --explain would write the same file")
    assert not out.exists()
    jpeg = cli("classify", pictures["red.png"], "--bundle", bundle, "--explain", tmp_path / "out.jpg")
    assert (jpeg.status, "--explain" in jpeg.complaint, ".png" in jpeg.complaint) == (2, True, True)


def test_a_drawing_that_can_not_be_written(cli: Cli, toy_repository: Path, pictures: dict[str, Path]) -> None:
    """The answer is given all the same, and the status tells."""
    below_a_file = pictures["text.png"] / "out.png"
    outcome = cli(
        "detect", pictures["red.png"], "--bundle", toy_repository / "toy-detector", "--draw", below_a_file, "--json"
    )
    assert outcome.status == 1
    assert "can't write" in outcome.complaint
    assert str(below_a_file) in outcome.complaint
    (document,) = outcome.document
    assert "detections" in document
    assert "can't write" in document["error"]


@pytest.mark.parametrize("link", [False, True], ids=["itself", "through a link"])
def test_drawing_never_overwrites_a_picture(
    cli: Cli, toy_repository: Path, pictures: dict[str, Path], tmp_path: Path, link: bool
) -> None:
    folder = pictures["red.png"].parent
    if link:
        (tmp_path / "link").symlink_to(folder)
        folder = tmp_path / "link"
    before = pictures["red.png"].read_bytes()
    for arguments in (
        (pictures["red.png"], "--draw", folder / "red.png"),
        (pictures["red.png"], pictures["blue.jpg"], "--draw", folder),
    ):
        outcome = cli("detect", *arguments, "--bundle", toy_repository / "toy-detector")
        assert outcome.status == 2
        assert "would overwrite the picture" in outcome.complaint
    assert pictures["red.png"].read_bytes() == before
    assert not (folder / "blue.png").exists()
