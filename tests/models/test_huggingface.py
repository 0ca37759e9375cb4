"""Folders of `save_pretrained`, loaded by us, against transformers' own models: random weights, fp32."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from ferryman.errors import CheckpointError
from ferryman.specs import PreprocessSpec
from ferryman_models.checkpoints.huggingface import load_huggingface
from ferryman_models.detr import DETR
from ferryman_models.vit import ViT

from .weights import HFResNetConfig, calibrate_norms, max_error, pad_images, randomize

# Relative to the output's scale; both sides add in fp32.
TOLERANCE = 2e-5
CANVAS = (64, 96)
SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
}
PLAIN: dict[str, Any] = SMALL | {"intermediate_size": 80, "num_labels": 7}
DINO: dict[str, Any] = SMALL | {"mlp_ratio": 2, "num_labels": 7}
RESNET: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [32, 32], "depths": [1, 2], "out_features": ["stage2"]}
DETR_FACTS: dict[str, Any] = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 9,
    "num_labels": 5,
}

# A class of transformers, its configuration's class, and its facts.
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", PLAIN),
    "vit-patch-16-wide": ("ViTForImageClassification", "ViTConfig", PLAIN | {"patch_size": 16, "image_size": [32, 96]}),
    "vit-no-qkv-bias": ("ViTForImageClassification", "ViTConfig", PLAIN | {"qkv_bias": False}),
    "vit-encoder": ("ViTModel", "ViTConfig", PLAIN),
    "deit": ("DeiTForImageClassification", "DeiTConfig", PLAIN),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", DINO),
    "dinov2-odd-grid": (
        "Dinov2ForImageClassification",
        "Dinov2Config",
        DINO | {"patch_size": 14, "image_size": 98},
    ),
    "dinov2-swiglu": ("Dinov2ForImageClassification", "Dinov2Config", DINO | {"use_swiglu_ffn": True}),
    "dinov2-encoder": ("Dinov2Model", "Dinov2Config", DINO),
    "registers": ("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", DINO),
    "registers-encoder": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", DINO | {"num_register_tokens": 3}),
}


def build(model_class: str, config_class: str, facts: dict[str, Any]) -> Any:
    config = getattr(transformers, config_class)(**facts, attn_implementation="eager")
    model = getattr(transformers, model_class)(config)
    randomize(model, seed=1)
    return model.eval()


def save(model: Any, folder: Path, size: tuple[int, int], processor: str = "ViT", **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    sides = {"height": size[0], "width": size[1]}
    document = {"image_processor_type": f"{processor}ImageProcessor", "size": sides}
    (folder / "preprocessor_config.json").write_text(json.dumps(document))
    return folder


def answer(model: Any, image: Tensor) -> Tensor:
    output = model(image)
    return output.logits if "logits" in output else output.last_hidden_state


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_encoder_equals_transformers(name: str, tmp_path: Path) -> None:
    model_class, config_class, facts = ENCODERS[name]
    reference = build(model_class, config_class, facts)
    side = facts["image_size"]
    size = (side, side) if isinstance(side, int) else (side[0], side[1])
    checkpoint = load_huggingface(save(reference, tmp_path, size), name)
    assert isinstance(checkpoint.module, ViT)
    assert checkpoint.architecture == model_class
    image = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(2))

    expected = answer(reference, image)

    embeds = checkpoint.spec.task == "embedding"
    found = checkpoint.module.forward_features(image) if embeds else checkpoint.module(image)
    assert expected.std() > 0.1
    assert max_error(found, expected) <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("name", ["dinov2", "dinov2-odd-grid", "registers"])
@torch.no_grad()
def test_other_sizes_equal_transformers(name: str, tmp_path: Path) -> None:
    """transformers resamples DINOv2's positions without being asked."""
    model_class, config_class, facts = ENCODERS[name]
    reference = build(model_class, config_class, facts)
    patch = facts["patch_size"]
    size = (5 * patch, 9 * patch)
    module = load_huggingface(save(reference, tmp_path, size), name).module
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    expected = answer(reference, image)
    assert max_error(module(image), expected) <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("layer", ["basic", "bottleneck"])
@torch.no_grad()
def test_detr_equals_transformers(layer: str, tmp_path: Path) -> None:
    widths = [8, 16] if layer == "basic" else [32, 64]
    backbone = HFResNetConfig(**RESNET | {"layer_type": layer, "hidden_sizes": widths})
    reference = build("DetrForObjectDetection", "DetrConfig", DETR_FACTS | {"backbone_config": backbone})
    calibrate_norms(reference.model.backbone.model, seed=1)
    module = load_huggingface(save(reference, tmp_path, CANVAS, "Detr"), "detr").module
    assert isinstance(module, DETR)
    image, valid = pad_images([(64, 50), (40, 96), CANVAS], CANVAS, seed=3)
    expected = reference(image, valid.long())
    found = module(image, valid)
    assert max_error(found.logits[-1], expected.logits) <= TOLERANCE * expected.logits.abs().max()
    assert max_error(found.boxes_cxcywh[-1], expected.pred_boxes) <= TOLERANCE


@torch.no_grad()
def test_shards_and_half_precision(tmp_path: Path) -> None:
    reference = build(*ENCODERS["vit"]).half()
    folder = save(reference, tmp_path, (64, 64), max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    expected = answer(reference.float(), image)
    assert max_error(load_huggingface(folder, "vit").module(image), expected) <= TOLERANCE * expected.abs().max()


def edit(folder: Path, name: str = "config.json", **changes: Any) -> None:
    document = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps(document))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(build(*ENCODERS["vit"]), tmp_path, (64, 64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"num_attention_heads": 5}, "not a multiple of heads 5", id="heads"),
        pytest.param({"id2label": {"0": "a"}}, "names 1 classes, the head has 7", id="labels"),
        pytest.param({"hidden_act": "quick_gelu"}, "hidden_act", id="activation"),
        pytest.param({"architectures": []}, "names no architecture", id="no-class"),
        pytest.param({"num_hidden_layers": 3}, "blocks.2.* is missing", id="missing"),
        pytest.param({"num_hidden_layers": 1}, "blocks.1.* is unknown", id="unknown"),
        pytest.param({"intermediate_size": 96}, r"has shape \(80, 48\), expected \(96, 48\)", id="misshapen"),
    ],
)
def test_wrong_configuration_is_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_huggingface(folder, "vit")


def test_missing_preprocessor_is_named(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no preprocessor_config.json.*save_pretrained"):
        load_huggingface(folder, "vit")


def test_damaged_weights_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    # Truncated; a header of ten gigabytes; nothing.
    for damaged in (data[: len(data) // 2], (10 << 30).to_bytes(8, "little") + data[8:], b""):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="can't be read as safetensors"):
            load_huggingface(folder, "vit")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"has no weights; looked for model\.safetensors"):
        load_huggingface(folder, "vit")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", ".."])
def test_index_may_not_leave_its_folder(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="lies outside its folder"):
        load_huggingface(folder, "vit")


class Runs:
    """A pickle that would call print."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must never be printed",))


def test_pickle_that_runs_code_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": Runs()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"is refused, it asks to run \S*print: only tensors"):
        load_huggingface(folder, "vit")
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        pytest.param(
            {"feature_extractor_type": "ViTFeatureExtractor", "size": 64, "resample": 2},
            PreprocessSpec(size=(64, 64), fit="stretch", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
            id="vit-old",
        ),
        pytest.param(
            {"image_processor_type": "DeiTImageProcessorFast", "size": 72, "crop_size": 64},
            PreprocessSpec(
                size=(64, 64),
                fit="stretch",
                stretch_to=(72, 72),
                interpolation="bicubic",
                mean=(0.5, 0.5, 0.5),
                std=(0.5, 0.5, 0.5),
            ),
            id="deit-fast",
        ),
        pytest.param(
            {
                "image_processor_type": "BitImageProcessor",
                "size": {"shortest_edge": 80},
                "crop_size": {"height": 64, "width": 64},
                "do_normalize": False,
                "rescale_factor": 1 / 127.5,
            },
            PreprocessSpec(size=(64, 64), fit="crop", shortest_edge=80, interpolation="bicubic", std=(0.5, 0.5, 0.5)),
            id="bit-rescaled",
        ),
    ],
)
def test_processors(folder: Path, document: dict[str, Any], expected: PreprocessSpec) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(document))
    assert load_huggingface(folder, "vit").spec.preprocess == expected
