"""ResNet (He et al. 2016, "Deep Residual Learning for Image Recognition") as a detection backbone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Callable[[int], nn.Module]


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine parameters are constants.

    Source: Carion et al. 2020, section A.4. It has the tensors of `torch.nn.BatchNorm2d` without the counter, so
    weights move from one to the other by name.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, channels, height, width). Returns the same shape."""
        scale = self.weight * (self.running_var + self.epsilon).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


@dataclass(frozen=True)
class ResNetConfig:
    """Facts of a ResNet.

    depths, widths: blocks and inner channels of each stage; stage i has an output stride of 4 * 2**i
    dilate_last: the last stage keeps its input's stride and dilates its 3x3 convolutions instead (DC5)
    Raises ValueError when depths and widths differ in number.
    """

    block: Literal["basic", "bottleneck"]
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    dilate_last: bool = False

    def __post_init__(self) -> None:
        if self.block not in ("basic", "bottleneck"):
            raise ValueError(f"block must be 'basic' or 'bottleneck', got {self.block!r}")
        if len(self.depths) != len(self.widths) or len(self.depths) < 2:
            raise ValueError(f"need a depth and a width for each of 2 or more stages, got {self.depths}, {self.widths}")

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each stage's map."""
        return tuple(width * (4 if self.block == "bottleneck" else 1) for width in self.widths)

    @property
    def out_channels(self) -> int:
        return self.stage_channels[-1]

    @property
    def stride(self) -> int:
        """Pixels of the image per cell of the last feature map."""
        return 4 * 2 ** (len(self.depths) - 1 - self.dilate_last)


# He et al. 2016, table 1
RESNETS: dict[str, ResNetConfig] = {
    "resnet18": ResNetConfig("basic", (2, 2, 2, 2)),
    "resnet34": ResNetConfig("basic", (3, 4, 6, 3)),
    "resnet50": ResNetConfig("bottleneck", (3, 4, 6, 3)),
    "resnet101": ResNetConfig("bottleneck", (3, 4, 23, 3)),
}


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int, norm: Norm) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), norm(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016, figure 5 left).

    dilations: of the first 3x3 convolution, which also has the stride, and of those behind it
    """

    def __init__(self, inputs: int, width: int, stride: int, dilations: tuple[int, int], norm: Norm) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, width, 3, stride, dilations[0]), norm(width)
        self.conv2, self.norm2 = _conv(width, width, 3, dilation=dilations[1]), norm(width)
        self.shortcut = _shortcut(inputs, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, inputs, height, width). Returns (batch, width, height / stride, width / stride)."""
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution around a shortcut (figure 5 right), the stride on the 3x3 (torchvision's v1.5)."""

    def __init__(self, inputs: int, width: int, stride: int, dilations: tuple[int, int], norm: Norm) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, width, 1), norm(width)
        self.conv2, self.norm2 = _conv(width, width, 3, stride, dilations[0]), norm(width)
        self.conv3, self.norm3 = _conv(width, 4 * width, 1), norm(4 * width)
        self.shortcut = _shortcut(inputs, 4 * width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, inputs, height, width). Returns (batch, 4 * width, height / stride, width / stride)."""
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = F.relu(self.norm2(self.conv2(y)), inplace=True)
        y = self.norm3(self.conv3(y))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)), inplace=True)


class ResNet(nn.Module):
    """Backbone without pooling and classifier.

    norm: makes the normalisation of a number of channels; `FrozenBatchNorm2d`, or `torch.nn.BatchNorm2d` to train
    from scratch.
    """

    def __init__(self, config: ResNetConfig, norm: Norm = FrozenBatchNorm2d) -> None:
        super().__init__()
        self.config = config
        block = BasicBlock if config.block == "basic" else Bottleneck
        expansion = 1 if config.block == "basic" else 4
        self.conv1, self.norm1 = _conv(3, config.widths[0], 7, stride=2), norm(config.widths[0])
        stages: list[nn.Module] = []
        channels = config.widths[0]
        for index, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            dilated = config.dilate_last and index == len(config.depths) - 1
            blocks: list[nn.Module] = []
            for position in range(depth):
                stride = 2 if position == 0 and index > 0 and not dilated else 1
                # Dilation 2 behind the convolution that lost its stride, as in timm.
                dilations = (2 if dilated and position > 0 else 1, 2 if dilated else 1)
                blocks.append(block(channels, width, stride, dilations, norm))
                channels = width * expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward_stages(self, image: Tensor) -> list[Tensor]:
        """image: (batch, 3, height, width). Returns every stage's map, (batch, channels, rows, columns) each."""
        x = F.relu(self.norm1(self.conv1(image)), inplace=True)
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, image: Tensor) -> Tensor:
        """image: (batch, 3, height, width). Returns the last stage: (batch, out_channels, rows, columns)."""
        return self.forward_stages(image)[-1]
