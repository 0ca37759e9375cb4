"""Models of `transformers` with random weights, and their weights under Ferryman's names.

Independent of `ferryman_models.checkpoints` on purpose: a slip there can't hide behind the same slip here.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import DetrForObjectDetection, ResNetModel, ViTForImageClassification
from transformers.models.detr.modeling_detr import DetrFrozenBatchNorm2d

from ferryman_models.detr import DETRConfig
from ferryman_models.resnet import ResNetConfig
from ferryman_models.vit import ViTConfig

# Configurations of transformers take more than their annotated parameters.
HFDetrConfig: Any = transformers.DetrConfig
HFResNetConfig: Any = transformers.ResNetConfig
HFViTConfig: Any = transformers.ViTConfig

Renames = Sequence[tuple[str, str]]

_ATTENTION: Renames = (
    (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.o_proj\.", ".out."),
)
_VIT: Renames = (
    (r"^vit\.embeddings\.cls_token$", "cls"),
    (r"^vit\.embeddings\.position_embeddings$", "positions"),
    (r"^vit\.embeddings\.patch_embeddings\.projection\.", "patches."),
    (r"^vit\.layers\.", "blocks."),
    (r"^vit\.layernorm\.", "norm."),
    (r"^classifier\.", "head."),
    (r"\.layernorm_before\.", ".norm_attention."),
    (r"\.layernorm_after\.", ".norm_feed_forward."),
    (r"\.mlp\.fc1\.", ".feed_forward.up."),
    (r"\.mlp\.fc2\.", ".feed_forward.down."),
    *_ATTENTION,
)
_RESNET: Renames = (
    (r"embedder\.embedder\.convolution\.", "conv1."),
    (r"embedder\.embedder\.normalization\.", "norm1."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"stages.\1.\2."),
    (r"\.shortcut\.convolution\.", ".shortcut.0."),
    (r"\.shortcut\.normalization\.", ".shortcut.1."),
    (r"\.layer\.0\.convolution\.", ".conv1."),
    (r"\.layer\.0\.normalization\.", ".norm1."),
    (r"\.layer\.1\.convolution\.", ".conv2."),
    (r"\.layer\.1\.normalization\.", ".norm2."),
    (r"\.layer\.2\.convolution\.", ".conv3."),
    (r"\.layer\.2\.normalization\.", ".norm3."),
)
# From transformers' names of a ResNet to timm's, which published DETRs have.
_TIMM: Renames = (
    (r"\.embedder\.embedder\.convolution\.", ".conv1."),
    (r"\.embedder\.embedder\.normalization\.", ".bn1."),
    (r"\.encoder\.stages\.0\.layers\.", ".layer1."),
    (r"\.encoder\.stages\.1\.layers\.", ".layer2."),
    (r"\.encoder\.stages\.2\.layers\.", ".layer3."),
    (r"\.encoder\.stages\.3\.layers\.", ".layer4."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"\.layer\.0\.convolution\.", ".conv1."),
    (r"\.layer\.1\.convolution\.", ".conv2."),
    (r"\.layer\.2\.convolution\.", ".conv3."),
    (r"\.layer\.0\.normalization\.", ".bn1."),
    (r"\.layer\.1\.normalization\.", ".bn2."),
    (r"\.layer\.2\.normalization\.", ".bn3."),
)
RESNET18: dict[str, Any] = {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
_DETR: Renames = (
    (r"^model\.backbone\.model\.", "backbone."),
    (r"^model\.input_projection\.", "projection."),
    (r"^model\.query_position_embeddings\.weight$", "query_embeddings"),
    (r"^model\.encoder\.layers\.(\d+)\.self_attn\.", r"encoder.\1.attention."),
    (r"^model\.encoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"encoder.\1.norm_attention."),
    (r"^model\.decoder\.layers\.(\d+)\.self_attn\.", r"decoder.\1.self_attention."),
    (r"^model\.decoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"decoder.\1.norm_self."),
    (r"^model\.decoder\.layers\.(\d+)\.encoder_attn\.", r"decoder.\1.cross_attention."),
    (r"^model\.decoder\.layers\.(\d+)\.encoder_attn_layer_norm\.", r"decoder.\1.norm_cross."),
    (r"^model\.(encoder|decoder)\.layers\.(\d+)\.mlp\.fc1\.", r"\1.\2.up."),
    (r"^model\.(encoder|decoder)\.layers\.(\d+)\.mlp\.fc2\.", r"\1.\2.down."),
    (r"^model\.(encoder|decoder)\.layers\.(\d+)\.final_layer_norm\.", r"\1.\2.norm_feed_forward."),
    (r"^model\.decoder\.layernorm\.", "decoder_norm."),
    (r"^class_labels_classifier\.", "class_head."),
    (r"^bbox_predictor\.", "box_head."),
    *_ATTENTION,
    *_RESNET,
)

# The projections whose product is the attention scores, under either library's names.
_SCORES = re.compile(r"\.(q_proj|k_proj|query|key)\.weight$")
SHARPNESS = 2.0  # scores of a few units: a query prefers some cells without seeing one alone
# The last norm of a bottleneck, in transformers' names.
_BRANCH_END = re.compile(r"\.layer\.2\.normalization\.weight$")
BRANCH_STRENGTH = 0.5  # at full strength, the fifty layers of a random ResNet multiply any rounding by hundreds


def _rename(state: Mapping[str, Tensor], renames: Renames) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for source_name, tensor in state.items():
        if source_name.endswith("num_batches_tracked"):  # a counter that no forward pass in eval mode reads
            continue
        name = source_name
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor.clone()
    return renamed


def vit_weights_from_hf(source: nn.Module) -> dict[str, Tensor]:
    """State of a `ViT` from a `ViTForImageClassification`; to be loaded with strict=True."""
    return _rename(source.state_dict(), _VIT)


def resnet_weights_from_hf(source: nn.Module) -> dict[str, Tensor]:
    """State of a `ResNet` with frozen batch norm from a `ResNetModel`; to be loaded with strict=True."""
    return _rename(source.state_dict(), _RESNET)


def detr_weights_from_hf(source: nn.Module) -> dict[str, Tensor]:
    """State of a `DETR` from a `DetrForObjectDetection`; to be loaded with strict=True."""
    return _rename(source.state_dict(), _DETR)


def rename_backbone_as_timm(folder: Path, **facts: Any) -> None:
    """Turns a folder of a DETR with transformers' ResNet-18 into what the published ones are: timm's names of the
    tensors, and a backbone that is only named.

    facts: more of the configuration
    """
    weights = folder / "model.safetensors"
    save_file(_rename(load_file(weights), _TIMM), weights, metadata={"format": "pt"})
    document = json.loads((folder / "config.json").read_text())
    document |= {"use_timm_backbone": True, "backbone": "resnet18", "backbone_config": None} | facts
    (folder / "config.json").write_text(json.dumps(document))


def dilate_last_stage(backbone: nn.Module) -> None:
    """Makes transformers' ResNet of basic blocks what timm and torchvision build with dilation: the last stage keeps
    its input's stride, and its 3x3 convolutions but the first spread over as many cells as before."""
    number = max(int(name.split(".")[2]) for name, _ in backbone.named_modules() if name.startswith("encoder.stages."))
    stage = backbone.get_submodule(f"encoder.stages.{number}")
    convolutions = [module for module in stage.modules() if isinstance(module, nn.Conv2d)]
    first = next(module for module in convolutions if module.kernel_size == (3, 3))
    for module in convolutions:
        module.stride = (1, 1)
        if module.kernel_size == (3, 3) and module is not first:
            module.dilation = module.padding = (2, 2)


def randomize(model: nn.Module, seed: int) -> None:
    """Gives every parameter and buffer of `model` a random value that keeps activations near one.

    The usual initial values would hide errors: norms that do nothing, biases of zero, positions and queries
    too small to be seen in the answer.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.ndim == 1 and name.endswith(".weight"):  # of a norm
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim == 1:
            tensor.normal_(0.0, 0.1, generator=generator)
        elif "position" in name or "query_embeddings" in name or "cls" in name:
            tensor.normal_(0.0, 1.0, generator=generator)
        else:
            tensor.normal_(0.0, tensor[0].numel() ** -0.5, generator=generator)
        if _SCORES.search(name):  # Attention that is nearly uniform makes all queries answer the same.
            tensor.mul_(SHARPNESS)


@torch.no_grad()
def calibrate_norms(backbone: nn.Module, seed: int) -> None:
    """Sets every batch norm's statistics to those of random pictures, as training leaves them.

    With statistics out of the blue, all cells of a deep feature map look alike, and so do all queries' answers.
    """

    def measure(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        norm.get_buffer("running_mean").copy_(mean)
        norm.get_buffer("running_var").copy_(variance)

    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d | DetrFrozenBatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    backbone.eval()(torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(seed)))
    for hook in hooks:
        hook.remove()
    for name, tensor in backbone.state_dict().items():
        if _BRANCH_END.search(name):
            tensor.mul_(BRANCH_STRENGTH)


def hf_vit_config(config: ViTConfig) -> Any:
    return HFViTConfig(
        image_size=config.image_size,
        patch_size=config.patch,
        hidden_size=config.dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=config.hidden,
        num_labels=config.classes,
        layer_norm_eps=config.epsilon,
        attn_implementation="eager",
    )


def hf_vit(config: ViTConfig, seed: int = 0) -> Any:
    """A `ViTForImageClassification` with the facts of `config`, random weights, in eval mode."""
    model: Any = ViTForImageClassification(hf_vit_config(config))
    randomize(model, seed)
    return model.eval()


def hf_resnet_config(config: ResNetConfig) -> Any:
    expansion = 4 if config.block == "bottleneck" else 1
    return HFResNetConfig(
        embedding_size=config.widths[0],
        hidden_sizes=[width * expansion for width in config.widths],
        depths=list(config.depths),
        layer_type=config.block,
        out_features=[f"stage{len(config.depths)}"],
    )


def hf_resnet(config: ResNetConfig, seed: int = 0) -> Any:
    """A `ResNetModel` with the facts of `config`, random weights and their statistics, in eval mode."""
    model: Any = ResNetModel(hf_resnet_config(config))
    randomize(model, seed)
    calibrate_norms(model, seed)
    return model.eval()


def hf_detr_config(config: DETRConfig) -> Any:
    assert isinstance(config.backbone, ResNetConfig)
    return HFDetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=hf_resnet_config(config.backbone),
        d_model=config.dim,
        encoder_attention_heads=config.heads,
        decoder_attention_heads=config.heads,
        encoder_ffn_dim=config.hidden,
        decoder_ffn_dim=config.hidden,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        num_queries=config.queries,
        num_labels=config.classes,
        attn_implementation="eager",
    )


def hf_detr(config: DETRConfig, seed: int = 0) -> Any:
    """A `DetrForObjectDetection` with the facts of `config`, random weights and statistics, in eval mode."""
    model: Any = DetrForObjectDetection(hf_detr_config(config))
    randomize(model, seed)
    calibrate_norms(model.model.backbone.model, seed)
    return model.eval()


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def max_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; NaN counts as infinite, and shapes must be the same."""
    if actual.shape != expected.shape:
        raise AssertionError(f"shape {tuple(actual.shape)} is not {tuple(expected.shape)}")
    return (actual - expected).abs().nan_to_num(nan=torch.inf).max().item()


def pad_images(sizes: Sequence[tuple[int, int]], canvas: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Random pictures of (height, width) `sizes` at the top left of a canvas of zeros.

    Returns image (batch, 3, height, width) float32 and valid (batch, height, width) bool.
    """
    generator = torch.Generator().manual_seed(seed)
    valid = torch.zeros(len(sizes), *canvas, dtype=torch.bool)
    for mask, (height, width) in zip(valid, sizes, strict=True):
        mask[:height, :width] = True
    image = torch.randn(len(sizes), 3, *canvas, generator=generator)
    return image * valid[:, None], valid
