"""What PyTorch answers, computed apart from the wrapper: NumPy around the bare model, one sample at a time.

Nothing is shared with `wrappers`, so a mistake in there can't hide in the golden samples as well.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ferryman.golden import Tensors
from ferryman.specs import ModelSpec, PreprocessSpec
from ferryman_models.detr import DETR
from ferryman_models.vit import ViT


def normalize_reference(image_u8: NDArray[Any], spec: PreprocessSpec) -> NDArray[np.float32]:
    """(height, width, 3) uint8 -> (3, height, width) float32, computed in float64."""
    scaled = image_u8.astype(np.float64) / 255
    normalised = (scaled - np.array(spec.mean)) / np.array(spec.std)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)).astype(np.float32)


def _softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _classification(model: nn.Module, inputs: Tensors, spec: ModelSpec) -> Tensors:
    image = normalize_reference(inputs["image"], spec.preprocess)
    logits = model(torch.from_numpy(image)[None])[0].numpy()
    return {"logits": logits, "probabilities": _softmax(logits).astype(np.float32)}


def _run_detr(model: nn.Module, inputs: Tensors, spec: ModelSpec) -> Any:
    image = normalize_reference(inputs["image"], spec.preprocess)
    height, width = (int(side) for side in inputs["valid_size"])
    valid = np.zeros(image.shape[1:], dtype=np.bool_)
    valid[:height, :width] = True
    image[:, ~valid] = 0
    return model(torch.from_numpy(image)[None], torch.from_numpy(valid)[None])


def _answers(output: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits of every query and its box, xyxy clipped to [0, 1]."""
    cx, cy, w, h = output.boxes_cxcywh[-1, 0].numpy().astype(np.float64).T
    boxes = np.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), axis=1)
    return output.logits[-1, 0].numpy(), np.clip(boxes, 0, 1).astype(np.float32)


def _detection(model: nn.Module, inputs: Tensors, spec: ModelSpec) -> Tensors:
    return _detections(_run_detr(model, inputs, spec))


def _detections(output: Any) -> Tensors:
    logits, boxes = _answers(output)
    objects = _softmax(logits)[:, :-1]
    return {
        "logits": logits,
        "boxes": boxes,
        "scores": objects.max(axis=1).astype(np.float32),
        "labels": objects.argmax(axis=1).astype(np.int64),
    }


def _ranked_detection(model: nn.Module, inputs: Tensors, spec: ModelSpec) -> Tensors:
    logits, boxes = _answers(_run_detr(model, inputs, spec))
    ranking = np.argsort(-logits, axis=None, kind="stable")[: int(spec.outputs[1].shape[1])]
    queries, labels = np.unravel_index(ranking, logits.shape)
    return {
        "logits": logits[queries],
        "boxes": boxes[queries],
        "scores": (1 / (1 + np.exp(-logits[queries, labels].astype(np.float64)))).astype(np.float32),
        "labels": labels.astype(np.int64),
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


def _segmentation(model: nn.Module, inputs: Tensors, spec: ModelSpec) -> Tensors:
    output = _run_detr(model, inputs, spec)
    masks = output.masks[0].numpy()
    limits = np.finfo(np.float16)
    return {**_detections(output), "masks": np.clip(masks, limits.min, limits.max).astype(np.float16)}


def _semantic(model: nn.Module, inputs: Tensors, spec: ModelSpec) -> Tensors:
    image = normalize_reference(inputs["image"], spec.preprocess)
    cells = model(torch.from_numpy(image)[None])[0].numpy().astype(np.float64)  # (classes, rows, columns)
    down, along = (_interpolation(sides, cells.shape[1 + axis]) for axis, sides in enumerate(spec.preprocess.size))
    classes = np.empty(spec.preprocess.size, dtype=np.uint8)
    confidences = np.empty(spec.preprocess.size, dtype=np.float16)
    for row, weights in enumerate(down):  # one row of pixels at a time: (classes, width)
        logits = np.einsum("r,krc->kc", weights, cells) @ along.T
        classes[row] = logits.argmax(axis=0)
        confidences[row] = _softmax(logits.T).max(axis=1)
    return {"classes": classes, "confidences": confidences}


def _interpolation(pixels: int, cells: int) -> NDArray[np.float64]:
    """(pixels, cells) weights of linear interpolation between the cells' centres, constant beyond the outer two."""
    places = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    return np.clip(1 - np.abs(places[:, None] - np.arange(cells)[None]), 0, None)


@contextmanager
def _capture(model: nn.Module) -> Generator[dict[str, NDArray[np.float64]], None, None]:
    """What the last attention of a ViT or DETR makes of its inputs: `query` and `key`, (tokens, dim) each."""
    found: dict[str, NDArray[np.float64]] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            del module, inputs
            found[name] = output[0].numpy().astype(np.float64)

        return hook

    # Modules are named in the order of the layers, and a DETR's decoder comes after its backbone and encoder.
    kind = ".cross_attention" if isinstance(model, DETR) else ".attention"
    last = [name for name, _ in model.named_modules() if name.endswith(kind)][-1]
    hooks = [model.get_submodule(f"{last}.{name}").register_forward_hook(keep(name)) for name in ("query", "key")]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _attention(model: nn.Module, inputs: Tensors, spec: ModelSpec, found: Tensors) -> NDArray[np.float32]:
    """(rows, columns), or for DETR (queries, rows, columns): of the weights that queries give to keys."""
    rows, columns = (int(size) for size in spec.outputs[-1].shape[-2:])
    heads = model.config.heads if isinstance(model, DETR | ViT) else 1
    # (tokens, dim) -> (heads, tokens, dim / heads)
    query, key = (found[name].reshape(len(found[name]), heads, -1).transpose(1, 0, 2) for name in ("query", "key"))
    scores = np.einsum("htd,hsd->hts", query, key) / np.sqrt(query.shape[-1])
    if isinstance(model, DETR):
        # A cell is real where the pixel is that PyTorch's nearest resize of the mask takes.
        sides = zip((rows, columns), spec.preprocess.size, inputs["valid_size"], strict=True)
        real = [
            np.floor(np.arange(cells, dtype=np.float32) * np.float32(pixels / cells)) < valid
            for cells, pixels, valid in sides
        ]
        scores[:, :, ~np.outer(*real).ravel()] = -np.inf
        return _softmax(scores).mean(axis=0).reshape(-1, rows, columns).astype(np.float32)
    weights = _softmax(scores).mean(axis=0)
    patches = rows * columns  # the last tokens, whatever stands before them
    mean = isinstance(model, ViT) and model.config.pooling == "mean" and spec.task != "embedding"
    row = weights[-patches:].mean(axis=0) if mean else weights[0]
    return row[-patches:].reshape(rows, columns).astype(np.float32)


_REFERENCES: dict[str, Callable[[nn.Module, Tensors, ModelSpec], Tensors]] = {
    "classification": _classification,
    "detection": _detection,
    "embedding": _embedding,
    "segmentation": _segmentation,
    "semantic-segmentation": _semantic,
}


def reference_outputs(
    model: nn.Module, inputs: Tensors, spec: ModelSpec, advance: Callable[[int], None] = lambda done: None
) -> Tensors:
    """The bare model's answers to every sample of `inputs`, each run alone in fp32 eager mode.

    inputs: per input of the spec an array whose first dimension counts samples; likewise the outputs
    advance: called with the number of samples done since the last call
    """
    reference = _ranked_detection if spec.ranked else _REFERENCES[spec.task]
    answers: list[Tensors] = []
    with torch.inference_mode():
        for index in range(len(inputs["image"])):
            sample = {name: array[index] for name, array in inputs.items()}
            if spec.explains:
                with _capture(model) as found:
                    answer = reference(model, sample, spec)
                answers.append({**answer, "attention": _attention(model, sample, spec, found)})
            else:
                answers.append(reference(model, sample, spec))
            advance(1)
    return {name: np.stack([answer[name] for answer in answers]) for name in spec.output_names}
