"""DINOv2's linear heads in files of their own, against what `transformers`' encoder and PyTorch's layers answer."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from ferryman.errors import CheckpointError, UsageError
from ferryman_models.checkpoints.huggingface import load_huggingface
from ferryman_models.checkpoints.weights_file import load_weights_file
from ferryman_models.patch_segmenter import PatchSegmenter
from ferryman_models.vit import ViT

from .test_huggingface import save
from .test_weights_files import timm_state
from .weights import max_error, randomize

HFDinov2Config: Any = transformers.Dinov2Config
TOLERANCE = 2e-5  # relative to the output's scale
DIM, GRID, CLASSES = 48, 6, 7
HEAD = "dinov2_vits14_linear_head.pth"


@pytest.fixture
def encoder() -> Any:
    config = HFDinov2Config(
        hidden_size=DIM,
        num_hidden_layers=5,
        num_attention_heads=6,
        mlp_ratio=2,
        patch_size=14,
        image_size=14 * GRID,
        attn_implementation="eager",
    )
    model: Any = transformers.Dinov2Model(config)
    randomize(model, seed=1)
    return model.eval()


@pytest.fixture
def backbone(encoder: Any, tmp_path: Path) -> Path:
    """The encoder as facebookresearch/dinov2 publishes one."""
    vit = load_huggingface(save(encoder, tmp_path / "folder", (14 * GRID, 14 * GRID)), "x").module
    assert isinstance(vit, ViT)
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save(timm_state(vit), path)
    return path


def random_tensors(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(6)
    return {name: torch.rand(shape, generator=generator) + 0.1 for name, shape in shapes.items()}


@torch.no_grad()
def last_blocks(encoder: Any, image: Tensor) -> list[Tensor]:
    """The tokens after each of the last four blocks, through the last norm."""
    hidden = encoder(image, output_hidden_states=True).hidden_states
    return [encoder.layernorm(tokens) for tokens in hidden[-4:]]


IMAGE = torch.randn(3, 3, 14 * GRID, 14 * GRID, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("layers", [1, 4])
@torch.no_grad()
def test_classification_head(layers: int, encoder: Any, backbone: Path, tmp_path: Path) -> None:
    head = random_tensors(weight=(CLASSES, (1 + layers) * DIM), bias=(CLASSES,))
    torch.save(head, tmp_path / HEAD)
    blocks = last_blocks(encoder, IMAGE)
    seen = torch.cat([*(tokens[:, 0] for tokens in blocks[-layers:]), blocks[-1][:, 1:].mean(1)], dim=1)
    expected = seen @ head["weight"].T + head["bias"]

    checkpoint = load_weights_file(backbone, "dinov2_vits14", "x", head=tmp_path / HEAD)

    assert checkpoint.spec.task == "classification"
    assert checkpoint.spec.labels == tuple(f"LABEL_{index}" for index in range(CLASSES))
    assert checkpoint.sha256 != load_weights_file(backbone, "dinov2_vits14", "x").sha256
    assert max_error(checkpoint.module(IMAGE), expected) <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("layers", [1, 4])
@torch.no_grad()
def test_segmentation_head(layers: int, encoder: Any, backbone: Path, tmp_path: Path) -> None:
    width = layers * DIM
    norm, classifier = nn.BatchNorm2d(width), nn.Conv2d(width, CLASSES, 1)
    randomize(norm, seed=7)
    randomize(classifier, seed=8)
    head = {f"decode_head.bn.{name}": tensor for name, tensor in norm.state_dict().items()}
    head |= {f"decode_head.conv_seg.{name}": tensor for name, tensor in classifier.state_dict().items()}
    assert "decode_head.bn.num_batches_tracked" in head
    path = tmp_path / "dinov2_vits14_ade20k_head.pth"
    torch.save({"state_dict": head, "meta": {"CLASSES": ["wall"]}}, path)
    patches = torch.cat([tokens[:, 1:] for tokens in last_blocks(encoder, IMAGE)[-layers:]], dim=-1)
    expected = classifier(norm.eval()(patches.transpose(1, 2).unflatten(2, (GRID, GRID))))

    checkpoint = load_weights_file(backbone, "dinov2_vits14", "x", labels=tuple("abcdefg"), head=path)

    assert isinstance(checkpoint.module, PatchSegmenter)
    assert (checkpoint.spec.task, checkpoint.spec.labels) == ("semantic-segmentation", tuple("abcdefg"))
    assert checkpoint.spec.outputs[0].shape == ("batch", 518, 518)
    assert max_error(checkpoint.module(IMAGE), expected) <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize(
    ("head", "message"),
    [
        pytest.param(
            random_tensors(weight=(7, 3 * DIM), bias=(7,)), "takes 144 channels.* takes 96 or 240", id="width"
        ),
        pytest.param(random_tensors(weight=(7, 2 * DIM + 1), bias=(7,)), "takes 97 channels", id="no-multiple"),
        pytest.param(random_tensors(weight=(7, 2 * DIM)), r"head\.bias is missing", id="missing"),
        pytest.param(random_tensors(fc=(7, 2 * DIM)), "no linear head of DINOv2.*got fc", id="other"),
        pytest.param(
            {f"decode_head.{name}": tensor for name, tensor in random_tensors(conv_seg=(7, DIM, 1, 1)).items()},
            "no linear head of DINOv2",
            id="half-a-decode-head",
        ),
    ],
)
def test_wrong_heads_are_named(head: dict[str, Tensor], message: str, backbone: Path, tmp_path: Path) -> None:
    torch.save(head, tmp_path / HEAD)
    with pytest.raises(CheckpointError, match=f"{HEAD}: .*{message}"):
        load_weights_file(backbone, "dinov2_vits14", "x", head=tmp_path / HEAD)


def test_head_of_another_architecture(backbone: Path) -> None:
    with pytest.raises(UsageError, match="--head belongs to a DINOv2 backbone; detr_resnet50 brings its own head"):
        load_weights_file(backbone, "detr_resnet50", "x", head=backbone)
