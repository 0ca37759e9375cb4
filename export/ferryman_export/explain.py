"""`--explain`: which models have an attention to show, on which grid, and which of its rows are shown."""

from torch import Tensor, nn

from ferryman.errors import UsageError
from ferryman.specs import ModelSpec, add_attention
from ferryman_models.attention import MultiHeadAttention
from ferryman_models.detr import DETR
from ferryman_models.vit import ViT, ViTConfig


def explained_spec(spec: ModelSpec, model: nn.Module, source: str) -> ModelSpec:
    """The spec with the `attention` output. Raises UsageError, with the reason, for a model that has none to show.

    source: what the user calls the model
    """
    match model:
        case ViT() if spec.task in ("classification", "embedding"):
            return add_attention(spec, attention_grid(model, spec.preprocess.size))
        case DETR() if spec.task == "detection" and not spec.ranked:
            return add_attention(spec, attention_grid(model, spec.preprocess.size))
        case _:
            raise UsageError(
                f"{source} is a {type(model).__name__} for {spec.task}: --explain shows the last attention of ViT and "
                "DINOv2 classifiers and encoders, and of DETR without masks; leave it out"
            )


def attention_grid(model: ViT | DETR, image_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of what the last attention looks at, for an image of (height, width) pixels."""
    config = model.config if isinstance(model, ViT) else model.config.backbone
    if isinstance(config, ViTConfig):
        return config.grid(image_size)
    # A ResNet's last cells may reach beyond the image.
    return -(-image_size[0] // config.stride), -(-image_size[1] // config.stride)


def last_attention(model: ViT | DETR) -> MultiHeadAttention:
    """A ViT's last block among its tokens; a DETR's last decoder layer's, from the queries to the memory."""
    attention = model.blocks[-1].attention if isinstance(model, ViT) else model.decoder[-1].cross_attention
    if not isinstance(attention, MultiHeadAttention):
        raise TypeError(f"the last attention is a {type(attention).__name__}, not a MultiHeadAttention")
    return attention


def pool_patches(weights: Tensor, config: ViTConfig, spec: ModelSpec) -> Tensor:
    """Where a ViT's answer comes from: its class token's weights, or with mean pooling the mean of its patches'.

    weights: (batch, heads, tokens, tokens); returns (batch, rows, columns) of `spec`'s canvas, the mean over the heads
    """
    by_token = weights.mean(dim=1)[:, :, config.prefix :]  # (batch, tokens, patches)
    by_class = spec.task == "embedding" or "cls" in config.pooling
    pooled = by_token[:, 0] if by_class else by_token[:, config.prefix :].mean(dim=1)
    # (batch, rows*columns) -> (batch, rows, columns)
    return pooled.unflatten(-1, config.grid(spec.preprocess.size))
