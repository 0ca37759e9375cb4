"""PyTorch itself beside a bundle's variants in `ferryman bench`."""

import re
import shutil
from pathlib import Path

import pytest

from ferryman.bench.pictures import encode_golden
from ferryman.bench.record import BenchRecord
from ferryman.bundle import Bundle
from ferryman.errors import EngineError, UsageError
from ferryman.parity import TOLERANCES, check_parity
from ferryman.runtimes.base import Settings
from ferryman_export.eager import open_eager
from ferryman_export.pipeline import ExportRequest, export

from ..serve.commands.outcome import Cli


@pytest.fixture(scope="module", params=["vit", "detr"])
def exported(
    request: pytest.FixtureRequest,
    checkpoints: dict[str, Path],
    pictures: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Bundle, str]:
    """A bundle of a tiny checkpoint, and the checkpoint."""
    checkpoint = str(checkpoints[request.param])
    folder = tmp_path_factory.mktemp("eager")
    return export(ExportRequest(checkpoint, folder, "tiny", pictures)), checkpoint


def test_it_answers_as_the_golden_samples(exported: tuple[Bundle, str]) -> None:
    bundle, source = exported
    (session,) = open_eager(bundle, source, Settings(threads=1))
    report = check_parity(session.run, bundle.golden(), bundle.spec, TOLERANCES["fp32"], "PyTorch eager", "")
    report.raise_for_failures()
    with pytest.raises(EngineError, match="no artefact"):
        session.attest(bundle.golden().batch([0]))


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # PyTorch's own use
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_compiled(exported: tuple[Bundle, str]) -> None:
    """What `torch.compile` makes of it answers the same; it needs a compiler of C++."""
    bundle, source = exported
    if shutil.which("g++") is None or bundle.spec.task != "classification":
        pytest.skip("needs g++, and is slow: once is enough")
    (session,) = open_eager(bundle, source, Settings(threads=1), compiled=True)
    golden = bundle.golden()
    check_parity(
        session.run, golden, bundle.spec, TOLERANCES["fp32"], "compiled", "", batches=(1,)
    ).raise_for_failures()


def test_the_command(exported: tuple[Bundle, str], cli: Cli) -> None:
    bundle, source = exported
    outcome = cli("bench", bundle.path, "--pytorch", source, "--threads", 1, "--seconds", 0.3, "--json")
    assert outcome.status == 0
    record = BenchRecord.model_validate_json(outcome.stdout)
    first, second = record.runs
    assert (first.name, second.name) == ("PyTorch eager", "onnxruntime-cpu-fp32")
    assert list(record.ratios) == ["onnxruntime-cpu-fp32"]
    assert first.right
    assert first.cost is None
    assert first.proven is not None
    assert first.proven.digest == bundle.manifest.source.sha256
    assert first.proven.runtime_version.startswith("torch ")


def test_its_accuracy(exported: tuple[Bundle, str], cli: Cli, tmp_path: Path) -> None:
    """Counted beside the variants'; what it answers is what they were made to answer."""
    bundle, source = exported
    if bundle.spec.task != "classification":
        pytest.skip("needs COCO's annotations: once is enough")
    (picture, *_) = encode_golden(bundle).images
    (tmp_path / "labelled" / bundle.spec.labels[0]).mkdir(parents=True)
    (tmp_path / "labelled" / bundle.spec.labels[0] / "one.png").write_bytes(picture)
    options = ("--pytorch", source, "--threads", 1, "--seconds", 0.2, "--accuracy", tmp_path / "labelled")
    counted = BenchRecord.model_validate_json(cli("bench", bundle.path, *options, "--json").stdout).accuracy
    assert counted is not None
    fp32, eager = counted.variants
    assert (fp32.target, eager.target, eager.agreement) == ("onnxruntime-cpu-fp32", "PyTorch eager", 1)
    assert eager.scores == fp32.scores
    assert re.search(r"^PyTorch eager .* [01]\.000$", cli("bench", bundle.path, *options).stdout, re.MULTILINE)


def test_another_checkpoint(exported: tuple[Bundle, str], cli: Cli, tmp_path: Path) -> None:
    bundle, _ = exported
    with pytest.raises(UsageError, match=r"vit-digits is not what .* was made from: that was .*tiny-\w+\.safetensors"):
        open_eager(bundle, "vit-digits", Settings())
    shutil.copy(bundle.file("model.onnx"), tmp_path / "x.png")
    served = ("--address", "127.0.0.1:1", "--model", "x", "--image", tmp_path / "x.png")
    outcome = cli("bench", *served, "--pytorch", "vit-digits")
    assert (outcome.status, "--pytorch belongs to a bundle" in outcome.complaint) == (2, True)
