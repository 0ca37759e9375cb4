"""DETR against `transformers`' with the same random weights, padding and batch statistics."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DetrForObjectDetection

from ferryman_models.attention import attend_fused, attend_plain, set_attend
from ferryman_models.detr import DETR, DETRConfig, detr_config
from ferryman_models.resnet import RESNETS, ResNetConfig

from .weights import (
    HFDetrConfig,
    count_parameters,
    detr_weights_from_hf,
    hf_detr,
    hf_detr_config,
    max_error,
    pad_images,
    randomize,
)

# Logits are near one, boxes below it, and both come out of layer norms, so that float32 rounding doesn't grow
# with depth. Both sides round on their own: transformers scales the scores, we the queries.
TOLERANCE = 1e-5

SMALL = DETRConfig(
    classes=5,
    backbone=ResNetConfig("bottleneck", (1, 2, 1, 1), (8, 12, 16, 24)),
    dim=64,
    heads=4,
    hidden=96,
    encoder_layers=2,
    decoder_layers=2,
    queries=10,
)
BASIC = replace(SMALL, backbone=ResNetConfig("basic", (1, 2, 2), (8, 16, 24)))

# (height, width) of the canvas and of the pictures on it: all of it, parts of cells, one pixel
EVEN = (160, 224)
EVEN_SIZES = [(160, 224), (97, 224), (130, 55)]
ODD = (131, 75)
ODD_SIZES = [(100, 75), (131, 40), (1, 1)]


def pair(config: DETRConfig) -> tuple[DETR, Any]:
    reference = hf_detr(config)
    model = DETR(config)
    model.load_state_dict(detr_weights_from_hf(reference), strict=True)
    return model.eval(), reference


def answers_of_every_layer(reference: Any, image: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and boxes of every decoder layer, and the memory: the reference's answers cut short behind each layer.

    Not its own auxiliary outputs: with auxiliary_loss=True, transformers 5.23 feeds the *normalised* answer of a
    layer to the next one and normalises the last one's twice. Carion et al.'s code normalises a copy.
    """
    decoder = reference.model.decoder
    layers = decoder.layers
    outputs: list[Any] = []
    for count in range(1, len(layers) + 1):
        decoder.layers = layers[:count]
        outputs.append(reference(image, pixel_mask=valid.long()))
    logits, boxes = (torch.stack([output[part] for output in outputs]) for part in ("logits", "pred_boxes"))
    return logits, boxes, outputs[-1].encoder_last_hidden_state


@pytest.mark.parametrize(
    ("canvas", "sizes"),
    [
        pytest.param(EVEN, EVEN_SIZES[:1], id="even-batch1"),
        pytest.param(EVEN, EVEN_SIZES[1:2], id="even-batch1-padded"),
        pytest.param(EVEN, EVEN_SIZES, id="even-batch3"),
        pytest.param(ODD, ODD_SIZES[:1], id="odd-batch1"),
        pytest.param(ODD, ODD_SIZES, id="odd-batch3"),
    ],
)
@pytest.mark.parametrize("config", [pytest.param(SMALL, id="bottleneck"), pytest.param(BASIC, id="basic")])
@torch.no_grad()
def test_detr_equals_hf(config: DETRConfig, canvas: tuple[int, int], sizes: list[tuple[int, int]]) -> None:
    """Logits and boxes of the last decoder layer and of those before it, and the encoder's memory."""
    model, reference = pair(config)
    image, valid = pad_images(sizes, canvas, seed=1)

    logits, boxes, memory = answers_of_every_layer(reference, image, valid)

    # Queries that all answer the same would hide most errors; on one pixel, they have to.
    assert logits[:, 0].std(dim=1).min() > 0.05
    assert boxes[:, 0].std(dim=1).min() > 0.005
    for attend in (attend_plain, attend_fused):
        set_attend(model, attend)
        actual = model(image, valid)
        assert max_error(actual.memory, memory) <= TOLERANCE
        assert max_error(actual.logits, logits) <= TOLERANCE
        assert max_error(actual.boxes_cxcywh, boxes) <= TOLERANCE


@pytest.mark.slow
@torch.no_grad()
def test_detr_r50_equals_hf() -> None:
    """The published topology, 6 + 6 layers and 100 queries."""
    model, reference = pair(detr_config("detr-r50"))
    image, valid = pad_images([(128, 160), (90, 101)], (128, 160), seed=2)

    expected = reference(image, pixel_mask=valid.long())
    actual = model(image, valid)

    assert expected.logits[0].std(dim=0).min() > 0.005  # hundreds of tolerances
    assert max_error(actual.logits[-1], expected.logits) <= TOLERANCE
    assert max_error(actual.boxes_cxcywh[-1], expected.pred_boxes) <= TOLERANCE


@torch.no_grad()
def test_neighbours_do_not_matter() -> None:
    """A picture's answer is the same alone and in every slot of a batch."""
    model, _ = pair(SMALL)
    sizes = [*EVEN_SIZES, (33, 200)]
    image, valid = pad_images(sizes, EVEN, seed=3)
    alone = [model(image[i : i + 1], valid[i : i + 1]) for i in range(len(sizes))]

    for shift in range(len(sizes)):
        order = [(slot + shift) % len(sizes) for slot in range(len(sizes))]
        together = model(image[order], valid[order])
        for slot, i in enumerate(order):
            # Not bit for bit: products of another shape are cut and summed in another order.
            assert max_error(together.logits[:, slot], alone[i].logits[:, 0]) <= TOLERANCE
            assert max_error(together.boxes_cxcywh[:, slot], alone[i].boxes_cxcywh[:, 0]) <= TOLERANCE
            assert max_error(together.memory[slot], alone[i].memory[0]) <= TOLERANCE


@torch.no_grad()
def test_mask_of_the_padding_matters() -> None:
    """The same pixels with another mask are another picture; and only the picture whose mask changed is."""
    model, _ = pair(SMALL)
    image, valid = pad_images([(160, 224), (97, 120)], EVEN, seed=4)

    masked, unmasked = model(image, valid), model(image, torch.ones_like(valid))

    assert max_error(masked.logits[:, 1], unmasked.logits[:, 1]) > 0.05
    assert max_error(masked.boxes_cxcywh[:, 1], unmasked.boxes_cxcywh[:, 1]) > 0.01
    assert max_error(masked.logits[:, 0], unmasked.logits[:, 0]) <= TOLERANCE


@torch.no_grad()
def test_nothing_valid_is_finite() -> None:
    model, _ = pair(SMALL)
    image, valid = pad_images([(0, 0), (64, 64)], (64, 64), seed=5)

    assert all(part.isfinite().all() for part in model(image, valid))


@torch.no_grad()
def test_boxes_are_of_the_valid_area() -> None:
    """More padding changes positions by nothing: the sine encoding counts valid cells alone."""
    model, _ = pair(SMALL)
    small, valid_small = pad_images([(96, 128)], (96, 128), seed=6)
    large = torch.zeros(1, 3, 160, 224)
    large[:, :, :96, :128] = small
    valid_large = torch.zeros(1, 160, 224, dtype=torch.bool)
    valid_large[:, :96, :128] = valid_small

    _, positions_small, cells_small = model.encode(model.project(small), valid_small)
    _, positions_large, cells_large = model.encode(model.project(large), valid_large)

    assert positions_large[cells_large.flatten(1)].equal(positions_small[cells_small.flatten(1)])


@pytest.mark.parametrize("changed", [0, 1], ids="group{}-changed".format)
@torch.no_grad()
def test_groups_of_queries_are_blind_to_each_other(changed: int) -> None:
    model = DETR(replace(SMALL, query_groups=2, dropout=0.0)).train()
    randomize(model, seed=10)
    image, valid = pad_images(EVEN_SIZES[1:2], EVEN, seed=7)
    before = model(image, valid)
    model.query_embeddings.view(2, 10, 64)[changed].neg_()
    after = model(image, valid)

    assert before.logits.shape == (2, 1, 20, 6)
    kept = slice(10, 20) if changed == 0 else slice(0, 10)
    other = slice(0, 10) if changed == 0 else slice(10, 20)
    # Bit for bit: a blocked query's weight is exactly zero after the softmax.
    assert after.logits[:, :, kept].equal(before.logits[:, :, kept])
    assert after.boxes_cxcywh[:, :, kept].equal(before.boxes_cxcywh[:, :, kept])
    assert max_error(after.logits[-1][:, other], before.logits[-1][:, other]) > 0.05


@torch.no_grad()
def test_eval_answers_with_the_first_group_alone() -> None:
    groups = DETR(replace(SMALL, query_groups=2, dropout=0.0))
    randomize(groups, seed=11)
    alone = DETR(replace(SMALL, dropout=0.0)).eval()
    weights = groups.state_dict()
    alone.load_state_dict({**weights, "query_embeddings": weights["query_embeddings"][:10]}, strict=True)
    image, valid = pad_images(EVEN_SIZES, EVEN, seed=7)

    in_training = groups.train()(image, valid)
    in_eval = groups.eval()(image, valid)
    expected = alone(image, valid)

    assert in_eval.logits.equal(expected.logits)
    assert in_eval.boxes_cxcywh.equal(expected.boxes_cxcywh)
    assert max_error(in_training.logits[:, :, :10], expected.logits) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "backbone"), [("detr-r50", "resnet50"), ("detr-r101", "resnet101")], ids=["r50", "r101"]
)
@pytest.mark.parametrize("dilated", [pytest.param("", id="c5"), pytest.param("-dc5", id="dc5")])
def test_presets_have_the_size_of_hf(name: Any, backbone: str, dilated: str) -> None:
    """transformers' default configuration on the same backbone, with 91 classes; dilation adds no weights."""
    with torch.device("meta"):
        model = DETR(detr_config(name + dilated))
        reference = DetrForObjectDetection(hf_detr_config(DETRConfig(91, RESNETS[backbone])))
        features = model.backbone(torch.empty(1, 3, 96, 160))

    assert count_parameters(model) == count_parameters(reference)
    stride = 16 if dilated else 32
    assert model.config.backbone.stride == stride
    assert features.shape == (1, 2048, 96 // stride, 160 // stride)


def test_presets_spell_out_the_defaults_of_hf() -> None:
    config, reference = detr_config("detr-r50"), HFDetrConfig(use_timm_backbone=False)

    assert (config.dim, config.hidden, config.heads) == (
        reference.d_model,
        reference.encoder_ffn_dim,
        reference.encoder_attention_heads,
    )
    assert (config.encoder_layers, config.decoder_layers, config.queries, config.dropout) == (
        reference.encoder_layers,
        reference.decoder_layers,
        reference.num_queries,
        reference.dropout,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"heads": 5}, "got dim=64, heads=5", id="heads"),
        pytest.param({"dim": 30, "heads": 3}, "multiple of heads and of 4, got dim=30", id="not-of-4"),
    ],
)
def test_bad_config(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_unknown_preset() -> None:
    unknown: Any = "detr-r18"
    with pytest.raises(ValueError, match=r"name must be one of detr-r50, .* got 'detr-r18'"):
        detr_config(unknown)
