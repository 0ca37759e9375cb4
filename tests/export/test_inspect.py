"""`ferryman inspect SOURCE`: what a checkpoint is, before any export."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from ferryman.__main__ import main
from ferryman.bundle import Bundle
from ferryman_export.pipeline import ExportRequest, export

from .test_sources import FOLDERS


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ferryman", "inspect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_folder(tmp_path: Path) -> None:
    """Half precision and a tensor that is left out, as published DINOv2 checkpoints have them; then a broken one."""
    model, _ = FOLDERS["dinov2, patch 14, odd grid, mean pooling"].save(tmp_path / "source")
    weights = tmp_path / "source" / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, weights)
    result = run(tmp_path / "source", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["format"] == "Hugging Face"
    assert document["architecture"] == "Dinov2ForImageClassification"
    used = [p.numel() for name, p in model.named_parameters() if not name.endswith("mask_token")]
    assert document["parameters"] == sum(used)
    assert document["stored_as"] == ["float16"]
    assert document["spec"]["preprocess"]["size"] == [42, 42]
    assert document["notes"] == ["the mask token is left out: it is for pretraining"]
    shown = run(tmp_path / "source").stdout
    assert all(
        word in shown
        for word in ("stored as float16", "mask token", "shorter side to 48, then the middle 42x42", "LABEL_0")
    )

    (tmp_path / "source" / "preprocessor_config.json").unlink()
    result = run(tmp_path / "source", "--json")
    assert result.returncode == 1
    assert "has no preprocessor_config.json" in json.loads(result.stdout)["error"]["message"]


def test_what_it_says_is_what_the_bundle_keeps(pictures: Path, tmp_path: Path) -> None:
    FOLDERS["dinov2, patch 14, odd grid, mean pooling"].save(tmp_path / "source")
    bundle = export(ExportRequest(str(tmp_path / "source"), tmp_path / "r", samples=pictures))
    assert bundle.manifest.source.format == "Hugging Face"
    assert bundle.manifest.source.notes == ("the mask token is left out: it is for pretraining",)
    assert Bundle.open(tmp_path / "r" / "source").digest == bundle.digest
    shown = run(bundle.path)
    assert "mask token" in shown.stdout
    result = run(bundle.path, "--arch", "vit_b_16")
    assert result.returncode == 2
    assert "is a bundle, which says itself what it is" in result.stderr


def make_huge(folder: Path) -> None:
    FOLDERS["dinov2, patch 14, odd grid, mean pooling"].save(folder)
    tensor = {"dtype": "F32", "shape": [50_000, 50_000], "data_offsets": [0, 10_000_000_000]}
    header = json.dumps({"embeddings.cls_token": tensor}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


def make_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "some/base"}')


WRONG: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "an adapter alone": (
        make_adapter,
        2,
        "is an adapter (of some/base); give its base: ferryman export BASE --ad",
    ),
    "half a config": (lambda folder: (folder / "config.json").write_text('{"a": '), 1, "config.json is not JSON"),
    "10 GB declared": (make_huge, 1, "model.safetensors can't be read as safetensors"),
    "nothing": (lambda folder: None, 1, "is neither a bundle, which has a manifest.json, nor a checkpoint, which has"),
    "no such path": (Path.rmdir, 1, "there is no checkpoint"),
}


@pytest.mark.parametrize(("make", "status", "message"), WRONG.values(), ids=WRONG)
def test_what_is_none(
    make: Callable[[Path], object],
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    make(folder)
    monkeypatch.setattr(sys, "argv", ["ferryman", "inspect", str(folder)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == status
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert message in complaint
    assert str(folder) in complaint


def test_a_bundle_of_several_sizes(
    checkpoints: dict[str, Path],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = ((32, 32), (32, 48))
    bundle = export(ExportRequest(str(checkpoints["vit"]), tmp_path, "vit", pictures, sizes, explain=True))
    monkeypatch.setattr(sys, "argv", ["ferryman", "inspect", str(bundle.path)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    shown = {tuple(line.split(maxsplit=1)) for line in map(str.strip, capsys.readouterr().out.splitlines()) if line}
    assert ("task", "classification, 7 labels: a, b, c, d, e, …") in shown
    assert ("input", "image: uint8 (batch, 32, 32, 3) or (batch, 32, 48, 3)") in shown
    assert ("output", "attention: float32 (batch, 4, 4) or (batch, 4, 6)") in shown
    assert ("preprocessing", "shorter side to 36 or 54, then the middle 32x32 or 32x48, bicubic") in shown
    assert any(words[-1].startswith("onnxruntime-cpu-fp32 at 32x48: model-32x48.onnx, ") for words in shown)
