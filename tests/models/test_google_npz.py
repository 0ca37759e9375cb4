"""Google's `.npz` files: a ViT of `transformers` with Google's GELU, its weights written as JAX lays them out."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from ferryman.errors import CheckpointError
from ferryman.specs import PreprocessSpec
from ferryman_models.checkpoints.google_npz import load_google_npz
from ferryman_models.vit import ViT

from .weights import HFViTConfig, max_error, randomize

DIM, HEADS, DEPTH = 48, 4, 3
Arrays = dict[str, NDArray[Any]]


def hf_vit(classes: int = 5) -> Any:
    config = HFViTConfig(
        hidden_size=DIM,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=80,
        image_size=48,
        patch_size=8,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
        num_labels=classes,
        attn_implementation="eager",
    )
    model: Any = transformers.ViTForImageClassification(config)
    randomize(model, seed=3)
    return model.eval()


def google_arrays(model: Any) -> Arrays:
    """The names are facts of google-research/vision_transformer, vit_jax/models_vit.py."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def linear(source: str, target: str, shape: tuple[int, ...] | None = None) -> Arrays:
        kernel, bias = state[f"{source}.weight"].T, state[f"{source}.bias"]
        if shape is not None:
            kernel, bias = kernel.reshape(DIM, *shape), bias.reshape(shape)
        return {f"{target}/kernel": kernel, f"{target}/bias": bias}

    def norm(source: str, target: str) -> Arrays:
        return {f"{target}/scale": state[f"{source}.weight"], f"{target}/bias": state[f"{source}.bias"]}

    arrays: Arrays = {
        "cls": state["vit.embeddings.cls_token"],
        "embedding/kernel": state["vit.embeddings.patch_embeddings.projection.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["vit.embeddings.patch_embeddings.projection.bias"],
        "Transformer/posembed_input/pos_embedding": state["vit.embeddings.position_embeddings"],
    }
    for index in range(DEPTH):
        layer, block = f"vit.layers.{index}", f"Transformer/encoderblock_{index}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for ours, theirs in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
            arrays |= linear(f"{layer}.attention.{ours}", f"{attention}/{theirs}", (HEADS, DIM // HEADS))
        arrays |= linear(f"{layer}.attention.o_proj", f"{attention}/out")
        arrays[f"{attention}/out/kernel"] = arrays[f"{attention}/out/kernel"].reshape(HEADS, DIM // HEADS, DIM)
        arrays |= norm(f"{layer}.layernorm_before", f"{block}/LayerNorm_0")
        arrays |= norm(f"{layer}.layernorm_after", f"{block}/LayerNorm_2")
        arrays |= linear(f"{layer}.mlp.fc1", f"{block}/MlpBlock_3/Dense_0")
        arrays |= linear(f"{layer}.mlp.fc2", f"{block}/MlpBlock_3/Dense_1")
    return arrays | norm("vit.layernorm", "Transformer/encoder_norm") | linear("classifier", "head")


def write(path: Path, arrays: Arrays) -> Path:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=True, **arrays)
    return path


def respell(arrays: Arrays) -> Arrays:
    """As flax numbers the parts of a block today."""
    newer = {"LayerNorm_2": "LayerNorm_1", "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0"}
    newer["MlpBlock_3"] = "MlpBlock_0"
    return {"/".join(newer.get(part, part) for part in name.split("/")): array for name, array in arrays.items()}


def put_together(arrays: Arrays) -> Arrays:
    """As big_vision's `scan` keeps the blocks: an array of each kind, the block its first dimension."""
    blocks = {name: array for name, array in arrays.items() if "encoderblock_" in name}
    firsts = [name for name in blocks if "encoderblock_0" in name]
    names = {first: [first.replace("_0/", f"_{index}/", 1) for index in range(DEPTH)] for first in firsts}
    together = {
        first.replace("encoderblock_0", "encoderblock"): np.stack([blocks[name] for name in names[first]])
        for first in firsts
    }
    return {name: array for name, array in arrays.items() if name not in blocks} | together


SPELLINGS: dict[str, Callable[[Arrays], Arrays]] = {
    "parts numbered together": lambda arrays: arrays,
    "each kind numbered": respell,
    "blocks in one": lambda arrays: put_together(respell(arrays)),
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
@torch.no_grad()
def test_equals_transformers(spell: Callable[[Arrays], Arrays], tmp_path: Path) -> None:
    reference = hf_vit()
    checkpoint = load_google_npz(write(tmp_path / "ViT-B_16.npz", spell(google_arrays(reference))), "x")
    assert isinstance(checkpoint.module, ViT)
    assert checkpoint.spec.labels == tuple(f"LABEL_{index}" for index in range(5))
    half = (0.5, 0.5, 0.5)
    assert checkpoint.spec.preprocess == PreprocessSpec(size=(48, 48), fit="stretch", mean=half, std=half)
    image = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(2))
    expected = reference(image).logits
    assert max_error(checkpoint.module(image), expected) <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize("class_token", [False, True], ids=["mean of patches", "class token"])
@torch.no_grad()
def test_a_file_of_big_vision(class_token: bool, tmp_path: Path) -> None:
    """Its positions are the patches' alone and stand outside the Transformer; its head may take the patches' mean."""
    reference = hf_vit()
    positions = reference.vit.embeddings.position_embeddings
    positions[:, 0] = 0
    arrays = respell(google_arrays(reference))
    arrays["pos_embedding"] = arrays.pop("Transformer/posembed_input/pos_embedding")[:, 1:]
    if not class_token:
        del arrays["cls"]
    path = write(tmp_path / "vit.npz", {f"params/{name}": array for name, array in arrays.items()})
    checkpoint = load_google_npz(path, "x")
    assert isinstance(checkpoint.module, ViT)
    image = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(2))
    expected = reference(image).logits
    if not class_token:
        tokens = reference.vit.embeddings.patch_embeddings(image) + positions[:, 1:]
        for layer in reference.vit.layers:
            tokens = layer(tokens)
        expected = reference.classifier(reference.vit.layernorm(tokens).mean(dim=1))
    assert max_error(checkpoint.module(image), expected) <= 2e-5 * expected.abs().max()


@torch.no_grad()
def test_bfloat16_and_no_head(tmp_path: Path) -> None:
    reference = hf_vit().bfloat16().float()
    arrays = {name: array for name, array in google_arrays(reference).items() if not name.startswith("head/")}
    # As JAX writes bfloat16, which NumPy has no name for: two bytes of anything.
    packed = {name: (array.view(np.uint32) >> 16).astype(np.uint16).view("V2") for name, array in arrays.items()}
    checkpoint = load_google_npz(write(tmp_path / "vit.npz", packed), "x")
    assert isinstance(checkpoint.module, ViT)
    assert checkpoint.spec.task == "embedding"
    image = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(2))
    expected = reference.vit(image).last_hidden_state
    assert max_error(checkpoint.module.forward_features(image), expected) <= 2e-5 * expected.abs().max()


@torch.no_grad()
def test_a_head_of_zeros_is_left_out_with_the_layer_before_it(tmp_path: Path) -> None:
    """As the files of ImageNet-21k are published."""
    reference = hf_vit()
    arrays = google_arrays(reference)
    untrained = {"head/kernel": np.zeros_like(arrays["head/kernel"]), "pre_logits/kernel": np.ones((DIM, DIM))}
    checkpoint = load_google_npz(write(tmp_path / "vit.npz", arrays | untrained), "x")
    assert isinstance(checkpoint.module, ViT)
    assert checkpoint.spec.task == "embedding"
    assert len(checkpoint.notes) == 1
    assert checkpoint.notes[0].startswith("the head is zero and left out")
    image = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(2))
    expected = reference.vit(image).last_hidden_state
    assert max_error(checkpoint.module.forward_features(image), expected) <= 2e-5 * expected.abs().max()


def test_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "vit.npz", google_arrays(hf_vit()))
    assert load_google_npz(path, "x", tuple("abcde")).spec.labels == tuple("abcde")
    with pytest.raises(CheckpointError, match="there are 2 labels, the head has 5 classes"):
        load_google_npz(path, "x", ("a", "b"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"pre_logits/kernel": np.zeros((DIM, DIM))}, r"pre_logits\), which can't be followed", id="pre"),
        pytest.param({"cls": np.array([print], dtype=object)}, "allow_pickle=False", id="pickle"),
        pytest.param({"cls": np.zeros((1, 1, 3), np.float32)}, r"cls has shape \(1, 1, 3\)", id="misshapen"),
        pytest.param({"conv_root/kernel": np.zeros(3)}, r"conv_root\.weight is unknown", id="hybrid"),
        pytest.param({"head/kernel": np.zeros((DIM, 5), np.int32)}, "head/kernel holds int32", id="integers"),
        pytest.param({"MAPHead_0/probe": np.zeros((1, 1, DIM))}, "pools with attention .MAPHead.", id="MAP head"),
        pytest.param({"probe": np.zeros((1, 1, DIM))}, "pools with attention .MAPHead.", id="MAP head, inline"),
        pytest.param(
            {"params/img/MAPHead_0/probe": np.zeros(DIM)}, "pools with attention", id="MAP head of two towers"
        ),
        pytest.param(
            {"Transformer/encoderblock_0/LayerNorm_1/scale": np.ones(DIM)}, "are the same tensor", id="two spellings"
        ),
    ],
)
def test_wrong_files_are_named(changes: Arrays, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "vit.npz", google_arrays(hf_vit()) | changes)
    with pytest.raises(CheckpointError, match=message):
        load_google_npz(path, "x")


def test_positions_that_are_computed(tmp_path: Path) -> None:
    arrays = {name: array for name, array in google_arrays(hf_vit()).items() if not name.endswith("pos_embedding")}
    with pytest.raises(CheckpointError, match=r"no pos_embedding; positions that are computed \(sincos2d\)"):
        load_google_npz(write(tmp_path / "vit.npz", arrays), "x")


def test_what_is_no_archive(tmp_path: Path) -> None:
    path = write(tmp_path / "vit.npz", google_arrays(hf_vit()))
    data = path.read_bytes()
    lone = io.BytesIO()
    np.save(lone, np.zeros(3))
    for damaged in (b"", data[: len(data) // 2], lone.getvalue()):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"can't be read as a \.npz of weights"):
            load_google_npz(path, "x")
    with pytest.raises(CheckpointError, match="no weights file"):
        load_google_npz(tmp_path / "none.npz", "x")
    with pytest.raises(CheckpointError, match=r"no ViT of google-research.*encoderblock_0"):
        load_google_npz(write(tmp_path / "other.npz", {"a": np.zeros(2, np.float32)}), "x")
