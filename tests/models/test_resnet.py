"""ResNet against `transformers`', batch norm against PyTorch's, dilation against the stride it replaces."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ferryman_models.resnet import RESNETS, FrozenBatchNorm2d, ResNet, ResNetConfig

from .weights import count_parameters, hf_resnet, max_error, randomize, resnet_weights_from_hf

# Of the largest activation, for these grow along the residual path. Frozen batch norm multiplies by a product
# where batch norm subtracts first: a float32 rounding (6e-8) more for each of up to 50 norms.
RELATIVE_TOLERANCE = 1e-5

SMALL = ResNetConfig("bottleneck", (1, 2, 3), (8, 12, 16))


def stage_outputs(model: ResNet, image: Tensor) -> list[Tensor]:
    outputs: list[Tensor] = []
    hooks = [
        stage.register_forward_hook(lambda _module, _inputs, output: outputs.append(output.clone()))
        for stage in model.stages
    ]
    outputs.append(model(image))
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_every_stage_equals_hf(name: str) -> None:
    config = RESNETS[name]
    reference = hf_resnet(config)
    model = ResNet(config).eval()
    model.load_state_dict(resnet_weights_from_hf(reference), strict=True)
    for size in ((64, 96), (75, 33)):
        image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(5))

        expected = reference(image, output_hidden_states=True).hidden_states[1:]  # without the stem's

        for actual, wanted in zip(stage_outputs(model, image), (*expected, expected[-1]), strict=True):
            assert max_error(actual, wanted) <= RELATIVE_TOLERANCE * wanted.abs().max().item()


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("size", [(64, 96), (75, 33)], ids=str)
@torch.no_grad()
def test_dilated_stage_is_the_strided_one_at_every_cell(size: tuple[int, int], block: Any) -> None:
    """Every other cell of the dilated map is the strided network's map, borders included ("a trous")."""
    config = replace(SMALL, block=block)
    strided, dilated = ResNet(config), ResNet(replace(config, dilate_last=True))
    randomize(strided, seed=2)
    dilated.load_state_dict(strided.state_dict(), strict=True)
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(6))

    coarse, fine = strided(image), dilated(image)

    assert (strided.config.stride, dilated.config.stride) == (16, 8)
    assert fine.shape == (2, config.out_channels, -(-size[0] // 8), -(-size[1] // 8))
    assert max_error(fine[:, :, ::2, ::2], coarse) <= RELATIVE_TOLERANCE * coarse.abs().max().item()


@torch.no_grad()
def test_frozen_batch_norm_is_batch_norm_in_eval() -> None:
    norm = nn.BatchNorm2d(6, eps=1e-2).eval()
    randomize(norm, seed=4)
    frozen = FrozenBatchNorm2d(6, epsilon=1e-2)
    weights = norm.state_dict()
    del weights["num_batches_tracked"]
    frozen.load_state_dict(weights, strict=True)
    image = torch.randn(3, 6, 5, 4, generator=torch.Generator().manual_seed(7))

    # Training mode changes nothing: the statistics are constants.
    assert max_error(frozen.train()(image), norm(image)) <= 1e-6  # answers near one, two roundings more
    assert not list(frozen.parameters())


@torch.no_grad()
def test_norm_is_the_one_asked_for() -> None:
    trained = ResNet(SMALL, norm=nn.BatchNorm2d).eval()
    randomize(trained, seed=8)
    frozen = ResNet(SMALL)
    weights = {name: value for name, value in trained.state_dict().items() if "num_batches" not in name}
    frozen.load_state_dict(weights, strict=True)
    image = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(9))

    expected = trained(image)
    assert max_error(frozen(image), expected) <= RELATIVE_TOLERANCE * expected.abs().max().item()


# torchvision's counts of resnet18, 34, 50 and 101 less their classifier: 512 or 2048 inputs, 1000 classes.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_689_512 - 513_000),
        ("resnet34", 21_797_672 - 513_000),
        ("resnet50", 25_557_032 - 2_049_000),
        ("resnet101", 44_549_160 - 2_049_000),
    ],
)
def test_presets_have_the_published_size(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = ResNet(RESNETS[name], norm=nn.BatchNorm2d)
    assert count_parameters(model) == parameters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"block": "wide"}, "block must be 'basic' or 'bottleneck', got 'wide'", id="block"),
        pytest.param({"depths": (1, 2)}, "need a depth and a width", id="counts-differ"),
        pytest.param({"depths": (1,), "widths": (8,)}, "2 or more stages", id="one-stage"),
    ],
)
def test_bad_config(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)
