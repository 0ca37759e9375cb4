"""Weights that other code keeps in one tensor and ours in several."""

import re
from collections.abc import Mapping

from torch import Tensor

_QKV = re.compile(r"^(.*\.)(?:qkv\.(weight|bias)|in_proj_(weight|bias))$")


def split_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parts every `qkv` (timm) and `in_proj_` (torch.nn.MultiheadAttention) into `query`, `key` and `value`.

    A tensor whose rows don't make three is left as it is, for the check of the shapes to name it.
    """
    parted: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _QKV.match(name)
        if match and len(tensor) % 3 == 0:
            kind = match[2] or match[3]
            names = [f"{match[1]}{part}.{kind}" for part in ("query", "key", "value")]
            parted |= dict(zip(names, tensor.chunk(3), strict=True))
        else:
            parted[name] = tensor
    return parted


def split_gate(tensors: Mapping[str, Tensor], packed: str, gate: str, up: str) -> dict[str, Tensor]:
    """Parts every SwiGLU matrix of this name into the gate, its first half, and the values."""
    parted: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if f".{packed}." in name:
            halves = tensor.chunk(2)
            parted[name.replace(f".{packed}.", f".{gate}.")] = halves[0]
            parted[name.replace(f".{packed}.", f".{up}.")] = halves[1]
        else:
            parted[name] = tensor
    return parted
