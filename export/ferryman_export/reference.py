"""What PyTorch answers, computed apart from the wrapper: NumPy around the bare model, one sample at a time.

Nothing is shared with `wrappers`, so a mistake in there can't hide in the golden samples as well.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ferryman.golden import Tensors
from ferryman.specs import ModelSpec, PreprocessSpec
from ferryman_models.vit import ViT


def normalize_reference(image_u8: NDArray[Any], spec: PreprocessSpec) -> NDArray[np.float32]:
    """(height, width, 3) uint8 -> (3, height, width) float32, computed in float64."""
    scaled = image_u8.astype(np.float64) / 255
    normalised = (scaled - np.array(spec.mean)) / np.array(spec.std)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)).astype(np.float32)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _classification(model: nn.Module, inputs: Tensors, spec: ModelSpec) -> Tensors:
    image = normalize_reference(inputs["image"], spec.preprocess)
    logits = model(torch.from_numpy(image)[None])[0].numpy()
    return {"logits": logits, "probabilities": _softmax(logits).astype(np.float32)}


def _detection(model: nn.Module, inputs: Tensors, spec: ModelSpec) -> Tensors:
    image = normalize_reference(inputs["image"], spec.preprocess)
    height, width = (int(side) for side in inputs["valid_size"])
    valid = np.zeros(image.shape[1:], dtype=np.bool_)
    valid[:height, :width] = True
    image[:, ~valid] = 0
    output = model(torch.from_numpy(image)[None], torch.from_numpy(valid)[None])
    logits = output.logits[-1, 0].numpy()
    cx, cy, w, h = output.boxes_cxcywh[-1, 0].numpy().astype(np.float64).T
    boxes = np.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), axis=1)
    objects = _softmax(logits)[:, :-1]
    return {
        "logits": logits,
        "boxes": np.clip(boxes, 0, 1).astype(np.float32),
        "scores": objects.max(axis=1).astype(np.float32),
        "labels": objects.argmax(axis=1).astype(np.int64),
    }


def _embedding(model: nn.Module, inputs: Tensors, spec: ModelSpec) -> Tensors:
    image = normalize_reference(inputs["image"], spec.preprocess)
    if not isinstance(model, ViT):  # of the contract in `own`
        cls, patches = model(torch.from_numpy(image)[None])
        return {"cls": cls[0].numpy(), "patches": patches[0].numpy()}
    tokens = model.forward_features(torch.from_numpy(image)[None])[0].numpy()
    rows, columns, dim = (int(size) for size in spec.outputs[1].shape[1:])
    # The patches are the last tokens, whatever stands before them.
    return {"cls": tokens[0], "patches": tokens[-rows * columns :].reshape(rows, columns, dim)}


_REFERENCES: dict[str, Callable[[nn.Module, Tensors, ModelSpec], Tensors]] = {
    "classification": _classification,
    "detection": _detection,
    "embedding": _embedding,
}


def reference_outputs(
    model: nn.Module, inputs: Tensors, spec: ModelSpec, advance: Callable[[int], None] = lambda done: None
) -> Tensors:
    """The bare model's answers to every sample of `inputs`, each run alone in fp32 eager mode.

    inputs: per input of the spec an array whose first dimension counts samples; likewise the outputs
    advance: called with the number of samples done since the last call
    """
    reference = _REFERENCES[spec.task]
    answers: list[Tensors] = []
    with torch.inference_mode():
        for index in range(len(inputs["image"])):
            answers.append(reference(model, {name: array[index] for name, array in inputs.items()}, spec))
            advance(1)
    return {name: np.stack([answer[name] for answer in answers]) for name in spec.output_names}
