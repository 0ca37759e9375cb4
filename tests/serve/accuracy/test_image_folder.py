"""Right answers to pictures in a folder a class."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ferryman.accuracy import measure_accuracy, read_truth
from ferryman.accuracy.image_folder import LabelledPictures
from ferryman.accuracy.scores import TopScores
from ferryman.bundle import Bundle
from ferryman.parity import TOLERANCES
from ferryman.preprocess import preprocess_image
from ferryman.specs import PreprocessSpec, Target, classification_spec

from ..commands.outcome import Cli
from ..toy import LABELS, SPECS, TARGET, add_toy_bundle, make_picture, make_pictures, reseal, toy_graph, toy_reference

OTHER = Target.parse("onnxruntime-cpu-int8")
FOLDERS = ("red", "Green", "BLUE", "dark/deeper")  # case is the user's, and folders may be nested


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A classifier with a second variant that sees red everywhere it can, which no proof would pass."""
    folder = add_toy_bundle(tmp_path / "models", "toy-classifier").path
    graph = toy_graph("toy-classifier")
    (bias,) = (one for one in graph.graph.initializer if one.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(np.array([2, 0, 0, 1], dtype=np.float32), "bias"))
    place = folder / "variants" / str(OTHER) / "model.onnx"
    place.parent.mkdir(parents=True)
    onnx.save(graph, place)
    first = Bundle.open(folder).manifest.variants[0]
    second = first.model_copy(update={"target": OTHER, "path": place.relative_to(folder).as_posix()})
    tolerances = {name: TOLERANCES[name] for name in ("fp32", "int8")}
    reseal(folder, variants=(first, second), tolerances=tolerances)
    return Bundle.open(folder)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Pictures of all colours, a quarter in each class's folder: most are in a wrong one."""
    folder = tmp_path / "labelled"
    for number, data in enumerate(make_pictures(60)):
        path = folder / FOLDERS[number % 4] / f"{number:02}.PNG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "red" / "._00.png").write_bytes(b"what macOS leaves behind")
    (folder / "red" / "notes.txt").write_text("not a picture")
    (folder / ".cache").mkdir()
    return folder


def expected_classes() -> list[int]:
    """The reference's answers to `labelled`, by the pictures' numbers."""
    canvases = [preprocess_image(data, SPECS["toy-classifier"].preprocess)[0] for data in make_pictures(60)]
    return [int(best) for best in toy_reference("toy-classifier", {"image": np.stack(canvases)})["logits"].argmax(1)]


def test_right_answers_of_each_variant(bundle: Bundle, labelled: Path) -> None:
    told: list[tuple[str, int, int]] = []
    truth = read_truth(labelled, bundle.spec)
    report = measure_accuracy(bundle, [OTHER], truth, progress=lambda *step: told.append(step))
    assert (report.data, report.pictures, report.notes) == ("labelled", 60, ())
    assert [one.target for one in report.variants] == [str(TARGET), str(OTHER)]  # the canonical one is always there
    best = expected_classes()
    right = [found == number % 4 for number, found in enumerate(best)]
    first, second = report.variants
    assert isinstance(first.scores, TopScores)
    assert isinstance(second.scores, TopScores)
    assert (first.scores.right, first.scores.top1, first.agreement) == (sum(right), sum(right) / 60, 1)
    assert 10 < sum(right) < 50
    assert first.scores.top5 is None  # of four classes
    assert first.scores.per_class == {label: sum(right[index::4]) / 15 for index, label in enumerate(LABELS)}
    assert second.agreement is not None
    assert 0.2 < second.agreement < 0.9
    assert second.scores.per_class["red"] > first.scores.per_class["red"]
    assert told.count((f"answer the labelled pictures with {OTHER}", 59, 60)) == 1


def test_the_digest_is_of_pictures_and_labels(bundle: Bundle, labelled: Path) -> None:
    before = read_truth(labelled, bundle.spec).sha256
    assert read_truth(labelled, bundle.spec).sha256 == before
    (labelled / "red" / "00.PNG").rename(labelled / "Green" / "00.PNG")
    assert read_truth(labelled, bundle.spec).sha256 != before


def test_verify_counts(cli: Cli, bundle: Bundle, labelled: Path, tmp_path: Path) -> None:
    arguments = ("verify", bundle.path, "--target", TARGET, "--accuracy", labelled, "--certificates", tmp_path / "c")
    outcome = cli(*arguments, "--json")
    assert outcome.status == 0
    assert outcome.document["accuracy"]["variants"][0]["scores"]["right"] == sum(
        found == number % 4 for number, found in enumerate(expected_classes())
    )
    text = cli(*arguments).stdout
    assert "top-1 of the 60 labelled pictures of labelled" in text
    assert "accuracy" not in cli(*arguments[:4], "--json").document
    # A variant that is out of tolerance fails, and how much worse it answers is told before.
    outcome = cli("verify", bundle.path, "--accuracy", labelled)
    assert outcome.status == 3
    (row,) = (line.split() for line in outcome.stdout.splitlines() if line.startswith(f"{OTHER}  "))
    assert 0.2 < float(row[-1].rstrip("%")) / 100 < 0.9


def test_advice_counts(cli: Cli, bundle: Bundle, labelled: Path) -> None:
    arguments = ("advise", bundle.path, "--target", OTHER, "--seconds", 0.1, "--accuracy", labelled)
    document = cli(*arguments, "--json").document
    assert [one["target"] for one in document["variants"]] == [str(OTHER)]
    counted = {one["target"]: one["scores"]["top1"] for one in document["accuracy"]["variants"]}
    assert list(counted) == [str(TARGET), str(OTHER)]
    text = cli(*arguments).stdout
    (header, row, *_) = text.splitlines()[1:]
    assert "top-1" in header
    assert row.split()[-1] == f"{counted[str(OTHER)]:.3f}"


def test_wordnet_folders_in_imagenets_order(tmp_path: Path) -> None:
    """ImageNet's own folders, for a model whose labels are words: one a class, in the order of their ids."""
    spec = classification_spec(
        PreprocessSpec(size=(32, 32), fit="stretch"), ("tench, Tinca tinca", "goldfish", "shark")
    )
    for name in ("n01443537", "n01440764", "n01484850"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}_1.jpeg").write_bytes(make_picture((9, 9, 9), kind="JPEG"))
    truth = read_truth(tmp_path, spec)
    assert [path.parent.name for path in truth.paths] == ["n01440764", "n01443537", "n01484850"]
    assert isinstance(truth, LabelledPictures)
    assert truth.class_ids == (0, 1, 2)
    assert truth.notes == (
        "the labels hold no WordNet ids: the folders are taken in the order of theirs, as ImageNet's",
    )
    shutil.rmtree(tmp_path / "n01484850")
    with pytest.raises(ValueError, match="no class of the model: n01440764, n01443537"):
        read_truth(tmp_path, spec)


def write(folder: Path, *names: str, data: bytes = make_picture((200, 20, 20))) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_classes_without_pictures_are_noted(toy_repository: Path, tmp_path: Path) -> None:
    write(tmp_path, "red/1.png")
    truth = read_truth(tmp_path, Bundle.open(toy_repository / "toy-classifier").spec)
    assert truth.notes == ("3 of the model's 4 classes have no pictures",)


WRONG: dict[str, tuple[list[str], int, str]] = {
    "nowhere": ([], 2, "there is no {folder}; --accuracy takes a folder of labelled pictures"),
    "no folders": (["1.png"], 2, "{folder} holds no folders; pictures belong in one a class, such as {folder}/red"),
    "an unknown folder": (["red/1.png", "gren/1.png"], 2, "no class of the model: gren (nearest label: green)"),
    "the folder above": (["test/red/1.png", "train/red/1.png"], 2, "test, train; did you mean {folder}/test?"),
    "an empty class": (["red/1.png", "green/1.txt"], 2, "{folder}/green holds no picture (.jpg, .jpeg, .png"),
    "a broken picture": (["red/1.png", "red/broken.jpg"], 1, "{folder}/red/broken.jpg: the 8 bytes are not a JPEG"),
}


@pytest.mark.parametrize("command", ["verify", "advise"])
@pytest.mark.parametrize(("files", "status", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_before_anything_is_measured(
    command: str, files: list[str], status: int, message: str, cli: Cli, toy_repository: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "labelled"
    write(folder, *files)
    write(folder, *(name for name in files if "broken" in name), data=b"no photo")
    outcome = cli(command, toy_repository / "toy-classifier", "--accuracy", folder)
    assert (outcome.status, outcome.stdout) == (status, "")
    assert message.format(folder=folder) in outcome.complaint
    assert f"compare {TARGET}" not in outcome.stderr


def test_embedders_have_no_accuracy(cli: Cli, toy_repository: Path, tmp_path: Path) -> None:
    outcome = cli("verify", toy_repository / "toy-embedder", "--accuracy", tmp_path)
    assert outcome.status == 1
    assert outcome.complaint.endswith("accuracy is measured of classifiers and detectors, not of embedding models")
