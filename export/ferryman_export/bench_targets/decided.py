"""`python -m ferryman_export.bench_targets.decided MODEL FOLDER`: random weights that are sure of their answers.

How long an export takes goes by how far the search for int8 must go, and that by the margins of the answers. Weights as
a model is born with have none, and every tolerance is lost; here one class has one, in whatever is seen.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from ferryman.__main__ import main
from ferryman.errors import UsageError, propose
from ferryman_export.bench_targets.models import MODELS, save_checkpoint

NAME = "python -m ferryman_export.bench_targets.decided"
# The logit of one class, where the others have some tenths: with a DETR's 92 classes that is 0.97.
_SURE = 8.0
_HEADS = ("class_labels_classifier", "classifier")
app = typer.Typer(add_completion=False)


@app.command()
def run(
    model: Annotated[str, typer.Argument(help=f"One of {', '.join(MODELS)}.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
) -> None:
    """Writes the checkpoint of one of the models that `make bench-targets` measures, sure of one class."""
    if model not in MODELS:
        near = propose(model, MODELS) or f"; there are {', '.join(MODELS)}"
        raise UsageError(f"there is no model {model}{near}")
    if folder.exists():
        raise UsageError(f"{folder} exists already")
    made = MODELS[model]
    module = made.build()
    (head,) = (layer for name, layer in module.named_modules() if name in _HEADS)
    with torch.no_grad():
        head.bias[0] = _SURE
    save_checkpoint(module, made.processor, folder)


if __name__ == "__main__":
    main(app, NAME)
