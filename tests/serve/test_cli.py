"""The command line as scripts and people meet it: exit status, one document or one line, no traceback."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ferryman.bundle import Bundle, seal
from ferryman.cli import main
from ferryman.golden import GoldenSamples, load_golden, save_golden

from .toy import LABELS, make_picture

FERRYMAN = [sys.executable, "-m", "ferryman"]
ENVIRONMENT = {"TERM": "xterm-256color", "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1", "COLUMNS": "40"}


@dataclass(frozen=True)
class Outcome:
    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.stdout)

    @property
    def complaint(self) -> str:
        """The one line of a failure; stages that were reported before it start with a dash."""
        lines = [line for line in self.stderr.splitlines() if not line.startswith("- ")]
        assert len(lines) == 1, self.stderr
        return lines[0]


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """`ferryman ...` in this process, which spares the start of Python; signals are as they were afterwards."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["ferryman", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert "\x1b" not in captured.out + captured.err
        code = end.value.code
        return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def spawn(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    """`ferryman ...` in a process of its own."""
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*FERRYMAN, *map(str, arguments)], env=os.environ | ENVIRONMENT, **settings | options)


def finish(process: "subprocess.Popen[str]") -> Outcome:
    stdout, stderr = process.communicate(timeout=120)
    assert "Traceback" not in stderr, stderr
    return Outcome(process.returncode, stdout, stderr)


@pytest.fixture
def copy(toy_repository: Path, tmp_path: Path) -> Path:
    """A repository of one's own."""
    return shutil.copytree(toy_repository, tmp_path / "models")


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    """Good and bad files by name."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    whole = make_picture((200, 30, 40), 60, 40, kind="JPEG", seed=1)
    files = {
        "red.png": make_picture((240, 20, 10), 70, 30),
        "blue.jpg": make_picture((10, 20, 240), 30, 70, kind="JPEG"),
        "empty.png": b"",
        "text.png": b"I am text\n" * 10,
        "half.jpg": whole[: len(whole) // 2],
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return {name: folder / name for name in files} | {"nowhere.png": folder / "nowhere.png", "folder.png": folder}


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def change_golden(folder: Path, change: Callable[[GoldenSamples], GoldenSamples]) -> None:
    """Other golden samples, sealed with right digests."""
    bundle = Bundle.open(folder)
    save_golden(folder / "golden.npz", change(load_golden(folder / "golden.npz", bundle.spec)))
    facts = {name: getattr(bundle.manifest, name) for name in type(bundle.manifest).model_fields if name != "files"}
    seal(folder, facts)


def shift_boxes(golden: GoldenSamples) -> GoldenSamples:
    outputs = {name: array.copy() for name, array in golden.outputs.items()}
    outputs["boxes"][2] += np.float32(0.02)
    return GoldenSamples(golden.names, golden.inputs, outputs)


# --- what answers ----------------------------------------------------------------------------------------------------


def test_help_names_every_command(cli: Cli) -> None:
    outcome = cli("--help")
    assert outcome.status == 0
    commands = ["demo", "export", "verify", "inspect", "serve", "classify", "detect", "bench", "doctor"]
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
    assert list(red) == ["image", "model", "size", "predictions"]
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
    assert list(document) == ["image", "model", "size", "detections"]
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
    assert outcome.document == written
    assert written["passed"] is True
    assert written["bundle"] == "toy-detector/1"
    assert written["bundle_digest"] == bundle.digest
    assert written["variant_digest"] == bundle.manifest.files["model.onnx"].sha256
    assert written["report"]["matched_detections"] == 1.0
    text = cli("verify", bundle.path)
    assert text.status == 0
    assert "within tolerance, 100.00% of" in text.stdout
    assert "certificates/onnxruntime-cpu-fp32.json" in text.stdout.splitlines()[-1]
    assert Bundle.open(bundle.path).digest == bundle.digest


def test_verify_writes_the_certificate_elsewhere(cli: Cli, copy: Path, tmp_path: Path) -> None:
    place = tmp_path / "new" / "proof.json"
    assert cli("verify", copy / "toy-classifier", "--certificate", place).status == 0
    assert json.loads(place.read_text(encoding="utf-8"))["passed"] is True
    assert not (copy / "toy-classifier" / "1" / "certificates").exists()


def test_out_of_tolerance_is_status_3(cli: Cli, copy: Path) -> None:
    folder = copy / "toy-detector" / "1"
    change_golden(folder, shift_boxes)
    for arguments in ((), ("--json",)):
        outcome = cli("verify", folder, *arguments)
        assert outcome.status == 3
        assert re.match(
            r"ferryman: onnxruntime-cpu-fp32 is out of tolerance: output boxes, sample picture-2 "
            r"\(batch \d, slot \d\): max abs error 0\.02\d* is above 0\.0001",
            outcome.complaint,
        )
    assert outcome.document["error"]["type"] == "ParityError"
    proof = json.loads((folder / "certificates" / "onnxruntime-cpu-fp32.json").read_text(encoding="utf-8"))
    assert proof["passed"] is False


def test_inspect(cli: Cli, toy_repository: Path) -> None:
    document = cli("inspect", toy_repository / "toy-classifier", "--json").document
    assert list(document) == ["path", "digest", "manifest", "parity"]
    assert document["manifest"]["spec"]["labels"] == list(LABELS)
    assert document["parity"][0]["failures"] == []


def test_doctor(cli: Cli) -> None:
    document = cli("doctor", "--json").document
    assert [runtime["runtime"] for runtime in document["runtimes"]] == ["onnxruntime"]
    assert document["runtimes"][0]["devices"] == ["cpu"]
    assert {extra["extra"] for extra in document["extras"]} >= {"export", "train"}
    for extra in document["extras"]:
        assert (extra["install"] is None) == (extra["missing"] == [])
    assert cli("doctor").stdout.count("onnxruntime") >= 1


@pytest.mark.parametrize("where", ["here", "server"])
def test_bench(cli: Cli, toy_repository: Path, toy_server: str, pictures: dict[str, Path], where: str) -> None:
    arguments: dict[str, Sequence[object]] = {
        "here": (toy_repository / "toy-detector", "--threads", 1),
        "server": ("--address", toy_server, "--model", "toy-detector", "--image", pictures["red.png"]),
    }
    outcome = cli("bench", *arguments[where], "--seconds", 0.3, "--json")
    assert (outcome.status, outcome.stderr) == (0, "- measure\n")
    latency = outcome.document["latency"]
    assert latency["requests"] >= 1
    assert latency["min_ms"] <= latency["percentiles_ms"]["p50"] <= latency["max_ms"]
    assert ("p99" in latency["percentiles_ms"]) == (latency["requests"] >= 1000)
    assert list(latency["stages_ms"]) == ["decode", "resize", "queue", "compute", "postprocess", "rest"]
    assert all(value >= 0 for value in latency["stages_ms"].values())
    text = cli("bench", *arguments[where], "--seconds", 0.1).stdout
    assert "single stream" in text
    assert re.search(r"compute +\d+\.\d\d +\d+%", text)


# --- pictures that can't be answered, and drawing --------------------------------------------------------------------


def test_bad_pictures_do_not_stop_the_good(cli: Cli, toy_repository: Path, pictures: dict[str, Path]) -> None:
    names = ["red.png", "empty.png", "text.png", "half.jpg", "nowhere.png", "folder.png", "blue.jpg"]
    bundle = toy_repository / "toy-classifier"
    outcome = cli("classify", *(pictures[name] for name in names), "--bundle", bundle, "--json")
    assert outcome.status == 1
    documents = outcome.document
    assert [document["image"] for document in documents] == [str(pictures[name]) for name in names]
    assert ["predictions" in document for document in documents] == [True, *[False] * 5, True]
    reasons = [
        "the image is empty (0 bytes)",
        "the 100 bytes are not a JPEG, PNG, WEBP or BMP image",
        "the image is damaged",
        "No such file or directory",
        "Is a directory",
    ]
    lines = outcome.stderr.splitlines()
    assert len(lines) == 5
    for name, reason, line, document in zip(names[1:6], reasons, lines, documents[1:6], strict=True):
        assert line.startswith("ferryman: ")
        assert line.count(str(pictures[name])) == 1
        assert reason in line
        assert reason in document["error"]
    table = cli("classify", *(pictures[name] for name in names), "--bundle", bundle)
    assert table.status == 1
    assert [f"{pictures[name]} " in table.stdout for name in names] == [True, *[False] * 5, True]


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


# --- failures --------------------------------------------------------------------------------------------------------

# Arguments, in which {m} is the repository and {p} the folder of pictures; status; what the line says.
FAILURES: dict[str, tuple[str, int, str]] = {
    "verify nothing": ("verify {m}/nowhere", 1, "is not a bundle: it has no manifest.json"),
    "verify a name too long": ("verify {m}/" + "x" * 300, 1, "File name too long|is not a bundle"),
    "verify a picture": ("verify {p}/red.png", 1, "is not a bundle"),
    "verify another target": ("verify {m}/toy-detector --target x", 2, "no variant x; it has onnxruntime-cpu-fp32"),
    "certificate on a folder": ("verify {m}/toy-detector --certificate {p}", 1, "can't write .*not a plain file"),
    "certificate below a file": ("verify {m}/toy-detector --certificate {p}/red.png/c", 1, "can't write"),
    "inspect nothing": ("inspect {m}", 1, "is not a bundle"),
    "classify with a detector": (
        "classify {p}/red.png --bundle {m}/toy-detector",
        1,
        "toy-detector is a detection model and can't answer classification requests",
    ),
    "nobody to ask": ("classify {p}/red.png", 2, "give either a bundle .* or --address HOST:PORT"),
    "two to ask": ("classify {p}/red.png --bundle {m} --address a:1 --model x", 2, "give either a bundle"),
    "model without server": ("classify {p}/red.png --bundle {m} --model x", 2, "--address and --model NAME belong"),
    "server without model": ("classify {p}/red.png --address a:1", 2, "--address and --model NAME belong"),
    "target of a server": ("detect {p}/red.png --address a:1 --model x --target y", 2, "--target belongs to a bundle"),
    "version that is none": ("detect {p}/red.png --address a:1 --model x/new", 2, "NAME or NAME/VERSION, got 'x/new'"),
    "drawing of no kind": ("detect {p}/red.png --bundle {m}/toy-detector --draw {p}/x.gif", 2, "ends in .png"),
    "many drawings in a file": (
        "detect {p}/red.png {p}/blue.jpg --bundle {m}/toy-detector --draw {p}/x.png",
        2,
        "several images need a folder",
    ),
    "drawings of one name": (
        "detect {p}/red.png {p}/red.png --bundle {m}/toy-detector --draw {p}/x",
        2,
        "two of the images have the same name",
    ),
    "bench of nothing": ("bench", 2, "give either a bundle"),
    "bench of a server without picture": ("bench --address a:1 --model x", 2, "--address needs --image"),
    "bench with a bad picture": ("bench {m}/toy-detector --image {p}/text.png", 1, "text.png: the 100 bytes are not"),
    "bench with no picture": ("bench {m}/toy-detector --image {p}/nowhere.png", 1, "can't read .*nowhere.png: No such"),
    "serve nothing": ("serve {m}/nowhere --address 127.0.0.1:0", 1, "there is no model repository at"),
    "serve at no address": ("serve {m} --address nowhere", 2, "is not HOST:PORT"),
    "size of nothing": ("export vit-digits -o {m} --size 0x3", 2, "|can't be|needs an optional part"),
}


@pytest.mark.parametrize(("line", "status", "message"), FAILURES.values(), ids=FAILURES)
def test_failures(cli: Cli, copy: Path, pictures: dict[str, Path], line: str, status: int, message: str) -> None:
    if line.startswith("export"):
        pytest.importorskip("torch")
    arguments = [word.format(m=copy, p=pictures["red.png"].parent) for word in line.split()]
    outcome = cli(*arguments, "--json")
    assert outcome.status == status
    assert outcome.complaint.startswith("ferryman: ")
    assert re.search(message, outcome.complaint)
    assert list(outcome.document) == ["error"]
    assert f"ferryman: {outcome.document['error']['message']}" == outcome.complaint
    assert outcome.document["error"]["type"].endswith("Error")


@pytest.mark.parametrize(
    "line",
    [
        "nothing",
        "verify",
        "classify --bundle x",
        "detect a.png --score 2",
        "classify a.png --top-k 0",
        "bench --seconds no",
    ],
)
def test_usage_that_typer_finds_wrong(cli: Cli, line: str) -> None:
    outcome = cli(*line.split())
    assert outcome.status == 2
    assert outcome.stdout == ""
    assert "Error" in outcome.stderr
    assert "--help" in outcome.stderr


@pytest.mark.parametrize("command", ["verify", "inspect", "bench", "serve"])
def test_a_flipped_byte_of_the_model_is_refused(cli: Cli, copy: Path, command: str) -> None:
    flip_a_byte(copy / "toy-detector" / "1" / "model.onnx")
    if command == "serve":
        for other in ("toy-classifier", "toy-embedder"):
            shutil.rmtree(copy / other)
        outcome = finish(spawn("serve", copy, "--address", "127.0.0.1:0", "--json"))
        assert list(outcome.document) == ["error"]
        line = outcome.stderr.splitlines()[-1]
    else:
        outcome = cli(command, copy / "toy-detector")
        line = outcome.complaint
    assert outcome.status == 1
    assert "model.onnx is not the file that was exported" in line
    assert line.startswith("ferryman: ")


def test_no_server_there(cli: Cli, pictures: dict[str, Path]) -> None:
    outcome = cli("classify", pictures["red.png"], "--address", "127.0.0.1:1", "--model", "x", "--json")
    assert outcome.status == 1
    assert "no server answers at 127.0.0.1:1" in outcome.complaint
    assert outcome.document["error"]["type"] == "UnavailableError"


def test_a_model_that_the_server_has_not(cli: Cli, toy_server: str, pictures: dict[str, Path]) -> None:
    outcome = cli("classify", pictures["red.png"], "--address", toy_server, "--model", "vit")
    assert outcome.status == 1
    assert "there is no model 'vit'; this server has toy-classifier" in outcome.complaint


# --- stops -----------------------------------------------------------------------------------------------------------


def _read_until(process: "subprocess.Popen[str]", text: str) -> str:
    assert process.stderr is not None
    read = ""
    for line in process.stderr:
        read += line
        if text in line:
            return read
    raise AssertionError(read)


SIGNALS = [(signal.SIGINT, 130, "ferryman: interrupted"), (signal.SIGTERM, 143, "ferryman: terminated")]


@contextmanager
def _killed(process: "subprocess.Popen[str]") -> Generator["subprocess.Popen[str]", None, None]:
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "status", "line"), SIGNALS, ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("command", ["bench", "verify"])
def test_stopping_in_the_middle(copy: Path, command: str, number: signal.Signals, status: int, line: str) -> None:
    folder = copy / "toy-detector" / "1"
    if command == "verify":
        # Enough samples that the signal comes before the end.
        change_golden(folder, lambda golden: _repeat(golden, 1000))
    process = spawn(command, folder, "--json", *(["--seconds", "60"] if command == "bench" else []))
    before = sorted(str(path) for path in copy.rglob("*"))
    with _killed(process):
        _read_until(process, "- ")
        process.send_signal(number)
        outcome = finish(process)
    assert outcome.status == status
    assert outcome.complaint == line
    assert outcome.stdout == ""
    assert sorted(str(path) for path in copy.rglob("*")) == before


def _repeat(golden: GoldenSamples, times: int) -> GoldenSamples:
    return GoldenSamples(
        golden.names * times,
        {name: np.concatenate([array] * times) for name, array in golden.inputs.items()},
        {name: np.concatenate([array] * times) for name, array in golden.outputs.items()},
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_serving_stops_gracefully(toy_repository: Path, number: signal.Signals) -> None:
    process = spawn("serve", toy_repository, "--address", "127.0.0.1:0", "--json", "--threads", 1)
    with _killed(process):
        assert process.stdout is not None
        head = ""
        while not head.endswith("}\n"):
            head += process.stdout.readline()
        document = json.loads(head)
        assert sorted(document["models"]) == ["toy-classifier", "toy-detector", "toy-embedder"]
        assert re.fullmatch(r"127\.0\.0\.1:\d+", document["address"])
        process.send_signal(number)
        outcome = finish(process)
    assert outcome.status == 0
    assert outcome.stdout == ""
    assert "\x1b" not in outcome.stderr


# --- where the output goes -------------------------------------------------------------------------------------------

OUTPUTS = {
    "a table": ("inspect", "{bundle}"),
    "a document": ("inspect", "{bundle}", "--json"),
    "an error": ("inspect", "nowhere", "--json"),
    "help": ("--help",),
}


@pytest.mark.parametrize("arguments", OUTPUTS.values(), ids=OUTPUTS)
def test_a_reader_that_went_away(toy_repository: Path, arguments: tuple[str, ...]) -> None:
    """As `ferryman ... | head -1`, at its worst: the reader is gone before anything is written."""
    bundle = str(toy_repository / "toy-detector")
    reader, writer = os.pipe()
    process = spawn(*(word.format(bundle=bundle) for word in arguments), stdout=writer)
    os.close(reader)
    os.close(writer)
    _, stderr = process.communicate(timeout=120)
    assert "Traceback" not in stderr
    assert "Exception ignored" not in stderr
    assert len(stderr.splitlines()) == (1 if "nowhere" in arguments else 0)
    assert process.returncode >= 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [OUTPUTS["a table"], OUTPUTS["a document"]], ids=["a table", "a document"])
def test_a_full_disk(toy_repository: Path, arguments: tuple[str, ...]) -> None:
    bundle = str(toy_repository / "toy-detector")
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        outcome = finish(spawn(*(word.format(bundle=bundle) for word in arguments), stdout=full))
    assert outcome.status == 1
    assert outcome.complaint == "ferryman: the operating system refused: No space left on device"
