"""ViT's weights as google-research/vision_transformer and big_vision publish them: one `.npz` file of JAX arrays.

Facts: vit_jax/models_vit.py, vit_jax/checkpoint.py, big_vision/models/vit.py. flax used to number the parts of a block
all together, and now each kind by itself: the same block has two spellings. timm and transformers run these weights
with the exact GELU; here it is Google's own, flax's `gelu`, which is the tanh approximation.
"""

import re
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ferryman.errors import CheckpointError
from ferryman.files import sha256_file
from ferryman.specs import PreprocessSpec, classification_spec, embedding_spec
from ferryman_models.checkpoints.base import Checkpoint, build_model
from ferryman_models.checkpoints.renames import Renames, drop_tensors, rename_tensors
from ferryman_models.checkpoints.timm_vit import config_from_tensors
from ferryman_models.vit import ViT

_BLOCK = r"^Transformer/encoderblock_(\d+)/"
RENAMES: Renames = (
    (r"^embedding/", "patches/"),
    (r"^(Transformer/(posembed_input/)?)?pos_embedding$", "positions"),
    (r"^Transformer/encoder_norm/", "norm/"),
    (_BLOCK + r"LayerNorm_0/", r"blocks/\1/norm_attention/"),
    (_BLOCK + r"LayerNorm_[12]/", r"blocks/\1/norm_feed_forward/"),
    (_BLOCK + r"MultiHeadDotProductAttention_[01]/", r"blocks/\1/attention/"),
    (_BLOCK + r"MlpBlock_[03]/Dense_0/", r"blocks/\1/feed_forward/up/"),
    (_BLOCK + r"MlpBlock_[03]/Dense_1/", r"blocks/\1/feed_forward/down/"),
    (r"/(kernel|scale)$", "/weight"),
    (r"/", "."),
)
_HEADS = re.compile(r"Transformer/encoderblock_0/MultiHeadDotProductAttention_[01]/query/kernel")
_SCANNED = "Transformer/encoderblock/"
# Published so, from ImageNet-21k: timm, vision_transformer.py, `vit_large_patch16_224_in21k` and its like.
_ZERO_HEAD = (
    (
        r"^(pre_logits|head)/",
        "the head is zero and left out, with the layer before it: an embedding is the class token",
    ),
)


def load_google_npz(path: Path, source: str, labels: tuple[str, ...] | None = None) -> Checkpoint:
    """The ViT in `path`, fp32, in `eval()` mode; what it is follows from its arrays alone.

    labels: of the classes, by default `LABEL_0` and so on
    Raises CheckpointError for a file that is damaged or no such ViT's, for positions that it doesn't hold, and for a
    head that pools with attention, or with a layer before it, unless that head is zero.
    """
    arrays = _plain_names(_read(path))
    if any(re.search("(^|/)(MAPHead_0/|probe$)", name) for name in arrays):
        raise CheckpointError(f"{path}: its head pools with attention (MAPHead), which can't be followed")
    query = next((array for name, array in arrays.items() if _HEADS.fullmatch(name)), None)
    if query is None or query.ndim != 3:
        raise CheckpointError(f"{path}: no ViT of google-research: there is no {_HEADS.pattern}")
    if not any(name.endswith("pos_embedding") for name in arrays):
        raise CheckpointError(
            f"{path}: it has no pos_embedding; positions that are computed (sincos2d) don't tell the size of its images"
        )
    tensors = {name: torch.from_numpy(_linear_from_jax(name, array)) for name, array in arrays.items()}
    notes: tuple[str, ...] = ()
    if any(name.startswith("pre_logits/") for name in tensors):
        head = tensors.get("head/kernel")
        if head is not None and head.any():
            raise CheckpointError(
                f"{path}: it has a layer between encoder and head (pre_logits), which can't be followed; the "
                "fine-tuned checkpoints and those of AugReg have none"
            )
        tensors, notes = drop_tensors(tensors, _ZERO_HEAD)
    state = rename_tensors(tensors, RENAMES, str(path))
    pooling = "cls" if "cls" in state else "mean"
    config = replace(config_from_tensors(state, query.shape[1], pooling, "plain", str(path)), feed_forward="gelu-tanh")
    model = build_model(lambda: ViT(config), state, str(path))
    if labels is None:
        labels = tuple(f"LABEL_{index}" for index in range(config.classes))
    if len(labels) != config.classes:
        raise CheckpointError(f"{path}: there are {len(labels)} labels, the head has {config.classes} classes")
    # vit_jax/input_pipeline.py: both sides to the model's own, values to [-1, 1].
    half = (0.5, 0.5, 0.5)
    preprocess = PreprocessSpec(size=config.image_size, fit="stretch", mean=half, std=half)
    if labels:
        spec = classification_spec(preprocess, labels)
    elif config.class_token:
        spec = embedding_spec(preprocess, config.dim, config.grid(config.image_size))
    else:
        raise CheckpointError(f"{path}: it has neither a head nor a class token, so there is nothing to answer")
    return Checkpoint(source, sha256_file(path), "vit", model, spec, format="Google npz", notes=notes)


def _read(path: Path) -> dict[str, NDArray[np.float32]]:
    """Every array as fp32. Raises CheckpointError for what is no archive of numbers; nothing in it is executed."""
    if not path.is_file():
        raise CheckpointError(f"there is no weights file {path}")
    try:
        # np.load would take a bare array or a pickle for what it is, and answer with something else.
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no .npz archive")
        with np.load(path, allow_pickle=False) as file:
            return {name: _as_float32(name, file[name]) for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile, MemoryError) as error:
        raise CheckpointError(f"{path} can't be read as a .npz of weights: {error}") from error


def _plain_names(arrays: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The arrays without `params/`, each block's apart: big_vision may keep all in one, the block is dimension 0."""
    plain: dict[str, NDArray[np.float32]] = {}
    for name, array in arrays.items():
        short = name.removeprefix("params/")
        if short.startswith(_SCANNED) and array.ndim:
            plain |= {short.replace(_SCANNED, f"{_SCANNED[:-1]}_{block}/"): part for block, part in enumerate(array)}
        else:
            plain[short] = array
    return plain


def _as_float32(name: str, array: NDArray[Any]) -> NDArray[np.float32]:
    if array.dtype == np.dtype("V2"):  # bfloat16, which NumPy has no name for: the upper half of a float32
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if array.dtype.kind != "f":
        raise ValueError(f"{name} holds {array.dtype}, expected floating point numbers")
    return array.astype(np.float32)


def _linear_from_jax(name: str, array: NDArray[np.float32]) -> NDArray[np.float32]:
    """A kernel as PyTorch lays it out; other arrays as they are, heads side by side."""
    if name.endswith("/out/kernel") and array.ndim == 3:
        array = array.reshape(-1, array.shape[-1])  # (heads, d_head, dim) -> (dim, dim)
    elif re.search(r"/(query|key|value)/(kernel|bias)$", name) and array.ndim in (2, 3):
        # (dim, heads, d_head) -> (dim, dim), (heads, d_head) -> (dim,)
        array = array.reshape(*array.shape[:-2], -1)
    if name.endswith("/kernel"):
        if array.ndim == 4:  # (height, width, inputs, outputs) -> (outputs, inputs, height, width)
            array = array.transpose(3, 2, 0, 1)
        elif array.ndim == 2:  # (inputs, outputs) -> (outputs, inputs)
            array = array.T
    return np.ascontiguousarray(array)
