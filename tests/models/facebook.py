"""Our weights under facebookresearch/detr's names, renamed here by hand; the tools for it serve other layouts too.

The names are facts of models/{detr,transformer,backbone,segmentation}.py of facebookresearch/detr.
"""

import re

import torch
from torch import Tensor

from ferryman_models.detr import DETR
from ferryman_models.detr_masks import DETRForMasks


def fuse(state: dict[str, Tensor], parts: tuple[str, ...], fused: str) -> dict[str, Tensor]:
    """The tensors with those named `...PART.weight` and so on laid under each other, under one name."""
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = re.match(rf"(.*\.)(?:{'|'.join(parts)})\.(weight|bias)$", name)
        if match is None:
            result[name] = tensor
        else:
            together = [state[f"{match[1]}{part}.{match[2]}"] for part in parts]
            result[match[1] + fused.replace("KIND", match[2])] = torch.cat(together)
    return result


def rename(state: dict[str, Tensor], *pairs: tuple[str, str]) -> dict[str, Tensor]:
    for old, new in pairs:
        state = {re.sub(old, new, name): tensor for name, tensor in state.items()}
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


def facebook_detr_state(model: DETR) -> dict[str, Tensor]:
    state = fuse(model.state_dict(), ("query", "key", "value"), "in_proj_KIND")
    return rename(
        state,
        (r"^backbone\.conv1", "backbone.0.body.conv1"),
        (r"^backbone\.norm1", "backbone.0.body.bn1"),
        (r"^backbone\.stages\.0", "backbone.0.body.layer1"),
        (r"^backbone\.stages\.1", "backbone.0.body.layer2"),
        (r"^backbone\.stages\.2", "backbone.0.body.layer3"),
        (r"^backbone\.stages\.3", "backbone.0.body.layer4"),
        (r"(body\.layer.*)\.norm(\d)", r"\1.bn\2"),
        ("shortcut", "downsample"),
        ("^projection", "input_proj"),
        ("^query_embeddings$", "query_embed.weight"),
        ("^class_head", "class_embed"),
        ("^box_head", "bbox_embed"),
        ("^decoder_norm", "transformer.decoder.norm"),
        (r"^(encoder|decoder)\.", r"transformer.\1.layers."),
        (r"(encoder\.layers\.\d+)\.attention\.", r"\1.self_attn."),
        (r"self_attention\.", "self_attn."),
        (r"cross_attention\.", "multihead_attn."),
        (r"attn\.out\.", "attn.out_proj."),
        (r"\.up\.", ".linear1."),
        (r"\.down\.", ".linear2."),
        ("norm_attention|norm_self", "norm1"),
        ("norm_cross", "norm2"),
        (r"(encoder\.layers\.\d+)\.norm_feed_forward", r"\1.norm2"),
        (r"(decoder\.layers\.\d+)\.norm_feed_forward", r"\1.norm3"),
    )


def facebook_panoptic_state(model: DETRForMasks) -> dict[str, Tensor]:
    detector = {f"detr.{name}": tensor for name, tensor in facebook_detr_state(model.detr).items()}
    heads = {
        name: tensor for name, tensor in model.state_dict().items() if name.startswith(("attention_map", "mask_head"))
    }
    numbers = tuple((rf"mask_head\.convs\.{i}\.", f"mask_head.lay{i + 1}.") for i in range(5))
    numbers += tuple((rf"mask_head\.norms\.{i}\.", f"mask_head.gn{i + 1}.") for i in range(5))
    numbers += tuple((rf"mask_head\.adapters\.{i}\.", f"mask_head.adapter{i + 1}.") for i in range(3))
    return detector | rename(
        heads,
        (r"attention_map\.query", "bbox_attention.q_linear"),
        (r"attention_map\.key", "bbox_attention.k_linear"),
        (r"mask_head\.out\.", "mask_head.out_lay."),
        *numbers,
    )
