"""From a format's names of tensors to ours: regular expressions, applied in order."""

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ferryman.errors import CheckpointError

Renames = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]


def rename_tensors(tensors: Mapping[str, Tensor], renames: Renames, where: str) -> dict[str, Tensor]:
    """The tensors under their new names; a name that no pattern knows stays as it is.

    Raises CheckpointError when two tensors end under one name; where: opens its message
    """
    renamed: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    for name, tensor in tensors.items():
        ours = name
        for pattern, replacement in renames:
            ours = re.sub(pattern, replacement, ours)
        if ours in renamed:
            raise CheckpointError(f"{where}: {origins[ours]} and {name} are the same tensor ({ours})")
        renamed[ours], origins[ours] = tensor, name
    return renamed


def drop_tensors(
    tensors: Mapping[str, Tensor], dropped: Sequence[tuple[str, str]]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors without those that a pattern matches, and a note for each pattern that did, in order."""
    kept: dict[str, Tensor] = {}
    notes: dict[str, None] = {}
    for name, tensor in tensors.items():
        reasons = [reason for pattern, reason in dropped if re.search(pattern, name)]
        if reasons:
            notes[reasons[0]] = None
        else:
            kept[name] = tensor
    return kept, tuple(notes)
