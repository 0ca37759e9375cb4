"""Tiny checkpoints with random weights that answer decidedly, and pictures of several shapes."""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from torch import nn

from ferryman.specs import PreprocessSpec, classification_spec, detection_spec
from ferryman_models.checkpoints.native import save_native
from ferryman_models.detr import DETR, DETRConfig
from ferryman_models.resnet import ResNetConfig
from ferryman_models.vit import ViT, ViTConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIT = ViTConfig(image_size=(32, 32), patch=8, dim=32, depth=2, heads=2, hidden=64, classes=7, pooling="mean")
DETR_CONFIG = DETRConfig(
    classes=5,
    backbone=ResNetConfig("bottleneck", (1, 1, 1), (8, 8, 8), dilate_last=True),
    dim=32,
    heads=4,
    hidden=64,
    encoder_layers=1,
    decoder_layers=2,
    queries=9,
)


def save_vit(path: Path) -> Path:
    """A ViT with mean pooling at 32x32."""
    torch.manual_seed(1)
    preprocess = PreprocessSpec(
        size=(32, 32), fit="crop", shortest_edge=36, mean=MEAN, std=STD, interpolation="bicubic"
    )
    save_native(path, ViT(VIT), classification_spec(preprocess, tuple("abcdefg")))
    return path


def save_hf_vit(folder: Path) -> Path:
    """A ViT at 32x32 in Hugging Face layout, with a file that no one needs and weights in a pickle too."""
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        id2label=dict(enumerate("abcde")),
    )
    torch.manual_seed(1)
    model = transformers.ViTForImageClassification(config)
    model.save_pretrained(folder)
    document = {"image_processor_type": "ViTImageProcessor", "size": 32}
    (folder / "preprocessor_config.json").write_text(json.dumps(document))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "notes.txt").write_text("not needed")
    return folder


def save_detr(path: Path) -> Path:
    """A DETR with dilated C5 on a canvas that is not square; its class head is sharpened so that it finds objects."""
    torch.manual_seed(2)
    model = DETR(DETR_CONFIG)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    model.eval()
    with torch.no_grad():
        model.class_head.weight *= 8
        # "No object" wins about half of the queries.
        image = torch.randn(4, 3, 64, 96)
        logits = model(image, torch.ones(4, 64, 96, dtype=torch.bool)).logits[-1]
        model.class_head.bias[-1] += (logits[..., :-1].amax(-1) - logits[..., -1]).median()
    preprocess = PreprocessSpec(size=(64, 96), fit="pad", mean=MEAN, std=STD, pad_value=(255, 0, 128))
    save_native(path, model, detection_spec(preprocess, tuple("abcde"), DETR_CONFIG.queries))
    return path


def save_pictures(folder: Path) -> Path:
    """Noise of several shapes: wide, tall, square and one that fills a 2:3 canvas."""
    folder.mkdir()
    random = np.random.default_rng(3)
    for height, width in ((40, 90), (90, 40), (50, 50), (64, 96), (128, 192), (33, 77)):
        noise = random.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((width, height)).save(folder / f"{height}x{width}.png")
    return folder
