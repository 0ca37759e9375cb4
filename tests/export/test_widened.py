"""A model of twice the width answers as the small one that it was made of."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from ferryman.errors import UsageError
from ferryman_export.bench_targets.models import build_seeded, save_checkpoint
from ferryman_export.bench_targets.widened import widen

SIZES = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3, "patch_size": 8, "image_size": 32}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    model: Any = build_seeded("Dinov2ForImageClassification", lambda hf: hf.Dinov2Config(**SIZES, num_labels=5))
    for parameter in model.parameters():  # scales and biases too, which are all alike at first
        torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path / "small"
    save_checkpoint(model, {"image_processor_type": "BitImageProcessor"}, folder)
    return folder


def answer(folder: Path, pictures: torch.Tensor) -> torch.Tensor:
    model: Any = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(pixel_values=pictures).logits


def test_it_computes_the_same(small: Path, tmp_path: Path) -> None:
    widen(small, tmp_path / "large")
    pictures = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    before, after = answer(small, pictures), answer(tmp_path / "large", pictures)
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-4)
    assert before.std() > 0.1
    weights = load_file(tmp_path / "large" / "model.safetensors")
    query = weights["dinov2.encoder.layer.0.attention.attention.query.weight"]
    assert tuple(query.shape) == (64, 64)
    assert len(query.unique()) > 0.99 * query.numel()  # no copies


def test_of_another_patch_size(small: Path, tmp_path: Path) -> None:
    """A picture that is larger by as much as its patches: its answers are much alike."""
    widen(small, tmp_path / "large", 12)
    smooth = torch.nn.functional.interpolate(
        torch.rand((4, 3, 5, 5), generator=torch.Generator().manual_seed(1)), (32, 32), mode="bilinear"
    )
    larger = torch.nn.functional.interpolate(smooth, (48, 48), mode="bilinear")
    before, after = answer(small, smooth), answer(tmp_path / "large", larger)
    torch.testing.assert_close(after, before, atol=0.2 * float(before.std()), rtol=0.05)


def test_what_is_no_such_checkpoint(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint in Hugging Face's layout"):
        widen(tmp_path / "nothing", tmp_path / "large")
    (small / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}', encoding="utf-8")
    with pytest.raises(UsageError, match="must hold a Dinov2ForImageClassification"):
        widen(small, tmp_path / "large")
    assert not (tmp_path / "large").exists()
