"""A loaded checkpoint, and the strict way in which weights get into a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ferryman.errors import CheckpointError
from ferryman.specs import ModelSpec


@dataclass(frozen=True)
class Checkpoint:
    """A model in `eval()` mode with its facts.

    source: what was asked for, as the user wrote it; sha256: of the weights (see `tensors.StateFile`); architecture:
    "vit" or "detr"; format: which of the known formats it was in
    dtypes: that the weights are stored in
    notes: what the user should know: weights left out, facts that were missing and assumed
    name: what to call an export of it when the user does not say; by default what `source` ends with
    """

    source: str
    sha256: str
    architecture: str
    module: nn.Module
    spec: ModelSpec
    format: str = "Ferryman"
    dtypes: tuple[str, ...] = ("float32",)
    notes: tuple[str, ...] = ()
    name: str = ""


def build_model(build: Callable[[], nn.Module], state: Mapping[str, Tensor], where: str) -> nn.Module:
    """The module that `build` makes, with exactly the tensors of `state`, in `eval()` mode.

    Nothing is initialised: the module is built without memory and takes over the tensors.
    Raises CheckpointError that lists missing, unknown and misshapen tensors; where: opens its message
    """
    try:
        with torch.device("meta"):
            model = build()
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error
    expected = model.state_dict()
    problems = [
        *(f"{name} is missing" for name in expected if name not in state),
        *(f"{name} is unknown" for name in state if name not in expected),
        *(
            f"{name} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ),
    ]
    if problems:
        shown = "; ".join(problems[:8])
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckpointError(f"{where}: the weights are not those of its configuration: {shown}{more}")
    model.load_state_dict(dict(state), assign=True)
    return model.eval().requires_grad_(False)
