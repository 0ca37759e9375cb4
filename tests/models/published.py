"""Names and shapes of every tensor in published checkpoints, at their real size, and the parameters that others count.

Written down from the code that made or reads the files, which were not at hand, never from our models or converters:

timm            huggingface/pytorch-image-models, timm/models/vision_transformer.py (`VisionTransformer`, `Block`,
                `_convert_dinov2`) and deit.py (`VisionTransformerDistilled`); weights: huggingface.co/timm/NAME
DINOv2          facebookresearch/dinov2, dinov2/models/vision_transformer.py, dinov2/layers/swiglu_ffn.py,
                dinov2/hub/{backbones,classifiers}.py; weights: dl.fbaipublicfiles.com/dinov2/MODEL/NAME
DETR            facebookresearch/detr, models/{backbone,transformer,detr,segmentation}.py, hubconf.py;
                weights: dl.fbaipublicfiles.com/detr/NAME, below "model"
torchvision     pytorch/vision, torchvision/models/vision_transformer.py; weights: download.pytorch.org/models/NAME. The
                file is older than version 2 of `MLPBlock`, whose `_load_from_state_dict` renames its linear layers
Google          google-research/vision_transformer, vit_jax/models_vit.py, and timm's `_load_weights`, which reads
                these files; weights: storage.googleapis.com/vit_models/NAME
Hugging Face    huggingface/transformers, src/transformers/models/: vit/convert_vit_timm_to_pytorch.py,
                dinov2/convert_dinov2_to_hf.py, detr/convert_detr_original_pytorch_checkpoint_to_pytorch.py
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Count:
    """How many numbers a file holds, as others state it: `numbers`, and at most `within` more or fewer.

    uncounted: pattern of the names that they leave out
    """

    source: str
    numbers: int
    within: int = 0
    uncounted: str = r"$^"


@dataclass(frozen=True)
class Published:
    shapes: Shapes
    counts: tuple[Count, ...]


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _conv(name: str, outputs: int, inputs: int, kernel: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _timm_vit(dim: int, depth: int, patch: int, positions: int, *, scale: bool = False, swiglu: str = "") -> Shapes:
    """timm's and DINOv2's. swiglu: the names of the two matrices, of 2 * 4096 and 4096 channels as in the giant's."""
    shapes: Shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, positions, dim)}
    shapes |= _conv("patch_embed.proj", dim, 3, patch)
    first, second = swiglu.split() if swiglu else ("fc1", "fc2")
    widened, hidden = (8192, 4096) if swiglu else (4 * dim, 4 * dim)
    for block in (f"blocks.{number}" for number in range(depth)):
        shapes |= _norm(f"{block}.norm1", dim) | _norm(f"{block}.norm2", dim)
        shapes |= _linear(f"{block}.attn.qkv", 3 * dim, dim) | _linear(f"{block}.attn.proj", dim, dim)
        shapes |= _linear(f"{block}.mlp.{first}", widened, dim) | _linear(f"{block}.mlp.{second}", dim, hidden)
        shapes |= {f"{block}.ls1.gamma": (dim,), f"{block}.ls2.gamma": (dim,)} if scale else {}
    return shapes | _norm("norm", dim)


def _torchvision_vit() -> Shapes:
    """ViT-B/16."""
    shapes: Shapes = {"class_token": (1, 1, 768), "encoder.pos_embedding": (1, 197, 768)}
    shapes |= _conv("conv_proj", 768, 3, 16)
    for layer in (f"encoder.layers.encoder_layer_{number}" for number in range(12)):
        shapes |= _norm(f"{layer}.ln_1", 768) | _norm(f"{layer}.ln_2", 768) | _attention(f"{layer}.self_attention", 768)
        shapes |= _linear(f"{layer}.mlp.linear_1", 3072, 768) | _linear(f"{layer}.mlp.linear_2", 768, 3072)
    return shapes | _norm("encoder.ln", 768) | _linear("heads.head", 1000, 768)


def _attention(name: str, dim: int) -> Shapes:
    """torch.nn.MultiheadAttention."""
    packed: Shapes = {f"{name}.in_proj_weight": (3 * dim, dim), f"{name}.in_proj_bias": (3 * dim,)}
    return packed | _linear(f"{name}.out_proj", dim, dim)


def _resnet(name: str, depths: tuple[int, ...]) -> Shapes:
    """torchvision's and timm's, of bottlenecks with frozen norms, without the classifier."""

    def frozen(norm: str, width: int) -> Shapes:
        return {f"{norm}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}

    shapes: Shapes = {f"{name}.conv1.weight": (64, 3, 7, 7)} | frozen(f"{name}.bn1", 64)
    inputs = 64
    for stage, (depth, width) in enumerate(zip(depths, (64, 128, 256, 512), strict=True), start=1):
        for number in range(depth):
            block, outputs = f"{name}.layer{stage}.{number}", 4 * width
            shapes[f"{block}.conv1.weight"] = (width, inputs, 1, 1)
            shapes[f"{block}.conv2.weight"] = (width, width, 3, 3)
            shapes[f"{block}.conv3.weight"] = (outputs, width, 1, 1)
            shapes |= frozen(f"{block}.bn1", width) | frozen(f"{block}.bn2", width) | frozen(f"{block}.bn3", outputs)
            if number == 0:
                shapes[f"{block}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                shapes |= frozen(f"{block}.downsample.1", outputs)
            inputs = outputs
    return shapes


def _facebook_detr(depths: tuple[int, ...], classes: int) -> Shapes:
    shapes = _resnet("backbone.0.body", depths) | _conv("input_proj", 256, 2048, 1)
    for part, attentions, norms in (
        ("encoder", ("self_attn",), 2),
        ("decoder", ("self_attn", "multihead_attn"), 3),
    ):
        for layer in (f"transformer.{part}.layers.{number}" for number in range(6)):
            for attention in attentions:
                shapes |= _attention(f"{layer}.{attention}", 256)
            shapes |= _linear(f"{layer}.linear1", 2048, 256) | _linear(f"{layer}.linear2", 256, 2048)
            for number in range(norms):
                shapes |= _norm(f"{layer}.norm{number + 1}", 256)
    shapes |= _norm("transformer.decoder.norm", 256) | {"query_embed.weight": (100, 256)}
    shapes |= _linear("class_embed", classes + 1, 256)
    return shapes | _box_head("bbox_embed")


def _box_head(name: str) -> Shapes:
    sizes = enumerate(pairwise((256, 256, 256, 4)))
    return {
        key: shape
        for number, (inputs, outputs) in sizes
        for key, shape in _linear(f"{name}.layers.{number}", outputs, inputs).items()
    }


def _facebook_panoptic() -> Shapes:
    """`DETRsegm` on ResNet-50: attention maps of 8 heads beside 256 channels, and a pyramid of 128, 64, 32, 16."""
    shapes = {f"detr.{name}": shape for name, shape in _facebook_detr((3, 4, 6, 3), 250).items()}
    shapes |= _linear("bbox_attention.q_linear", 256, 256) | _linear("bbox_attention.k_linear", 256, 256)
    for number, (inputs, outputs) in enumerate(pairwise((264, 264, 128, 64, 32, 16)), start=1):
        shapes |= _conv(f"mask_head.lay{number}", outputs, inputs, 3) | _norm(f"mask_head.gn{number}", outputs)
    for number, (inputs, outputs) in enumerate(((1024, 128), (512, 64), (256, 32)), start=1):
        shapes |= _conv(f"mask_head.adapter{number}", outputs, inputs, 1)
    return shapes | _conv("mask_head.out_lay", 1, 16, 3)


def _google_vit(classes: int, *, pre_logits: bool) -> Shapes:
    """ViT-B/16 at 224 pixels: kernels of inputs by outputs, heads in a dimension of their own."""

    def dense(name: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Shapes:
        return {f"{name}/kernel": inputs + outputs, f"{name}/bias": outputs}

    def norm(name: str) -> Shapes:
        return {f"{name}/scale": (768,), f"{name}/bias": (768,)}

    shapes: Shapes = {"cls": (1, 1, 768), "Transformer/posembed_input/pos_embedding": (1, 197, 768)}
    shapes |= dense("embedding", (16, 16, 3), (768,))
    for block in (f"Transformer/encoderblock_{number}" for number in range(12)):
        for part in ("query", "key", "value"):
            shapes |= dense(f"{block}/MultiHeadDotProductAttention_1/{part}", (768,), (12, 64))
        shapes |= dense(f"{block}/MultiHeadDotProductAttention_1/out", (12, 64), (768,))
        shapes |= dense(f"{block}/MlpBlock_3/Dense_0", (768,), (3072,))
        shapes |= dense(f"{block}/MlpBlock_3/Dense_1", (3072,), (768,))
        shapes |= norm(f"{block}/LayerNorm_0") | norm(f"{block}/LayerNorm_2")
    shapes |= dense("pre_logits", (768,), (768,)) if pre_logits else {}
    return shapes | norm("Transformer/encoder_norm") | dense("head", (768,), (classes,))


def _hf_attention(name: str, dim: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Of ViT and DINOv2."""
    for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
        yield from _linear(f"{name}.attention.{part}", dim, dim).items()


def _hf_vit() -> Shapes:
    """ViT-B/16, `ViTForImageClassification`."""
    shapes: Shapes = {
        "vit.embeddings.cls_token": (1, 1, 768),
        "vit.embeddings.position_embeddings": (1, 197, 768),
    }
    shapes |= _conv("vit.embeddings.patch_embeddings.projection", 768, 3, 16)
    for layer in (f"vit.encoder.layer.{number}" for number in range(12)):
        shapes |= dict(_hf_attention(layer, 768))
        shapes |= _norm(f"{layer}.layernorm_before", 768) | _norm(f"{layer}.layernorm_after", 768)
        shapes |= _linear(f"{layer}.intermediate.dense", 3072, 768) | _linear(f"{layer}.output.dense", 768, 3072)
    return shapes | _norm("vit.layernorm", 768) | _linear("classifier", 1000, 768)


def _hf_dinov2() -> Shapes:
    """ViT-S/14, `Dinov2Model`."""
    shapes: Shapes = {
        "embeddings.cls_token": (1, 1, 384),
        "embeddings.mask_token": (1, 384),
        "embeddings.position_embeddings": (1, 1370, 384),
    }
    shapes |= _conv("embeddings.patch_embeddings.projection", 384, 3, 14)
    for layer in (f"encoder.layer.{number}" for number in range(12)):
        shapes |= dict(_hf_attention(layer, 384)) | _norm(f"{layer}.norm1", 384) | _norm(f"{layer}.norm2", 384)
        shapes |= _linear(f"{layer}.mlp.fc1", 1536, 384) | _linear(f"{layer}.mlp.fc2", 384, 1536)
        shapes |= {f"{layer}.layer_scale1.lambda1": (384,), f"{layer}.layer_scale2.lambda1": (384,)}
    return shapes | _norm("layernorm", 384)


def _hf_detr() -> Shapes:
    """On timm's ResNet-50, `DetrForObjectDetection`."""
    shapes = _resnet("model.backbone.conv_encoder.model", (3, 4, 6, 3)) | _conv("model.input_projection", 256, 2048, 1)
    for part, attentions in (("encoder", ("self_attn",)), ("decoder", ("self_attn", "encoder_attn"))):
        for layer in (f"model.{part}.layers.{number}" for number in range(6)):
            for attention in attentions:
                for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    shapes |= _linear(f"{layer}.{attention}.{projection}", 256, 256)
                shapes |= _norm(f"{layer}.{attention}_layer_norm", 256)
            shapes |= _linear(f"{layer}.fc1", 2048, 256) | _linear(f"{layer}.fc2", 256, 2048)
            shapes |= _norm(f"{layer}.final_layer_norm", 256)
    shapes |= _norm("model.decoder.layernorm", 256) | {"model.query_position_embeddings.weight": (100, 256)}
    return shapes | _linear("class_labels_classifier", 92, 256) | _box_head("bbox_predictor")


_TORCHVISION = Count("pytorch/vision, ViT_B_16_Weights.IMAGENET1K_V1, num_params", 86_567_656)
# What main.py of facebookresearch/detr logs for this file counts what is trained: no norm of the backbone, and neither
# its first convolution nor its first stage (models/backbone.py, `BackboneBase`).
_FROZEN = r"backbone\..*(\.bn\d\.|\.downsample\.1\.|(body|model)\.conv1\.|\.layer1\.)"
_LOGGED = Count('main.py --resume detr-r50-e632da11.pth, "number of params"', 41_302_368, uncounted=_FROZEN)


def _timm(millions: float) -> Count:
    source = "huggingface/pytorch-image-models, results/benchmark-infer-amp-nchw-pt240-cu124-rtx4090.csv, param_count"
    return Count(source, round(millions * 1e6), 5_000, "mask_token")


def _size(mib: int) -> Count:
    """Of a file of 4 bytes a number, which is at most one MiB larger than its numbers."""
    numbers = 2**20 // 4
    return Count("facebookresearch/detr, README.md, size", mib * numbers - numbers // 2, numbers // 2)


# 518 pixels are 37 patches a side, 1369 in all; the class token has a position too, but not where timm sets
# `no_embed_class`.
PUBLISHED: dict[str, Published] = {
    "vit_base_patch16_224.augreg_in21k_ft_in1k": Published(
        _timm_vit(768, 12, 16, 197) | _linear("head", 1000, 768), (_TORCHVISION, _timm(86.57))
    ),
    "deit_base_distilled_patch16_224.fb_in1k": Published(
        _timm_vit(768, 12, 16, 198)
        | {"dist_token": (1, 1, 768)}
        | _linear("head", 1000, 768)
        | _linear("head_dist", 1000, 768),
        (_timm(87.34),),
    ),
    "deit3_small_patch16_224.fb_in1k": Published(
        _timm_vit(384, 12, 16, 196, scale=True) | _linear("head", 1000, 384), (_timm(22.06),)
    ),
    "vit_small_patch14_dinov2.lvd142m": Published(_timm_vit(384, 12, 14, 1370, scale=True), (_timm(22.06),)),
    "vit_small_patch14_reg4_dinov2.lvd142m": Published(
        _timm_vit(384, 12, 14, 1369, scale=True) | {"reg_token": (1, 4, 384)}, (_timm(22.06),)
    ),
    "vit_giant_patch14_dinov2.lvd142m": Published(
        _timm_vit(1536, 40, 14, 1370, scale=True, swiglu="fc1 fc2"), (_timm(1136.48),)
    ),
    "dinov2_vits14_pretrain.pth": Published(
        _timm_vit(384, 12, 14, 1370, scale=True) | {"mask_token": (1, 384)}, (_timm(22.06),)
    ),
    "dinov2_vits14_linear_head.pth": Published(
        {"weight": (1000, 768), "bias": (1000,)}, (Count("the file's 3,077,159 bytes, 4 a number", 769_290, 290),)
    ),
    "dinov2_vitb14_reg4_pretrain.pth": Published(
        _timm_vit(768, 12, 14, 1370, scale=True) | {"mask_token": (1, 768), "register_tokens": (1, 4, 768)},
        (_timm(86.58),),
    ),
    "dinov2_vitg14_pretrain.pth": Published(
        _timm_vit(1536, 40, 14, 1370, scale=True, swiglu="w12 w3") | {"mask_token": (1, 1536)}, (_timm(1136.48),)
    ),
    "detr-r50-e632da11.pth": Published(_facebook_detr((3, 4, 6, 3), 91), (_LOGGED, _size(159))),
    "detr-r50-dc5-f0fb7ef5.pth": Published(_facebook_detr((3, 4, 6, 3), 91), (_size(159),)),
    "detr-r101-2c7b67e5.pth": Published(_facebook_detr((3, 4, 23, 3), 91), (_size(232),)),
    "detr-r50-panoptic-00ce5173.pth": Published(_facebook_panoptic(), (_size(165),)),
    "vit_b_16-c867db91.pth": Published(_torchvision_vit(), (_TORCHVISION,)),
    # Its head is zero (timm, vision_transformer.py, `vit_*_in21k`: "zero'd out in original weights").
    "imagenet21k/ViT-B_16.npz": Published(
        _google_vit(21843, pre_logits=True),
        (Count("huggingface.co/google/vit-base-patch16-224-in21k, 86.4M", 86_400_000, 50_000, "^head/"),),
    ),
    "imagenet21k+imagenet2012/ViT-B_16-224.npz": Published(_google_vit(1000, pre_logits=False), (_TORCHVISION,)),
    "google/vit-base-patch16-224": Published(_hf_vit(), (_TORCHVISION,)),
    "facebook/dinov2-small": Published(_hf_dinov2(), (_timm(22.06),)),
    "facebook/detr-resnet-50": Published(_hf_detr(), (_LOGGED,)),
}
