"""A DETR on a DINOv2: its map against transformers' DINOv2, its training, its crossing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers

from ferryman.specs import detection_spec
from ferryman_export.pipeline import ExportRequest, export
from ferryman_models.checkpoints.huggingface import load_huggingface
from ferryman_models.checkpoints.native import load_native
from ferryman_models.detr import DETR, DETRConfig, dinov2_detr_config
from ferryman_models.vit import ViT
from ferryman_models.zoo import dinov2_digits
from ferryman_models.zoo.detr_digits import PREPROCESS, Stream, Trainee, held_out_scenes

from ..models.test_huggingface import DINO, build, save
from ..models.weights import max_error

SIDE = 42


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    reference = build("Dinov2Model", "Dinov2Config", DINO | {"patch_size": 14, "image_size": 70})
    return save(reference, tmp_path_factory.mktemp("dinov2"), (70, 70))


def load_encoder(folder: Path) -> ViT:
    encoder = load_huggingface(folder, "encoder").module
    assert isinstance(encoder, ViT)
    return encoder


@torch.no_grad()
def test_the_map_is_that_of_transformers(encoder_folder: Path) -> None:
    """At another size than the positions were learned at, and not square."""
    encoder = load_encoder(encoder_folder)
    reference = transformers.Dinov2Model.from_pretrained(encoder_folder, attn_implementation="eager").eval()
    detr = DETR(DETRConfig(classes=3, backbone=encoder.config, dim=32, heads=4, hidden=64, queries=5)).eval()
    detr.backbone.load_state_dict(encoder.state_dict())
    image = torch.randn(2, 3, 42, 56, generator=torch.Generator().manual_seed(1))
    tokens = reference(image).last_hidden_state[:, 1:]  # (batch, 3 * 4, dim)
    weight, bias = detr.projection.weight[..., 0, 0], detr.projection.bias
    assert bias is not None
    expected = (tokens @ weight.T + bias).transpose(1, 2)
    assert max_error(detr.project(image).flatten(2), expected) <= 2e-5 * float(expected.abs().max())


def test_a_backbone_has_no_head() -> None:
    config = dinov2_detr_config("small")
    with pytest.raises(ValueError, match="has no head"):
        replace(config, backbone=replace(config.backbone, classes=4))
    assert (config.backbone.stride, config.backbone.out_channels) == (14, 384)


@pytest.mark.parametrize(
    "frozen", [pytest.param(True, id="frozen", marks=pytest.mark.nightly), pytest.param(False, id="tuned")]
)
def test_training_lets_the_encoder_learn_or_not(encoder_folder: Path, frozen: bool, tmp_path: Path) -> None:
    encoder = load_encoder(encoder_folder)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    scenes = held_out_scenes("validation", 3)
    out = tmp_path / "detector.safetensors"
    model = dinov2_digits.train(encoder, out, tmp_path / "work", scenes, side=SIDE, frozen=frozen, steps=3)
    same = [torch.equal(before[name], tensor) for name, tensor in model.backbone.state_dict().items()]
    assert all(same) if frozen else not any(same)
    checkpoint = load_native(out, "detector")
    assert isinstance(checkpoint.module, DETR)
    assert checkpoint.module.config.backbone == replace(encoder.config, classes=0)
    assert checkpoint.spec == detection_spec(
        PREPROCESS.model_copy(update={"size": (SIDE, SIDE)}), tuple("0123456789"), 12
    )
    # It crosses like the rest, at its own size and at another one, which its positions are resampled to.
    bundle = export(ExportRequest(str(out), tmp_path / "r", sizes=((SIDE, SIDE), (28, 70))))
    assert [spec.preprocess.size for spec in bundle.manifest.specs] == [(SIDE, SIDE), (28, 70)]
    graph = onnx.load(bundle.path / bundle.manifest.variants[1].path).graph
    modes = [attribute.s for node in graph.node for attribute in node.attribute if attribute.name == "mode"]
    assert b"cubic" not in modes  # the mask's nearest one is left


def test_it_learns(encoder_folder: Path) -> None:
    """On one batch, frozen: the loss falls by a third in thirty steps."""
    encoder = load_encoder(encoder_folder)
    torch.manual_seed(0)
    trainee = Trainee(dinov2_digits.make_config(encoder.config))
    trainee.detr.backbone.load_state_dict(encoder.state_dict())
    trainee.detr.backbone.requires_grad_(False)
    batch = Stream("train", SIDE).batch(0)
    optimiser = torch.optim.AdamW([p for p in trainee.parameters() if p.requires_grad], lr=1e-3)
    losses: list[float] = []
    for _ in range(30):
        loss = trainee.loss(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.67 * losses[0]
