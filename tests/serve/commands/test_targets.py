"""Commands on a bundle of several variants, of which one can't run anywhere here."""

import json
import platform
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from ferryman.bench import advice_plot
from ferryman.bundle import Bundle
from ferryman.cli import app
from ferryman.engines import Host
from ferryman.runtimes import RUNTIMES, why_not
from ferryman.runtimes.providers import PROVIDERS
from ferryman.runtimes.tensorrt import TensorRt
from ferryman.specs import Target

from ..toy import TARGET, add_toy_bundle, flip_a_byte, reseal
from .outcome import Cli

OTHER = Target.parse("openvino-cpu-fp32")
NOWHERE = Target.parse("onnxruntime-fridge-fp32")
ENGINE = Target.parse("tensorrt-gpu-fp32")
WHY = f"this version of Ferryman drives onnxruntime on {', '.join(PROVIDERS)}"


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier's bundle whose first variant takes a thousand times as long as its second. Not to be written to."""
    why = why_not(OTHER)
    if why is not None:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("several")
    return add_toy_bundle(folder, "toy-classifier", targets=(TARGET, NOWHERE, OTHER), slow=TARGET).path


def test_advice_on_variants_that_differ(cli: Cli, both: Path, tmp_path: Path) -> None:
    picture = tmp_path / "speed.png"
    outcome = cli("advise", both, "--seconds", 0.6, "--threads", 1, "--plot", picture, "--json")
    assert outcome.status == 0
    document = outcome.document
    slow, fast = document["variants"]
    assert (slow["target"], fast["target"]) == (str(TARGET), str(OTHER))
    assert slow["ratio"] == {"value": 1, "low": 1, "high": 1}
    assert 0 < fast["ratio"]["low"] <= fast["ratio"]["value"] <= fast["ratio"]["high"]
    assert document["recommended"] in document["front"]
    assert document["reasons"][0].startswith(f"Use {document['recommended']}: ")
    assert document["can_not_run"] == {str(NOWHERE): WHY}
    assert document["settings"] == {"threads": 1, "streams": None, "hint": "latency"}
    for one in (slow, fast):
        proof = one["proof"]
        assert (proof["measured"], proof["passed"], proof["top1_agreement"]) == ("here", True, 1)
        assert 0 <= proof["error"] <= 1e-4
        assert one["runs"] >= document["rounds"] > 1
        assert one["median_ms"] > 0
        assert one["load_s"] > 0
    bundle = Bundle.open(both)
    assert fast["size_bytes"] == bundle.file("model.onnx").stat().st_size
    assert slow["size_bytes"] > 1024 * 1024 * 4  # its own file's
    with Image.open(picture) as drawn:
        assert (drawn.format, len(drawn.getcolors(1 << 20) or ()) > 10) == ("PNG", True)
    text = cli("advise", both, "--seconds", 0.1, "--target", TARGET).stdout
    assert f"\nUse {TARGET}: it is the only variant that was measured" in text


def test_advice_without_a_certificate(cli: Cli, both: Path, tmp_path: Path) -> None:
    """The export's figures stand in, and the table says so."""
    text = cli("advise", both, "--seconds", 0.1, "--certificates", tmp_path).stdout
    assert text.count("at export") == 2
    assert f"{NOWHERE} can't run here: {WHY}" in text


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["a table", "a document"])
def test_a_picture_that_can_not_be_written(cli: Cli, both: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """What was measured is not lost with it, and the document stays the only one."""
    (tmp_path / "file").touch()
    outcome = cli("advise", both, "--seconds", 0.1, "--target", TARGET, "--plot", tmp_path / "file" / "x.png", *options)
    assert (outcome.status, outcome.complaint.startswith("ferryman: can't write")) == (1, True)
    assert "drawn" not in outcome.stdout
    reasons = outcome.document["reasons"] if options else outcome.stdout.splitlines()
    assert f"Use {TARGET}: it is the only variant that was measured" in reasons


def test_nothing_to_recommend(cli: Cli, both: Path, tmp_path: Path) -> None:
    """The reason begins with the target, which is written as it is; no picture is drawn."""
    folder = shutil.copytree(both, tmp_path / "toy-classifier" / "1")
    shutil.rmtree(folder / "certificates")
    (folder / "parity.json").write_text('{"reports": []}', encoding="utf-8")
    reseal(folder)
    text = cli("advise", folder, "--seconds", 0.1, "--target", TARGET, "--plot", tmp_path / "x.png").stdout
    assert f"\n{TARGET} has no proof that it answers like PyTorch" in text
    assert "nothing is drawn" in text
    assert not (tmp_path / "x.png").exists()


def test_a_picture_without_matplotlib(cli: Cli, both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said before anything is measured."""
    monkeypatch.setattr(advice_plot, "find_spec", lambda name: None)
    outcome = cli("advise", both, "--plot", tmp_path / "speed.png")
    assert (outcome.status, outcome.stderr.count("\n")) == (1, 1)
    assert outcome.complaint.endswith("install it with: pip install 'ferryman[plot]'")


def test_verify_proves_what_can_run(cli: Cli, both: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(shutil.copytree(both, tmp_path / "toy-classifier" / "1"))
    shutil.rmtree(bundle.path / "certificates")
    outcome = cli("verify", bundle.path, "--json")
    assert outcome.status == 0
    assert [one["reports"][0]["target"] for one in outcome.document["certificates"]] == [str(TARGET), str(OTHER)]
    assert outcome.document["can_not_run"] == {str(NOWHERE): WHY}
    places = sorted(path.name for path in (bundle.path / "certificates").iterdir())
    assert places == [f"{TARGET}.json", f"{OTHER}.json"]
    shutil.rmtree(bundle.path / "certificates")
    assert cli("verify", bundle.path, "--target", OTHER).status == 0
    assert [path.name for path in (bundle.path / "certificates").iterdir()] == [f"{OTHER}.json"]
    alone = cli("verify", bundle.path, "--target", NOWHERE)
    assert (alone.status, alone.complaint) == (1, f"ferryman: {NOWHERE} can't run here: {WHY}")


def test_verify_where_nothing_can_run(cli: Cli, tmp_path: Path) -> None:
    bundle = add_toy_bundle(tmp_path, "toy-detector", targets=(NOWHERE,))
    for command in ("verify", "advise"):
        outcome = cli(command, bundle.path)
        assert outcome.status == 1
        assert outcome.complaint.endswith(f"no variant of {bundle.path} can run here: {NOWHERE}: {WHY}")


@pytest.fixture
def unbuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with a variant for a GPU that is there, of which no engine is built yet."""
    folder = add_toy_bundle(tmp_path, "toy-classifier", targets=(TARGET, ENGINE), slow=ENGINE).path
    monkeypatch.setattr(TensorRt, "why_not", lambda self, target: None)
    monkeypatch.setattr(TensorRt, "host", lambda self: Host(runtime="tensorrt 11", capability="8.9", machine="x86_64"))
    monkeypatch.setattr(TensorRt, "open", lambda self: None)
    return folder


@pytest.mark.parametrize("command", [("verify",), ("advise", "--seconds", 0.1)], ids=["verify", "advise"])
def test_a_variant_without_its_engine_is_left_out(cli: Cli, unbuilt: Path, command: tuple[object, ...]) -> None:
    """The others are gone on with; the one that is named is an error."""
    name, *options = command
    build = f"ferryman build {unbuilt} --target {ENGINE}"
    outcome = cli(name, unbuilt, *options, "--json")
    assert outcome.status == 0
    assert list(outcome.document["can_not_run"]) == [str(ENGINE)]
    assert outcome.document["can_not_run"][str(ENGINE)].endswith(f"there is none; build it here with: {build}")
    text = cli(name, unbuilt, *options).stdout
    assert f"{ENGINE} can't run here: " in text
    assert build in text
    for named in ([ENGINE], [TARGET, ENGINE] if name == "advise" else [ENGINE]):
        alone = cli(name, unbuilt, *options, *(part for one in named for part in ("--target", one)))
        assert (alone.status, alone.complaint.endswith(build)) == (1, True)


@pytest.mark.parametrize("command", ["verify", "advise"])
def test_nothing_but_a_variant_without_its_engine(
    cli: Cli, unbuilt: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RUNTIMES["onnxruntime"], "missing", lambda: "pip install it")
    outcome = cli(command, unbuilt)
    assert outcome.status == 1
    assert f"no variant of {unbuilt} can run here: " in outcome.complaint
    assert f"{ENGINE}: can't load " in outcome.complaint
    assert f"{TARGET}: pip install it" in outcome.complaint


def test_every_command_on_a_bundle_takes_a_target(cli: Cli) -> None:
    for name in (one.callback.__name__ for one in app.registered_commands if one.callback is not None):
        assert ("--target" in cli(name, "--help").stdout) == (
            name not in ("demo", "doctor", "health", "token", "top")
        ), name


def test_inspect_lists_every_variant(cli: Cli, both: Path) -> None:
    text = cli("inspect", both).stdout
    for target, size in ((TARGET, "4.2 MB"), (OTHER, "0.0 MB")):
        (line,) = (line for line in text.splitlines() if line.startswith("variant") and str(target) in line)
        assert size in line
        assert "matrix products with weights: " in line
        assert " in fp32" in line
    (line,) = (line for line in text.splitlines() if line.startswith("variant") and str(NOWHERE) in line)
    assert "matrix products" not in line  # it was never run
    one = cli("inspect", both, "--target", OTHER)
    assert str(TARGET) not in one.stdout
    assert [report["target"] for report in cli("inspect", both, "--target", OTHER, "--json").document["parity"]] == [
        str(OTHER)
    ]


def test_bench_of_two(cli: Cli, both: Path) -> None:
    arguments = ("bench", both, "--target", TARGET, "--target", OTHER, "--seconds", 0.6, "--threads", 1)
    document = cli(*arguments, "--json").document
    assert [run["name"] for run in document["runs"]] == [str(TARGET), str(OTHER)]
    assert all(run["figures"]["stages_ms"]["compute"] > 0 for run in document["runs"])
    assert document["ratios"][str(OTHER)]["low"] > 1  # the first computes a thousand times as much
    text = cli(*arguments).stdout
    assert re.search(rf"^{OTHER} is \d+\.\d\d times as fast \(.*\) as {TARGET}$", text, re.MULTILINE)


def test_doctor_lists_targets(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    runtimes = {one["runtime"]: one for one in cli("doctor", "--json").document["runtimes"]}
    assert runtimes["onnxruntime"]["targets"][str(TARGET)] is None
    assert set(runtimes["openvino"]["targets"]) >= {str(OTHER), "openvino-npu-int8"}
    assert f"{TARGET}  " in cli("doctor").stdout
    monkeypatch.setattr(RUNTIMES["openvino"], "missing", lambda: "pip install it")
    runtimes = {one["runtime"]: one for one in cli("doctor", "--json").document["runtimes"]}
    assert set(runtimes["openvino"]["targets"].values()) == {"pip install it"}
    text = cli("doctor").stdout
    for runtime in RUNTIMES.values():  # those of a runtime that is missing too
        for target in runtime.targets():
            (line,) = (line for line in text.splitlines() if line.strip().startswith(f"{target} "))
            assert ("can't run here: " in line) == (runtime.why_not(target) is not None)


def test_doctor_on_arm(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row of that processor runs where the others of the CPU do."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    document = cli("doctor", "--json").document
    targets = {one["runtime"]: one["targets"] for one in document["runtimes"]}["onnxruntime"]
    assert document["device"]["machine"] == "aarch64"
    assert targets["onnxruntime-arm64-int8"] is None
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    targets = {one["runtime"]: one["targets"] for one in cli("doctor", "--json").document["runtimes"]}["onnxruntime"]
    assert targets["onnxruntime-arm64-int8"] == "it is for processors called aarch64, and this one is riscv64"


def test_a_processor_without_bf16(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO would run the variant in fp32, slowly and under a wrong name."""
    pytest.importorskip("openvino")

    class Core:
        available_devices = ("CPU",)

        def get_property(self, device: str, name: str) -> list[str]:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP32", "INT8", "BIN"]

    monkeypatch.setattr("ferryman.runtimes.openvino.open_core", Core)
    targets = {one["runtime"]: one["targets"] for one in cli("doctor", "--json").document["runtimes"]}["openvino"]
    assert targets["openvino-cpu-bf16"] == "this CPU has no bf16; OpenVINO would run it in fp32 without a word"
    assert (targets["openvino-cpu-fp32"], targets["openvino-cpu-int8"]) == (None, None)
    assert targets["openvino-gpu-fp16"] == "openvino finds no such device here, only cpu"


def test_verify_tells_of_all_before_it_fails(cli: Cli, both: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(both, tmp_path / "toy-classifier" / "1")
    flip_a_byte(folder / "model.onnx")
    assert "is not the file that was exported" in cli("verify", folder).complaint
    place = shutil.copytree(both, tmp_path / "toy-classifier" / "2")
    facts = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    facts["tolerances"]["fp32"]["max_abs"]["probabilities"] = 0  # fp32 differs in its last bits from numpy
    (place / "manifest.json").write_text(json.dumps(facts), encoding="utf-8")
    outcome = cli("verify", place)
    assert outcome.status == 3
    assert outcome.stdout.count("out of tolerance") == 2
    for target in (TARGET, OTHER):
        certificate = json.loads((place / "certificates" / f"{target}.json").read_text(encoding="utf-8"))
        assert certificate["passed"] is False
