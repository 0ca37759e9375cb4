"""Several targets in one bundle: each built from the proved graph, proved itself, and what its name says."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from ferryman.bundle import Bundle
from ferryman.errors import ExportError, ParityError
from ferryman.golden import GoldenSamples
from ferryman.parity import TOLERANCES
from ferryman.predictor import Predictor
from ferryman.proof import read_reports
from ferryman.runtimes import find_runtime, why_not
from ferryman.runtimes.openvino import open_core
from ferryman.specs import Target
from ferryman_export import variants
from ferryman_export.build_html import render_build
from ferryman_export.onnx import save_graph
from ferryman_export.passes import free_head
from ferryman_export.pipeline import ExportRequest, export
from ferryman_export.variants.base import Artefact, BuildReport, Workpiece
from ferryman_export.variants.openvino import build_bf16, build_float
from ferryman_models.zoo import pictures_folder
from ferryman_models.zoo.digits import load_digits, load_photographs
from ferryman_models.zoo.scenes import make_digit_picture

openvino = pytest.importorskip("openvino")
TARGETS = ("onnxruntime-cpu-int8", "openvino-cpu-fp32", "openvino-cpu-int8")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of digits for training, of which 40 are held out."""
    folder = tmp_path_factory.mktemp("calibration")
    digits, photographs = load_digits("train"), load_photographs("train")
    random = np.random.default_rng(4)
    for number in range(120):
        picture, _ = make_digit_picture(random, digits, number, photographs, side=36)
        Image.fromarray(picture).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def bundle(calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    request = ExportRequest(
        "vit-digits",
        tmp_path_factory.mktemp("repository"),
        targets=tuple(map(Target.parse, TARGETS)),
        calibration=calibration,
    )
    return export(request)


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ferryman", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", ["openvino-cpu-fp32", "openvino-cpu-int8"])
def test_openvino_reads_attention_s_keys_as_they_lie(bundle: Bundle, target: str) -> None:
    path = bundle.path / "variants" / target / "model.xml"
    products = [node for node in open_core().read_model(path).get_ops() if node.get_type_name() == "MatMul"]
    attention = [node for node in products if len(node.get_output_partial_shape(0)) == 4]
    turned = sum(bool(node.get_attributes()["transpose_b"]) for node in attention)
    assert turned == 6  # a product of queries and keys a layer


def test_every_variant_is_what_its_name_says(bundle: Bundle) -> None:
    assert [str(variant.target) for variant in bundle.manifest.variants] == ["onnxruntime-cpu-fp32", *TARGETS]
    for report in read_reports(bundle):
        assert report.passed
        assert report.attestation is not None
        assert report.attestation.share(report.target.rpartition("-")[2]) >= 0.9
        assert report.tolerance == bundle.manifest.tolerances[report.target.rpartition("-")[2]]
    folder = bundle.path / "variants" / "openvino-cpu-int8"
    assert {path.name for path in folder.iterdir()} == {
        *("model.xml", "model.bin", "build.json", "build.html", "parity.html")
    }
    # The weights really are stored in a byte each.
    fp32 = (bundle.path / "variants" / "openvino-cpu-fp32" / "model.bin").stat().st_size
    assert (folder / "model.bin").stat().st_size < fp32 / 3
    assert not list(bundle.path.parents[1].glob(".*"))  # nothing unfinished stays


def test_how_it_was_calibrated_is_told(bundle: Bundle, calibration: Path) -> None:
    path = bundle.path / "variants" / "openvino-cpu-int8" / "build.json"
    report = BuildReport.model_validate_json(path.read_bytes())
    assert report.calibration is not None
    assert (report.calibration.pictures, report.calibration.held_out) == (120, 40)
    assert report.calibration.folder == calibration.name
    assert report.notes == ()
    errors = [trial.error for trial in report.trials]
    assert errors == sorted(errors)
    assert {trial.plan.method for trial in report.trials} == {"minmax", "mean", "percentile", "entropy"}
    assert 0 < errors[0] < 0.2
    assert report.islands is not None
    assert min(block.error for block in report.islands.blocks) < errors[0] / 8  # not what bf16 adds to each
    assert report.islands.curve[-1].passed
    assert report.plan in [trial.plan for trial in report.trials]
    assert path.with_suffix(".html").read_text(encoding="utf-8") == render_build("vit-digits", report)
    shown = run("inspect", bundle.path).stdout
    assert f"how openvino-cpu-int8 was built is shown in {path.with_suffix('.html')}" in shown
    assert "how openvino-cpu-fp32" not in shown  # it has no islands to show


@pytest.mark.parametrize("target", TARGETS)
def test_it_reads_the_demo_pictures(bundle: Bundle, target: str) -> None:
    """As fp32 does, which reads them all; of two digits that it can hardly tell apart, as parity counts, either."""
    margin = bundle.manifest.tolerances[Target.parse(target).precision].tie_margin
    with Predictor(bundle, target) as predictor, Predictor(bundle, "onnxruntime-cpu-fp32") as full:
        for path in sorted(pictures_folder("classification").iterdir()):
            (reference,), _ = full.classify([path.read_bytes()])
            (answer,), _ = predictor.classify([path.read_bytes()])
            best = reference.predictions[0]
            assert best.label == path.stem.removeprefix("digit-")
            ties = {one.label for one in reference.predictions if best.score - one.score <= margin}
            assert answer.predictions[0].label in ties


def test_a_head_as_a_sum_answers_the_same(bundle: Bundle, tmp_path: Path) -> None:
    graph, golden = bundle.file("model.onnx"), bundle.golden()
    model, names = free_head(onnx.load(graph))
    assert names == ("model.head",)
    target = Target.parse("onnxruntime-cpu-fp32")
    with find_runtime(target).load(save_graph(model, tmp_path / "head.onnx"), target, bundle.spec) as session:
        answers = session.run(golden.inputs)
    for name, reference in golden.outputs.items():
        np.testing.assert_allclose(answers[name], reference, atol=1e-4)


def test_bf16_out_of_tolerance_keeps_head_and_residual_stream(bundle: Bundle, tmp_path: Path) -> None:
    """Where that is enough: on a sample whose largest error it lowers, with the limit between the two errors."""
    target, golden = Target.parse("openvino-cpu-bf16"), bundle.golden()
    if (why := why_not(target)) is not None:
        pytest.skip(why)
    graph = bundle.file("model.onnx")
    head, _ = free_head(onnx.load(graph))
    errors: list[NDArray[np.float32]] = []  # of each sample's logits, the largest
    for path in (graph, save_graph(head, tmp_path / "head.onnx")):
        with find_runtime(target).load(path, target, bundle.spec) as session:
            errors.append(np.abs(session.run(golden.inputs)["logits"] - golden.outputs["logits"]).max(axis=1))
    index = int((errors[0] - errors[1]).argmax())
    plain, less = float(errors[0][index]), float(errors[1][index])
    outputs = {name: array[[index]] for name, array in golden.outputs.items()}
    one = GoldenSamples((golden.names[index],), golden.batch([index]), outputs)
    piece = Workpiece(graph, bundle.spec, one, None, lambda stage, done, total: None)

    def build(limit: float) -> tuple[tuple[str, ...], dict[str, dict[str, int]]]:
        """What is noted of the variant, and the operators that it runs."""
        tolerance = TOLERANCES["bf16"].model_copy(update={"max_abs": {"logits": limit}})
        artefact = build_bf16(piece, target, tolerance, tmp_path / f"{limit}")
        with find_runtime(target).load(artefact.path, target, bundle.spec) as session:
            return artefact.report.notes, session.attest(one.inputs).operators

    assert build(2 * plain)[0] == ()
    (note,), operators = build((plain + less) / 2)
    assert note.startswith("in fp32: model.head and the residual stream")
    assert operators["Reduce"] == {"fp32": 2}  # the mean of the patches, and the head
    assert operators["FullyConnected"] == {"bf16": 36}  # six a layer: nothing else is given back
    assert build(less / 2)[0] == ()  # no help, so that the proof refuses it as it is


def test_verify_proves_them_all(bundle: Bundle) -> None:
    result = run("verify", bundle.path, "--json")
    assert result.returncode == 0, result.stderr
    proved = [certificate["reports"][0]["target"] for certificate in json.loads(result.stdout)["certificates"]]
    assert proved == ["onnxruntime-cpu-fp32", *TARGETS]


def test_fp32_under_the_name_of_int8_fails(calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(variants.RECIPES, "openvino-cpu-int8", build_float)
    request = ExportRequest(
        "vit-digits", tmp_path / "r", targets=(Target.parse("openvino-cpu-int8"),), calibration=calibration
    )
    with pytest.raises(ParityError, match=r"0% of its matrix products with weights run in int8 .*90% are due"):
        export(request)
    assert not (tmp_path / "r").exists()


@pytest.mark.nightly
def test_interrupted_it_goes_on(calibration: Path, tmp_path: Path) -> None:
    """Ctrl-C while the last variant is built: the bundle is absent, and what was finished is not done again."""
    command = ["export", "vit-digits", "-o", str(tmp_path / "r"), "--calibration", str(calibration), "--json"]
    command += ["--target", "openvino-cpu-fp32", "--target", "openvino-cpu-int8"]
    whole = [sys.executable, "-m", "ferryman", *command]
    with subprocess.Popen(whole, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "openvino-cpu-int8: calibrate" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
        assert process.wait() == 130
    assert "Traceback" not in rest
    assert [path.name for path in (tmp_path / "r").iterdir()] == [".vit-digits.unfinished"]
    again = run(*command)
    assert again.returncode == 0, again.stderr
    assert "openvino-cpu-fp32: finished before" in again.stderr
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["vit-digits"]
    assert run("verify", tmp_path / "r" / "vit-digits", "--target", "openvino-cpu-fp32").returncode == 0


@pytest.mark.parametrize(
    "cut", [pytest.param(False, id="whole"), pytest.param(True, id="cut", marks=pytest.mark.nightly)]
)
def test_what_the_shelf_holds_is_taken_only_whole(
    cut: bool, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second variant fails; the first is built anew if its file on the shelf was cut meanwhile."""

    def fail(*_: object) -> Artefact:
        raise ExportError("not today")

    first, second = (Target.parse(f"openvino-cpu-{precision}") for precision in ("fp32", "int8"))
    request = ExportRequest("vit-digits", tmp_path / "r", targets=(first,), calibration=calibration)
    monkeypatch.setitem(variants.RECIPES, "openvino-cpu-int8", fail)
    with pytest.raises(ExportError, match="not today"):
        export(replace(request, targets=(first, second)))
    (kept,) = (tmp_path / "r" / ".vit-digits.unfinished").iterdir()
    whole = (kept / "model.bin").read_bytes()
    if cut:
        (kept / "model.bin").write_bytes(whole[: len(whole) // 2])
    stages: list[str] = []
    bundle = export(request, lambda stage, done, total: stages.append(stage))
    assert any(f"{first}: finished before" in stage for stage in stages) is not cut
    assert any(f"{first}: build" in stage for stage in stages) is cut
    assert (bundle.path / "variants" / "openvino-cpu-fp32" / "model.bin").stat().st_size == len(whole)
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["vit-digits"]


WRONG: dict[str, tuple[list[str], int, str]] = {
    "no pictures": (["--target", "openvino-cpu-int8"], 2, "name a folder of some hundred with --calibration"),
    "a misspelt target": (["--target", "openvino-cpu-int"], 2, "did you mean openvino-cpu-int8"),
    "an empty folder": (["--target", "all-cpu", "--calibration", "{empty}"], 2, "holds no picture"),
    "a few pictures": (["--target", "all-cpu", "--calibration", "{few}"], 2, "holds 3 pictures, too few to calibrate"),
    "a broken picture": (["--target", "all-cpu", "--calibration", "{broken}"], 1, "077.png"),
}


@pytest.mark.parametrize(("options", "status", "message"), WRONG.values(), ids=WRONG)
def test_what_can_not_be_built(
    options: list[str], status: int, message: str, calibration: Path, tmp_path: Path
) -> None:
    folders = {name: tmp_path / name for name in ("empty", "few", "broken")}
    folders["empty"].mkdir()
    folders["few"].mkdir()
    for path in sorted(calibration.iterdir())[:3]:
        shutil.copy(path, folders["few"])
    shutil.copytree(calibration, folders["broken"])
    (folders["broken"] / "077.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    result = run("export", "vit-digits", "-o", tmp_path / "r", *(option.format(**folders) for option in options))
    assert result.returncode == status, result.stderr
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "r").exists()
