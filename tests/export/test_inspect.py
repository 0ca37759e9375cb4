"""`ferryman inspect SOURCE`: what a checkpoint is, before any export."""

import json
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from ferryman.bundle import Bundle
from ferryman_export.pipeline import ExportRequest, export

from .test_sources import save_source


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ferryman", "inspect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_folder(tmp_path: Path) -> None:
    """Half precision and a tensor that is left out, as published DINOv2 checkpoints have them; then a broken one."""
    model, _ = save_source("dinov2", tmp_path / "source")
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
    assert document["notes"] == ["the mask token is for pretraining"]
    shown = run(tmp_path / "source").stdout
    assert all(word in shown for word in ("stored as float16", "mask token", "shorter side to 48", "LABEL_0"))

    (tmp_path / "source" / "preprocessor_config.json").unlink()
    result = run(tmp_path / "source", "--json")
    assert result.returncode == 1
    assert "has no preprocessor_config.json" in json.loads(result.stdout)["error"]["message"]


def test_what_it_says_is_what_the_bundle_keeps(pictures: Path, tmp_path: Path) -> None:
    save_source("dinov2", tmp_path / "source")
    bundle = export(ExportRequest(str(tmp_path / "source"), tmp_path / "r", samples=pictures))
    assert bundle.manifest.source.format == "Hugging Face"
    assert bundle.manifest.source.notes == ("the mask token is for pretraining",)
    assert Bundle.open(tmp_path / "r" / "source").digest == bundle.digest
    shown = run(bundle.path)
    assert "mask token" in shown.stdout
    result = run(bundle.path, "--arch", "vit_b_16")
    assert result.returncode == 2
    assert "is a bundle, which says itself what it is" in result.stderr
