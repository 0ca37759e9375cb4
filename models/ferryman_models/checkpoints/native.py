"""Ferryman's own checkpoint: one safetensors file whose header holds architecture, configuration and ModelSpec."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ferryman.errors import CheckpointError
from ferryman.files import replace_file, sha256_file
from ferryman.specs import ModelSpec
from ferryman_models.checkpoints.base import Checkpoint
from ferryman_models.detr import DETR, DETRConfig
from ferryman_models.vit import ViT, ViTConfig

SCHEMA = 1


def _vit(config: object) -> nn.Module:
    return ViT(TypeAdapter(ViTConfig).validate_python(config))


def _detr(config: object) -> nn.Module:
    return DETR(TypeAdapter(DETRConfig).validate_python(config))


_BUILDERS: dict[str, Callable[[object], nn.Module]] = {"vit": _vit, "detr": _detr}


def save_native(path: Path, model: ViT | DETR, spec: ModelSpec) -> None:
    """Writes `model` and `spec` to one file, whole or not at all."""
    architecture = "vit" if isinstance(model, ViT) else "detr"
    header = {
        "schema": SCHEMA,
        "architecture": architecture,
        "config": asdict(model.config),
        "spec": spec.model_dump(mode="json"),
    }
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    with replace_file(path) as temporary:
        save_file(tensors, temporary, metadata={"ferryman": json.dumps(header)})


def load_native(path: Path, source: str) -> Checkpoint:
    """The model in `path`, fp32, in `eval()` mode. Raises CheckpointError when the file is not such a checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["ferryman"])
            state: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if header["schema"] > SCHEMA:
            raise CheckpointError(
                f"{path} has checkpoint schema {header['schema']}, this Ferryman reads up to {SCHEMA}; upgrade it"
            )
        model = _BUILDERS[header["architecture"]](header["config"])
        model.load_state_dict(state)
        spec = ModelSpec.model_validate(header["spec"])
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint at {path}") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} can't be read as safetensors: {error}") from error
    except (KeyError, TypeError, ValueError, ValidationError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a Ferryman checkpoint: {error}") from error
    return Checkpoint(source, sha256_file(path), header["architecture"], model.eval(), spec)
