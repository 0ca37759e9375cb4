"""What goes wrong is one line, one document where it was asked for, and the right exit status."""

import re
import shutil
from pathlib import Path

import pytest

from ..toy import flip_a_byte
from .outcome import Cli, finish, spawn

# Arguments, in which {m} is the repository, {p} the folder of pictures and {s} a server; status; what the line says.
FAILURES: dict[str, tuple[str, int, str]] = {
    "verify nothing": ("verify {m}/nowhere", 1, "is not a bundle: it has no manifest.json"),
    "verify a name too long": ("verify {m}/" + "x" * 300, 1, "File name too long|is not a bundle"),
    "verify a picture": ("verify {p}/red.png", 1, "is not a bundle"),
    "verify another target": ("verify {m}/toy-detector --target x", 2, "no variant x; it has onnxruntime-cpu-fp32$"),
    "certificates below a file": ("verify {m}/toy-detector --certificates {p}/red.png/c", 1, "can't write"),
    "inspect a repository": ("inspect {m}", 1, "is a model repository; inspect one of its models: .*toy-classifier, "),
    "inspect another folder": (
        "inspect {p}",
        1,
        "is neither a bundle, which has a manifest.json, nor a checkpoint",
    ),
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
    "bench another target": ("bench {m}/toy-detector --target onnxruntime-cpu-fp31", 2, "did you mean onnxruntime-"),
    "inspect another target": ("inspect {m}/toy-detector --target onnx-cpu-fp32", 2, "did you mean onnxruntime-cpu-"),
    "target of no bundle": ("inspect vit-digits --target onnxruntime-cpu-fp32", 2, "vit-digits is none"),
    "advise on nothing": ("advise {m}/nowhere", 1, "is not a bundle: it has no manifest.json"),
    "advise in a JPEG": ("advise {m}/toy-detector --plot {p}/x.jpg", 2, "--plot writes PNG: .*x.jpg must end in .png"),
    "serve a target unknown": (
        "serve {m} --target openvino-cpu-fp23",
        2,
        "that this version knows; did you mean openvino-cpu-fp32",
    ),
    "serve nothing": ("serve {m}/nowhere --address 127.0.0.1:0", 1, "there is no model repository at"),
    "serve at no address": ("serve {m} --address nowhere", 2, "is not HOST:PORT"),
    "serve at a taken port": ("serve {m} --address {s}", 1, "can't listen on .*: Address already in use"),
    "serve at no host": ("serve {m} --address a..b:8001", 1, "can't listen on a..b:8001: .*choose another address"),
    "serve with no settings": ("serve {m} --config {p}/nowhere.toml", 1, "can't read .*nowhere.toml: No such file"),
    "serve with a picture": ("serve {m} --config {p}/red.png", 2, "red.png is not TOML: "),
    "serve with text": ("serve {m} --config {p}/text.png", 2, "text.png is not TOML: "),
    "size of nothing": ("export vit-digits -o {m} --size 0x3", 2, "--size must be HxW in pixels"),
}


@pytest.mark.parametrize(("line", "status", "message"), FAILURES.values(), ids=FAILURES)
def test_failures(
    cli: Cli, copy: Path, pictures: dict[str, Path], toy_server: str, line: str, status: int, message: str
) -> None:
    if line.startswith("export"):
        pytest.importorskip("torch")
    arguments = [word.format(m=copy, p=pictures["red.png"].parent, s=toy_server) for word in line.split()]
    outcome = cli(*arguments, "--json")
    assert outcome.status == status
    assert outcome.complaint.startswith("ferryman: ")
    assert re.search(message, outcome.complaint)
    assert list(outcome.document) == ["error"]
    assert f"ferryman: {outcome.document['error']['message']}" == outcome.complaint
    assert outcome.document["error"]["type"].endswith("Error")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nothing", "No such command 'nothing'; `ferryman --help` says"),
        ("verify", "Missing argument 'BUNDLE'; `ferryman verify --help` says"),
        ("classify --bundle x", "Missing argument 'IMAGE...'"),
        ("detect a.png --score 2", "'--score': "),
        ("classify a.png --top-k 0", "'--top-k': "),
        ("bench --seconds no", "'--seconds': "),
        ("verify x --threads 1025", "'--threads': Input should be less than or equal to 1024"),
        (f"advise x --streams {10**20}", "'--streams': Input should be less than or equal to 1024"),
    ],
)
def test_usage_that_typer_finds_wrong(cli: Cli, line: str, message: str) -> None:
    outcome = cli(*line.split(), "--json")
    assert outcome.status == 2
    assert message in outcome.complaint
    assert outcome.document["error"]["type"] == "UsageError"
    assert cli(*line.split()).stdout == ""


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("max_batches = 3", r"there is no setting max_batches; did you mean max_batch\?"),
        ("max_batch = 0", "max_batch: .* greater than or equal to 1"),
        ("threads = 1025", "threads: .* less than or equal to 1024"),
        ("streams = 1_000_000", "streams: .* less than or equal to 1024"),
        ("grace_seconds = 'long'", "grace_seconds: .* valid number"),
        ("queue_limit = 5\nmax_images_per_request = 6", "max_images_per_request 6 is above queue_limit 5"),
        ("address = 'nowhere'", "'nowhere' is not HOST:PORT"),
    ],
    ids=["unknown", "too small", "many threads", "many streams", "another type", "together", "address"],
)
def test_wrong_settings(cli: Cli, toy_repository: Path, tmp_path: Path, settings: str, message: str) -> None:
    (tmp_path / "ferryman.toml").write_text(settings, encoding="utf-8")
    outcome = cli("serve", toy_repository, "--config", tmp_path / "ferryman.toml")
    assert outcome.status == 2
    assert re.search(message, outcome.complaint)
