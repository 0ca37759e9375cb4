"""Adapters that peft saved and that lost some of their weights: what its own loading only warns of is an error."""

import re
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from ferryman.errors import CheckpointError

from .test_huggingface import CANVAS, DETR_FACTS, ENCODERS, RESNET, build, edit, save
from .test_lora import HEAD, NAMES_OF_4, VIT, load, renamed, retouch, train
from .weights import HFResNetConfig

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

# What peft saves, what of it goes lost, and what is named then.
LOST: dict[str, tuple[tuple[str, str, dict[str, Any]], dict[str, Any], str, str]] = {
    "last-block": (VIT, HEAD, r"layers\.1\.", r"vit\.layers\.1\.attention\.q_proj, vit\.layers\.1\.attention\.v_proj"),
    "one-kind": (VIT, HEAD, r"v_proj", r"layers\.0\.attention\.v_proj, vit\.layers\.1\.attention\.v_proj too"),
    "the-other-part": (VIT, {"target_modules": ["q_proj", "fc1"]}, "fc1", r"layers\.0\.mlp\.fc1, vit\.layers\.1\.mlp"),
    "by-expression": (
        VIT,
        {"target_modules": r".*\.1\.(attention\.[qv]_proj|mlp\.fc1)"},
        "q_proj",
        r"vit\.layers\.1\..*q_proj",
    ),
    "of-some-layers": (
        VIT,
        {"target_modules": ["q_proj", "fc1"], "layers_to_transform": [1]},
        r"q_proj",
        r"vit\.layers\.1\.attention\.q_proj too",
    ),
    "gate": (
        ENCODERS["dinov2-swiglu"],
        {"target_modules": ["gate_proj", "up_proj"]},
        "gate",
        r"0\.mlp\.gate_proj, \S*1\.mlp\.gate_proj too",
    ),
    "half-a-head": (VIT, HEAD, r"classifier\.bias", r"classifier\.bias too"),
    "bias": (
        VIT,
        {"target_modules": ["q_proj"], "bias": "lora_only"},
        r"1.*base_layer\.bias",
        r"1\.attention\.q_proj\.bias too",
    ),
    "all-biases": (VIT, HEAD | {"bias": "all"}, r"layers\.0.*fc1\.bias", r"blocks\.0\.feed_forward\.up\.bias too"),
}


def lose(adapter: Path, pattern: str) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if re.search(pattern, name)]:
            del tensors[name]

    retouch(adapter, change)


@pytest.mark.parametrize("name", LOST)
def test_lost_layers_are_named(name: str, tmp_path: Path) -> None:
    model, facts, lost, message = LOST[name]
    folder = save(build(*model), tmp_path / "base", (64, 64))
    train(build(*model), tmp_path / "adapter", **facts)
    load(folder, tmp_path / "adapter")
    lose(tmp_path / "adapter", lost)
    with pytest.raises(CheckpointError, match=f"is incomplete: by its configuration it has weights of .*{message}"):
        load(folder, tmp_path / "adapter")


def test_lost_layers_under_the_names_of_transformers_4(tmp_path: Path) -> None:
    """And a target that the base calls otherwise is not missed where the same layer is there."""
    base, adapter = save(build(*VIT), tmp_path / "base", (64, 64)), tmp_path / "adapter"
    train(build(*VIT), adapter, **HEAD)
    renamed(adapter, *NAMES_OF_4)
    edit(adapter, "adapter_config.json", target_modules=["query", "q_proj", "value", "v_proj", "fc9"])
    load(base, adapter)
    lose(adapter, r"1\.attention\.attention\.q")
    with pytest.raises(CheckpointError, match=r"vit\.encoder\.layer\.1\.attention\.attention\.query too"):
        load(base, adapter)


def test_lost_decoder(tmp_path: Path) -> None:
    reference = build(
        "DetrForObjectDetection", "DetrConfig", DETR_FACTS | {"backbone_config": HFResNetConfig(**RESNET)}
    )
    base = save(reference, tmp_path / "base", CANVAS, "Detr")
    train(reference, tmp_path / "adapter", target_modules=["q_proj"])
    load(base, tmp_path / "adapter")
    lose(tmp_path / "adapter", r"\.decoder\.")
    with pytest.raises(CheckpointError, match=r"decoder\.layers\.0\.self_attn\.q_proj.*1\.encoder_attn\.q_proj too"):
        load(base, tmp_path / "adapter")
