"""Trains a DETR on a DINOv2 to find digits: what it takes to put a detector on an encoder of one's own.

Stage 2 of `detr_digits` with the encoder's map of patches in the place of the ResNet's: the encoder has learned to see
already, so it needs no stage of its own, and may stay frozen.
"""

from dataclasses import replace
from pathlib import Path

import torch

from ferryman.specs import PreprocessSpec, detection_spec
from ferryman_models.checkpoints.native import save_native
from ferryman_models.detr import DETR, DETRConfig
from ferryman_models.vit import ViT, ViTConfig
from ferryman_models.zoo.detr_digits import CONFIG, PREPROCESS, SEED, Stream, Trainee, evaluate_map, freeze
from ferryman_models.zoo.digits import LABELS
from ferryman_models.zoo.scenes import Scene
from ferryman_models.zoo.training import Schedule, fit

NAME = "dinov2-digits"
SCHEDULE = Schedule(steps=6000, peak=4e-4)


def make_config(backbone: ViTConfig) -> DETRConfig:
    """`detr_digits`'s, on this encoder without its head."""
    return replace(CONFIG, backbone=replace(backbone, classes=0, norm_pooled=False), encoder_layers=1)


def train(
    backbone: ViT,
    out: Path,
    folder: Path,
    validation: list[Scene],
    *,
    side: int,
    frozen: bool = True,
    steps: int = SCHEDULE.steps,
) -> DETR:
    """Trains on canvases of `side` pixels, a multiple of the patch; writes the checkpoint to `out`.

    backbone: its weights are taken, and left as they are when it is `frozen`; else they learn at a tenth of the rate
    folder: an interrupted run resumes from here; validation: scenes that are scored whenever it is saved
    Raises ValueError when the patch does not divide the canvas.
    """
    torch.manual_seed(SEED)
    config = make_config(backbone.config)
    backbone.config.grid((side, side))
    trainee = Trainee(config)
    detr = trainee.detr
    state = {name: tensor for name, tensor in backbone.state_dict().items() if not name.startswith("head")}
    detr.backbone.load_state_dict(state)
    detr.backbone.requires_grad_(not frozen)
    inside = {id(parameter) for parameter in detr.backbone.parameters()}
    groups: list[dict[str, object]] = [{"params": [p for p in trainee.parameters() if id(p) not in inside]}]
    if not frozen:
        groups.append({"params": list(detr.backbone.parameters()), "scale": 0.1})
    stream = Stream("train", side)
    preprocess = PreprocessSpec.model_validate(PREPROCESS.model_dump() | {"size": (side, side)})

    def evaluate() -> str:
        figures = evaluate_map(detr, validation, preprocess)
        return f"validation mAP {figures[0]:.3f}, mAP@0.5 {figures[1]:.3f}"

    fit(
        NAME, trainee, groups, replace(SCHEDULE, steps=steps), lambda s: trainee.loss(stream.batch(s)), evaluate, folder
    )
    model = freeze(detr)
    save_native(out, model, detection_spec(preprocess, LABELS, config.queries))
    return model
