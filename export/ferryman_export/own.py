"""Your own model: the small contract that a `torch.nn.Module` keeps to be exported and proved like the known ones.

The contract, by task; all floats are float32 on the CPU, and the batch may have any size:

    takes            image (batch, 3, height, width), normalised by the spec's mean and std; for detection, where its
                     forward has a second argument, valid (batch, height, width) bool, True on pixels, False on padding
    classification   returns logits (batch, classes)
    detection        returns logits (batch, queries, classes + 1), "no object" last, and boxes (batch, queries, 4),
                     centre x, centre y, width, height in [0, 1] of the valid area, or, without a second argument, of
                     the whole image; or a `ferryman_models.detr.DetrOutput`
    embedding        returns cls (batch, dim) and patches (batch, rows, columns, dim)

Several tensors are returned as a tuple in that order. Padding holds zeros when the module gets it.
"""

import hashlib
import inspect
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ferryman.errors import UsageError
from ferryman.parity import BATCHES
from ferryman.specs import ModelSpec, PreprocessSpec, Task, classification_spec, detection_spec, embedding_spec
from ferryman_models.checkpoints.base import Checkpoint
from ferryman_models.detr import DetrOutput

_WANTED: dict[Task, str] = {
    "classification": "logits (batch, classes)",
    "detection": "a DetrOutput, or a tuple of logits (batch, queries, classes + 1) and boxes (batch, queries, 4)",
    "embedding": "a tuple of cls (batch, dim) and patches (batch, rows, columns, dim)",
}
_BOX_LIMIT = 2.0  # a box at the edge may reach out of [0, 1] a little; pixels are far beyond


def checkpoint_from_module(module: nn.Module, spec: ModelSpec, source: str) -> Checkpoint:
    """The module behind an adapter to the shapes of Ferryman's own models; its digest is that of `digest_state`.

    Raises UsageError unless it answers as the contract and the spec say.
    """
    _check_mode(module)
    found = derive_spec(module, spec.task, spec.labels, spec.preprocess)
    if found != spec:
        shapes = [", ".join(f"{t.name} {t.shape}" for t in one.outputs) for one in (found, spec)]
        raise UsageError(f"{source} answers with {shapes[0]}, its spec says {shapes[1]}: change one of them")
    architecture = type(module).__name__
    adapted = OwnDetector(module) if spec.task == "detection" else module
    return Checkpoint(source, digest_state(module), architecture, adapted, spec, format="module")


def digest_state(module: nn.Module) -> str:
    """SHA-256 over the tensors of `state_dict()` in the order of their names.

    Of each: its name, its dtype as "float32", its shape as "(2, 3)", each ended by a zero byte; then its values' bytes
    in C order, in the machine's byte order. What a state_dict does not hold (the code, buffers that are not
    persistent) is not in it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, Tensor):  # get_extra_state may return anything
            continue
        array = tensor.detach().cpu().contiguous()
        dtype = str(array.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{dtype}\0{tuple(array.shape)}\0".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class OwnDetector(nn.Module):
    """A detector of the contract above with the signature of `DETR`: the mask always, every layer's answers.

    A module that does not know of padding has its boxes scaled from the whole image to the valid area.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module
        self.takes_valid = takes_valid(module)

    def forward(self, image: Tensor, valid: Tensor) -> DetrOutput:
        """See `DETR.forward`; there is one layer, and no memory: an empty tensor stands for it."""
        output = self.inner(image, valid) if self.takes_valid else self.inner(image)
        if not isinstance(output, DetrOutput):
            logits, boxes_cxcywh = output
            output = DetrOutput(logits[None], boxes_cxcywh[None], image.new_zeros(0))
        return output if self.takes_valid else output._replace(boxes_cxcywh=self.rescale(output.boxes_cxcywh, valid))

    def rescale(self, boxes_cxcywh: Tensor, valid: Tensor) -> Tensor:
        """(layers, batch, queries, 4) in [0, 1] of the whole image -> of the valid area, which begins at the top left.

        valid: (batch, height, width) bool
        """
        real = valid.to(boxes_cxcywh.dtype)
        # Shares of the image's width and height, (batch,) each.
        width, height = real[:, 0].mean(dim=1), real[:, :, 0].mean(dim=1)
        return boxes_cxcywh / torch.stack((width, height, width, height), dim=1)[:, None]


def takes_valid(module: nn.Module) -> bool:
    """Whether the module's forward has a second positional argument."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in kinds for parameter in inspect.signature(module.forward).parameters.values()) > 1


def derive_spec(module: nn.Module, task: Task, labels: tuple[str, ...], preprocess: PreprocessSpec) -> ModelSpec:
    """The spec of what the module answers to noise of the canvas's size.

    Raises UsageError where it breaks the contract.
    """
    first, second = _answer(module, task, preprocess, 2), _answer(module, task, preprocess, 2)
    if not all(torch.equal(one, other) for one, other in zip(first, second, strict=True)):
        raise UsageError(
            "the module answers differently when asked the same twice: something in its forward is random, such as "
            "F.dropout without training=self.training"
        )
    for batch in BATCHES:
        for one, other in zip(first, _answer(module, task, preprocess, batch), strict=True):
            if one.shape[0] != 2 or other.shape != (batch, *one.shape[1:]):
                raise UsageError(
                    f"the module answers a batch of 2 with {tuple(one.shape)} and of {batch} with {tuple(other.shape)}"
                    f"; it must return {_WANTED[task]}"
                )
    shapes = [tuple(tensor.shape) for tensor in first]
    if task == "classification":
        if len(labels) != shapes[0][1]:
            raise UsageError(f"the module returns logits of {shapes[0][1]} classes, there are {len(labels)} labels")
        return classification_spec(preprocess, labels)
    if task == "embedding":
        if shapes[0][1] != shapes[1][3]:
            raise UsageError(f"cls has {shapes[0][1]} values and patches have {shapes[1][3]}; both must have dim")
        return embedding_spec(preprocess, shapes[0][1], (shapes[1][1], shapes[1][2]))
    if shapes[0][:2] != shapes[1][:2] or shapes[1][2] != 4 or shapes[0][2] != len(labels) + 1:
        raise UsageError(
            f"the module returns {shapes[0]} and {shapes[1]}; with {len(labels)} labels it must be logits (batch, "
            f'queries, {len(labels) + 1}), "no object" last, and boxes (batch, queries, 4)'
        )
    if (largest := float(first[1].abs().max())) > _BOX_LIMIT:
        raise UsageError(
            f"the module returns boxes with values up to {largest:.3g}; they must be centre x, centre y, width and "
            "height in [0, 1] of the valid area, not pixels"
        )
    return detection_spec(preprocess, labels, shapes[0][1])


def _answer(module: nn.Module, task: Task, preprocess: PreprocessSpec, batch: int) -> tuple[Tensor, ...]:
    """What the module returns for noise, its tensors in the contract's order, of the right number of dimensions."""
    generator = torch.Generator().manual_seed(0)
    arguments: list[Tensor] = [torch.randn(batch, 3, *preprocess.size, generator=generator)]
    if task == "detection" and takes_valid(module):
        arguments.append(torch.ones(batch, *preprocess.size, dtype=torch.bool))
    try:
        with torch.inference_mode():
            output: object = module(*arguments)
    # A user's module raises whatever it stumbles over.
    except Exception as error:
        shapes = " and ".join(f"{str(a.dtype).removeprefix('torch.')} {tuple(a.shape)}" for a in arguments)
        raise UsageError(
            f"the module fails on {shapes}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if isinstance(output, DetrOutput) and task == "detection":
        output = (output.logits[-1], output.boxes_cxcywh[-1])
    dims = {"classification": (2,), "detection": (3, 3), "embedding": (2, 4)}[task]
    tensors = output if isinstance(output, tuple | list) and task != "classification" else (output,)
    tensors = cast("Sequence[object]", tensors)
    found = [tensor for tensor in tensors if isinstance(tensor, Tensor)]
    if len(found) < len(tensors) or tuple(tensor.ndim for tensor in found) != dims:
        raise UsageError(f"the module returns {_describe(output)}; for {task} it must return {_WANTED[task]}")
    for tensor in found:
        if tensor.dtype != torch.float32:
            raise UsageError(f"the module returns {_describe(tensor)}, expected float32")
        if not tensor.isfinite().all():
            raise UsageError(f"the module returns NaN or infinite values for noise of deviation 1: {_describe(tensor)}")
    return tuple(found)


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        parts = ", ".join(_describe(part) for part in cast("Sequence[object]", value)[:4])
        return f"a {type(value).__name__} of {parts or 'nothing'}"
    return f"a {type(value).__name__}"


def _check_mode(module: nn.Module) -> None:
    training = [name or type(module).__name__ for name, child in module.named_modules() if child.training]
    if training:
        raise UsageError(f"the module is in training mode (first {training[0]}): call its eval() first")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise UsageError(
                f"{name} is {dtype} on {tensor.device}, expected float32 on the CPU: call float() and cpu() first"
            )
