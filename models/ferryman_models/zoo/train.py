"""Trains the embedded checkpoints and draws the demo's pictures: `python -m ferryman_models.zoo.train --help`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image

from ferryman_models.checkpoints.huggingface import load_huggingface
from ferryman_models.checkpoints.native import load_native
from ferryman_models.detr import DETR
from ferryman_models.vit import ViT
from ferryman_models.zoo import EMBEDDED, cards, detr_digits, dinov2_digits, pictures_folder, vit_digits
from ferryman_models.zoo.digits import load_digits, load_photographs
from ferryman_models.zoo.scenes import make_digit_picture

app = typer.Typer(help="Trains the embedded checkpoints.", no_args_is_help=True, add_completion=False)
Work = Annotated[Path, typer.Option(help="Where an interrupted run resumes from.")]
GoOn = Annotated[bool, typer.Option("--go-on", help="From the embedded weights, not from scratch.")]
TEST_SCENES = 600


@app.command("vit-digits")
def train_vit(
    work: Work = Path("build/zoo"),
    go_on: GoOn = False,
    steps: Annotated[int | None, typer.Option(help="Of the ViT, by default the schedule's.")] = None,
) -> None:
    """About an hour on one core."""
    embedded = EMBEDDED[vit_digits.NAME]
    start = load_native(embedded, vit_digits.NAME).module if go_on else None
    assert start is None or isinstance(start, ViT)
    vit_digits.train(work, embedded, start, steps)
    evaluate_vit()


@app.command("detr-digits")
def train_detr(
    work: Work = Path("build/zoo"),
    go_on: GoOn = False,
    steps: Annotated[int, typer.Option(help="Of the whole DETR.")] = detr_digits.SCHEDULE.steps,
) -> None:
    """An hour and a half on one fast core."""
    _keep_memory()
    embedded = EMBEDDED[detr_digits.NAME]
    start = load_native(embedded, detr_digits.NAME).module if go_on else None
    assert start is None or isinstance(start, DETR)
    detr_digits.train(work, embedded, start, steps)
    evaluate_detr()


@app.command("dinov2-digits")
def train_dinov2(
    backbone: Annotated[Path, typer.Argument(help="Folder of a DINOv2 or ViT checkpoint in Hugging Face layout.")],
    out: Annotated[Path, typer.Argument(help="Where the detector is written, a .safetensors file.")],
    work: Work = Path("build/zoo"),
    side: Annotated[int, typer.Option(help="Of the canvas in pixels, a multiple of the patch.")] = 224,
    tune: Annotated[bool, typer.Option("--tune", help="Let the encoder learn too; else it stays frozen.")] = False,
    steps: int = dinov2_digits.SCHEDULE.steps,
) -> None:
    """Puts a detector of digits on an encoder of yours; `ferryman export OUT` takes it from there."""
    _keep_memory()
    encoder = load_huggingface(backbone, str(backbone)).module
    if not isinstance(encoder, ViT):
        raise typer.BadParameter(f"{backbone} holds no encoder with patches")
    scenes = detr_digits.held_out_scenes("validation", 200)
    dinov2_digits.train(encoder, out, work, scenes, side=side, frozen=not tune, steps=steps)


@app.command("evaluate-vit-digits")
def evaluate_vit() -> None:
    """Scores the embedded vit-digits on the held-out test digits and writes its model card."""
    checkpoint = load_native(EMBEDDED[vit_digits.NAME], vit_digits.NAME)
    assert isinstance(checkpoint.module, ViT)
    figures = {
        "Top-1, the 200 test digits, white on black": vit_digits.plain_top1(checkpoint.module, "test"),
        "Top-1, the 200 test digits, 10 pictures each": vit_digits.top1(checkpoint.module, "test", repeats=10),
        "Top-1, the 100 validation digits, 10 pictures each": vit_digits.top1(
            checkpoint.module, "validation", repeats=10
        ),
    }
    cards.write_card(checkpoint, figures)


@app.command("evaluate-detr-digits")
def evaluate_detr() -> None:
    """Scores the embedded detr-digits on 600 scenes of held-out test digits and writes its model card."""
    checkpoint = load_native(EMBEDDED[detr_digits.NAME], detr_digits.NAME)
    assert isinstance(checkpoint.module, DETR)
    scenes = detr_digits.held_out_scenes("test", TEST_SCENES)
    coco, coco_50 = detr_digits.evaluate_map(checkpoint.module, scenes, checkpoint.spec.preprocess)
    cards.write_card(checkpoint, {"COCO mAP, 600 test scenes": coco, "COCO mAP@0.5, 600 test scenes": coco_50})


@app.command("pictures")
def draw_pictures() -> None:
    """Draws the demo's dozen pictures from the test digits: the first six of a fixed seed for each task."""
    digits, photographs = load_digits("test"), load_photographs("test")
    random = np.random.default_rng(11)
    folder = pictures_folder("classification")
    folder.mkdir(parents=True, exist_ok=True)
    for index in random.choice(len(digits.labels), 6, replace=False):
        picture, _ = make_digit_picture(random, digits, int(index), photographs, side=96)
        Image.fromarray(picture).save(folder / f"digit-{digits.labels[index]}.png", optimize=True)
    folder = pictures_folder("detection")
    folder.mkdir(parents=True, exist_ok=True)
    scenes = [scene for scene in detr_digits.held_out_scenes("test", 60, seed=13) if max(scene.image.shape) <= 320]
    for number, scene in enumerate(scenes[:6], start=1):
        Image.fromarray(scene.image).save(folder / f"scene-{number}.png", optimize=True)


def _keep_memory() -> None:
    """Starts this process anew with an allocator that keeps freed memory: training is a third faster.

    glibc otherwise returns every large activation to the kernel and takes it, page by page, back.
    """
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ and sys.platform == "linux":
        large = {
            "MALLOC_MMAP_THRESHOLD_": str(2**33),
            "MALLOC_TRIM_THRESHOLD_": str(2**34),
            "MALLOC_TOP_PAD_": str(2**30),
        }
        command = [sys.executable, "-m", "ferryman_models.zoo.train", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | large)


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    app()
