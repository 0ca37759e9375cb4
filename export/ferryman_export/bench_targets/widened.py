"""`python -m ferryman_export.bench_targets.widened SMALL LARGE`: a trained model of twice the width, from a small one.

What an export takes, and whether int8 holds, depends on the weights: random ones have no margins, and a trained ViT-B
is not always at hand. Each channel is there twice, and each weight is split at random between its two copies, so that
the large model computes what the small one does, with four times the multiplications (cf. Net2WiderNet, Chen et al.,
"Net2Net: Accelerating Learning via Knowledge Transfer", 2016).
"""

import json
import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor

from ferryman.__main__ import main
from ferryman.errors import UsageError
from ferryman.files import write_text
from ferryman_models.checkpoints.processors import FILE_NAME as PROCESSOR

NAME = "python -m ferryman_export.bench_targets.widened"
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
# Of a weight in its first copy: far enough from a half that no two weights are the same, and near it, since shares of
# opposite signs would make weights that no training does.
_SHARES = 0.375, 0.625
app = typer.Typer(add_completion=False)


def widen(source: Path, target: Path, patch: int | None = None) -> None:
    """Writes a checkpoint of twice the width to `target`, a folder.

    source: of Dinov2ForImageClassification, in Hugging Face's layout
    patch: pixels of a patch's side, as large as the source's by default. Another one is resampled (Beyer et al.,
        "FlexiViT: One Model for All Patch Sizes", 2023), after which the answers are much alike, and no longer equal.
    Raises UsageError for a checkpoint of another kind, or no checkpoint.
    """
    try:
        config = json.loads((source / _CONFIG).read_text(encoding="utf-8"))
        weights = load_file(source / _WEIGHTS)
    except (OSError, ValueError) as error:
        raise UsageError(f"{source} is no checkpoint in Hugging Face's layout: {error}") from error
    if config.get("architectures") != ["Dinov2ForImageClassification"] or config.get("use_swiglu_ffn"):
        raise UsageError(f"{source} must hold a Dinov2ForImageClassification with a plain MLP")
    random = torch.Generator().manual_seed(0)
    side, wanted = int(config["patch_size"]), patch or int(config["patch_size"])
    wide = {name: _widen_one(name, weight.float(), wanted, random) for name, weight in weights.items()}
    for key in ("hidden_size", "num_attention_heads"):
        config[key] *= 2
    config |= {"patch_size": wanted, "image_size": config["image_size"] // side * wanted, "dtype": "float32"}
    target.mkdir(parents=True, exist_ok=True)
    save_file(wide, target / _WEIGHTS, metadata={"format": "pt"})
    write_text(target / _CONFIG, json.dumps(config, indent=1))
    shutil.copyfile(source / PROCESSOR, target / PROCESSOR)


def _widen_one(name: str, weight: Tensor, patch: int, random: torch.Generator) -> Tensor:
    match name:
        case "classifier.bias":
            return weight
        case "classifier.weight":  # (classes, features), of the class token and then of the patches' mean
            return torch.cat([_split(half, random) for half in weight.chunk(2, dim=1)], dim=1)
        case _ if name.endswith("projection.weight"):
            return torch.cat([_resample(weight, patch)] * 2)
        case _ if weight.ndim == 2 and name.endswith(".weight"):
            return torch.cat([_split(weight, random), _split(weight, random)])
        case _:  # biases, norms, scales of layers, tokens, positions
            return torch.cat([weight] * 2, dim=-1)


def _split(weight: Tensor, random: torch.Generator) -> Tensor:
    """(out, in) to (out, twice in): what multiplies the copies of a channel adds up to what multiplied it."""
    low, high = _SHARES
    share = low + (high - low) * torch.rand(weight.shape, generator=random)
    return torch.cat([share * weight, (1 - share) * weight], dim=1)


def _resample(weight: Tensor, patch: int) -> Tensor:
    """(out, channels, side, side) to another side, such that resized patches have nearly the products they had."""
    side = weight.shape[-1]
    if side == patch:
        return weight
    basis = torch.eye(side * side).reshape(-1, 1, side, side)
    resized = torch.nn.functional.interpolate(basis, (patch, patch), mode="bilinear", align_corners=False)
    inverse = torch.linalg.pinv(resized.flatten(1))  # (patch², side²)
    return torch.einsum("pq,ocq->ocp", inverse, weight.flatten(2)).reshape(*weight.shape[:2], patch, patch)


@app.command()
def run(
    source: Annotated[Path, typer.Argument(help="Folder of a Dinov2ForImageClassification.")],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    patch: Annotated[int | None, typer.Option(min=1, help="Pixels of a patch's side; by default the source's.")] = None,
) -> None:
    """Makes a checkpoint of twice the width that computes what a small one does."""
    widen(source, target, patch)


if __name__ == "__main__":
    main(app, NAME)
