"""Model cards, written by the evaluation that measured their figures."""

import sys
from importlib.metadata import version

from ferryman.files import write_text
from ferryman_models.checkpoints.base import Checkpoint
from ferryman_models.zoo import EMBEDDED

_CARD = """\
# {name}

{description}

| Fact | |
|---|---|
| Architecture | {architecture}, {parameters:,} parameters, fp32 |
| Input | {size} px, {fit}, {interpolation} |
| Classes | {labels} |
| Weights | SHA-256 `{sha256}` |
| Trained with | `python -m ferryman_models.zoo.train {name}` |
| Scored with | `python -m ferryman_models.zoo.train evaluate-{name}` (torch {torch}) |

## Figures

| Figure | |
|---|---|
{figures}

## Data

scikit-learn's copy of the UCI "Optical Recognition of Handwritten Digits" data (Alpaydin and Kaynak 1998, CC BY
4.0): 1,797 digits of 8 x 8 pixels. The first 1,497 are for training, the next 100 for validation, the last 200 for the
test; the last 300 are never seen in training. {data}

## Limits

It shows the way through Ferryman and is small enough to ship with it. It knows digits drawn like those of the data
set, in a colour that differs from the background by at least 70 of 255 levels of luma; it is no reader of documents.
"""

_TEXTS = {
    "vit-digits": (
        "A small ViT (Dosovitskiy et al. 2021) that names one handwritten digit on any background.",
        "Every picture shows one digit about in its middle, 55 to 90 % of the picture high, with random turn, stretch, "
        "shear and stroke width, in any colour on a plain, graded, noisy or photographic background; the photographs "
        "are the two that ship with scikit-learn, their left two thirds for training and their right third for the "
        "other splits.",
    ),
    "detr-digits": (
        "A small DETR (Carion et al. 2020) that finds none to six handwritten digits on any background.",
        "Scenes have an aspect ratio from 1:2 to 2:1 and digits 12 to 45 % of the shorter side high, turned up to 15 "
        "degrees, in any colour, on plain, graded, noisy or photographic backgrounds (the two photographs that come "
        "with scikit-learn, the left two thirds for training and the right third for the other splits). Test scenes "
        "have a longer side of 160 to 640 pixels and reach the model through Ferryman's own preprocessing. Boxes touch "
        "the strokes. Scored by pycocotools. The weights had 10,500 steps of earlier versions of the training "
        "script, whose positions counted cells, then 13,000 of this one (`--go-on --steps 13000`).",
    ),
}


def write_card(checkpoint: Checkpoint, figures: dict[str, float]) -> None:
    """Writes README.md beside an embedded checkpoint and prints its figures."""
    description, data = _TEXTS[checkpoint.source]
    preprocess = checkpoint.spec.preprocess
    lines = [f"| {figure} | {value:.3f} |" for figure, value in figures.items()]
    card = _CARD.format(
        name=checkpoint.source,
        description=description,
        architecture=checkpoint.architecture,
        parameters=sum(parameter.numel() for parameter in checkpoint.module.parameters()),
        size="x".join(str(side) for side in preprocess.size),
        fit=preprocess.fit,
        interpolation=preprocess.interpolation,
        labels=", ".join(checkpoint.spec.labels),
        sha256=checkpoint.sha256,
        torch=version("torch"),
        figures="\n".join(lines),
        data=data,
    )
    write_text(EMBEDDED[checkpoint.source].parent / "README.md", card)
    sys.stdout.write("\n".join((*lines, "")))
