"""LoRA adapters that peft saved, merged by us, against peft's own model, as it is and merged: random weights, fp32."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ferryman.errors import CheckpointError
from ferryman_models.checkpoints.base import Checkpoint
from ferryman_models.checkpoints.huggingface import load_huggingface
from ferryman_models.checkpoints.lora import read_adapter
from ferryman_models.checkpoints.timm import load_timm
from ferryman_models.detr import DETR
from ferryman_models.vit import ViT, ViTConfig

from .test_huggingface import CANVAS, DETR_FACTS, ENCODERS, PLAIN, RESNET, answer, build, edit, save
from .test_weights_files import timm_state
from .weights import HFResNetConfig, calibrate_norms, max_error, pad_images, randomize

# peft 0.21 asks transformers 5.23 for an attribute by its old name; and warns of what the tests do on purpose.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True"),
    pytest.mark.filterwarnings("ignore:Adapter .* have invalid shape"),
]
# Relative to the output's scale; both sides add in fp32.
TOLERANCE = 1e-5
VIT = ENCODERS["vit"]
NAMES_OF_4 = (
    (r"vit\.layers\.", "vit.encoder.layer."),
    (r"attention\.q_proj", "attention.attention.query"),
    (r"attention\.v_proj", "attention.attention.value"),
)
HEAD: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}

# The base, and what the adapter does to it.
ADAPTERS: dict[str, tuple[tuple[str, str, dict[str, Any]], dict[str, Any]]] = {
    "query-value": (VIT, {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 32}),
    "rank-stable": (VIT, {"target_modules": ["k_proj", "o_proj", "fc1", "fc2"], "use_rslora": True, "r": 3}),
    "new-head": (VIT, HEAD),
    "patch-convolution": (VIT, {"target_modules": ["projection", "fc2"], "r": 5}),
    "patterns": (
        VIT,
        {
            "target_modules": ["q_proj", "k_proj", "v_proj", "fc1"],
            "rank_pattern": {"layers.1.attention.q_proj": 2, "^vit.layers.0.mlp.fc1": 6, "fc1": 4},
            "alpha_pattern": {r".*\.1\..*v_proj": 3, "k_proj": 17},
        },
    ),
    "bias-all": (VIT, HEAD | {"bias": "all"}),
    "bias-of-lora": (VIT, {"target_modules": ["q_proj", "projection"], "bias": "lora_only"}),
    "bias-in-lora": (VIT, {"target_modules": ["q_proj", "fc1"], "lora_bias": True}),
    "dora": (VIT, HEAD | {"target_modules": ["q_proj", "fc1", "projection"], "use_dora": True}),
    "some-layers": (VIT, {"target_modules": ["q_proj", "fc1"], "layers_to_transform": [1]}),
    "one-layer-by-pattern": (
        VIT,
        {"target_modules": ["query", "q_proj", "fc2"], "layers_to_transform": 0, "layers_pattern": "layers"},
    ),
    "expression": (VIT, {"target_modules": r".*\.1\.(attention\.[qv]_proj|mlp\.fc1)"}),
    "excluded": (
        VIT,
        {"target_modules": ["q_proj", "v_proj", "classifier"], "exclude_modules": r".*layers\.0\..*v_proj"},
    ),
    "everywhere": (VIT, {"target_modules": "all-linear", "fan_in_fan_out": True}),
    "no-qkv-bias": (ENCODERS["vit-no-qkv-bias"], HEAD | {"bias": "all"}),
    "distilled": (ENCODERS["deit"], HEAD),
    "dinov2": (ENCODERS["dinov2"], HEAD | {"target_modules": ["q_proj", "v_proj", "fc1", "projection"]}),
    "swiglu": (ENCODERS["dinov2-swiglu"], HEAD | {"target_modules": ["gate_proj", "up_proj", "down_proj"]}),
    "registers": (ENCODERS["registers"], HEAD | {"bias": "lora_only"}),
    "encoder": (ENCODERS["dinov2-encoder"], {"target_modules": ["q_proj", "fc2"]}),
}


def train(model: Any, folder: Path, **facts: Any) -> Any:
    """Saves an adapter with random weights in all that it may train; returns peft's model with it."""
    adapted = peft.get_peft_model(model, peft.LoraConfig(**facts))
    generator = torch.Generator().manual_seed(5)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    adapted.save_pretrained(str(folder))
    return adapted.eval()


def load(base: Path, adapter: Path) -> Checkpoint:
    return load_huggingface(base, "base", read_adapter(adapter))


def assert_equal(found: Tensor, expected: Tensor) -> None:
    assert max_error(found, expected) <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("name", ADAPTERS)
@torch.no_grad()
def test_equals_peft(name: str, tmp_path: Path) -> None:
    base, facts = ADAPTERS[name]
    reference = build(*base)
    side = base[2]["image_size"]
    save(reference, tmp_path / "base", (side, side))
    image = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(2))
    plain = answer(reference, image)
    if "modules_to_save" in facts:
        reference.classifier = nn.Linear(reference.classifier.in_features, 3)
    adapted = train(reference, tmp_path / "adapter", **facts)

    checkpoint = load(tmp_path / "base", tmp_path / "adapter")

    assert isinstance(checkpoint.module, ViT)
    embeds = checkpoint.spec.task == "embedding"
    found = checkpoint.module.forward_features(image) if embeds else checkpoint.module(image)
    expected = answer(adapted, image)
    assert expected.shape != plain.shape or (expected - plain).abs().max() > 0.01 * plain.abs().max()
    assert_equal(found, expected)
    assert_equal(found, answer(adapted.merge_and_unload(), image))


@torch.no_grad()
def test_detr_equals_peft(tmp_path: Path) -> None:
    reference = build(
        "DetrForObjectDetection", "DetrConfig", DETR_FACTS | {"backbone_config": HFResNetConfig(**RESNET)}
    )
    calibrate_norms(reference.model.backbone.model, seed=1)
    base = save(reference, tmp_path / "base", CANVAS, "Detr")
    reference.class_labels_classifier = nn.Linear(32, 3)
    adapted = train(
        reference,
        tmp_path / "adapter",
        target_modules=["q_proj", "v_proj", "o_proj", "fc1", "input_projection"],
        modules_to_save=["class_labels_classifier", "bbox_predictor"],
    )
    checkpoint = load(base, tmp_path / "adapter")
    assert isinstance(checkpoint.module, DETR)
    assert checkpoint.spec.labels == ("LABEL_0", "LABEL_1")
    image, valid = pad_images([(64, 50), (40, 96), CANVAS], CANVAS, seed=3)
    found = checkpoint.module(image, valid)
    for model in (adapted, adapted.merge_and_unload()):
        expected = model(pixel_values=image, pixel_mask=valid.long())
        assert_equal(found.logits[-1], expected.logits)
        assert_equal(found.boxes_cxcywh[-1], expected.pred_boxes)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build(*VIT), tmp_path_factory.mktemp("lora") / "base", (64, 64))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    train(build(*VIT), tmp_path / "adapter", **HEAD)
    return tmp_path / "adapter"


def retouch(adapter: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)


def renamed(adapter: Path, *pairs: tuple[str, str]) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            new = name
            for old, replacement in pairs:
                new = re.sub(old, replacement, new)
            tensors[new] = tensors.pop(name)

    retouch(adapter, change)


def assert_same(one: Checkpoint, two: Checkpoint) -> None:
    """The same weights, but for the order in which a product's terms are added."""
    state, other = (checkpoint.module.state_dict() for checkpoint in (one, two))
    torch.testing.assert_close(state, other, rtol=1e-6, atol=1e-6)


def test_names_of_transformers_4(base: Path, adapter: Path) -> None:
    """Adapters use the names of the transformers that trained them, and 5 names modules anew; files keep theirs."""
    expected = load(base, adapter)
    renamed(adapter, *NAMES_OF_4)
    assert_same(load(base, adapter), expected)


def test_fused_gate(tmp_path: Path) -> None:
    """transformers 4 has DINOv2's gate and values in one layer: one adapter for both, here written into each."""
    base = save(build(*ENCODERS["dinov2-swiglu"]), tmp_path / "base", (64, 64))
    train(
        build(*ENCODERS["dinov2-swiglu"]), tmp_path / "parted", target_modules=["gate_proj", "up_proj"], use_dora=True
    )

    def share(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            if "up_proj.lora_A" in name:
                tensors[name] = tensors[name.replace("up_proj", "gate_proj")]

    retouch(tmp_path / "parted", share)
    shutil.copytree(tmp_path / "parted", tmp_path / "fused")

    def fuse(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "gate_proj" in name]:
            gate, up = tensors.pop(name), tensors.pop(name.replace("gate_proj", "up_proj"))
            whole = gate if "lora_A" in name else torch.cat([gate, up])
            tensors[name.replace("gate_proj", "weights_in")] = whole

    retouch(tmp_path / "fused", fuse)
    assert_same(load(base, tmp_path / "fused"), load(base, tmp_path / "parted"))


@torch.no_grad()
def test_head_for_a_bare_encoder(tmp_path: Path) -> None:
    """The usual start of fine-tuning: a published encoder without a head, and an adapter that brings one."""
    reference = build(*VIT)
    encoder = build("ViTModel", "ViTConfig", PLAIN)
    reference.vit.load_state_dict(encoder.state_dict(), strict=False)  # which has a pooler too
    base = save(encoder, tmp_path / "base", (64, 64))
    adapted = train(reference, tmp_path / "adapter", **HEAD)
    checkpoint = load(base, tmp_path / "adapter")
    assert checkpoint.architecture == "ViTForImageClassification"
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    assert_equal(checkpoint.module(image), answer(adapted, image))


def test_labels_digest_and_notes(base: Path, adapter: Path) -> None:
    plain = load_huggingface(base, "base")
    first = load(base, adapter)
    assert first.spec.labels == plain.spec.labels == tuple(f"LABEL_{index}" for index in range(7))
    assert "LoRA adapter" in first.notes[0]
    edit(adapter, "adapter_config.json", lora_alpha=9, base_model_name_or_path="someone/vit")
    second = load(base, adapter)
    assert "someone/vit" in second.notes[1]
    names = [f"name {index}" for index in range(7)]
    (adapter / "config.json").write_text(json.dumps({"id2label": dict(enumerate(names))}))
    assert load(base, adapter).spec.labels == tuple(names)
    assert load(base, adapter).sha256 == second.sha256
    assert len({plain.sha256, first.sha256, second.sha256}) == 3
    (adapter / "config.json").write_text(json.dumps({"id2label": {"0": "a"}}))
    with pytest.raises(CheckpointError, match="names 1 classes, the head has 7"):
        load(base, adapter)


def test_base_labels_and_own_preprocessing(tmp_path: Path) -> None:
    named = PLAIN | {"id2label": {index: f"name {index}" for index in range(7)}}
    base = save(build("ViTForImageClassification", "ViTConfig", named), tmp_path / "base", (64, 64))
    train(build(*VIT), tmp_path / "same", **HEAD)
    assert load(base, tmp_path / "same").spec.labels[6] == "name 6"
    other = build("ViTForImageClassification", "ViTConfig", PLAIN | {"num_labels": 2})
    train(other, tmp_path / "other", **HEAD)
    document = {"image_processor_type": "ViTImageProcessor", "size": 64, "image_mean": [0.1, 0.2, 0.3]}
    (tmp_path / "other" / "preprocessor_config.json").write_text(json.dumps(document))
    spec = load(base, tmp_path / "other").spec
    assert spec.labels == ("LABEL_0", "LABEL_1")
    assert spec.preprocess.mean == (0.1, 0.2, 0.3)


def test_pickled_weights(base: Path, adapter: Path) -> None:
    expected = load(base, adapter)
    path = adapter / "adapter_model.safetensors"
    torch.save(load_file(path), adapter / "adapter_model.bin")
    path.unlink()
    assert_same(load(base, adapter), expected)


def test_timm(tmp_path: Path) -> None:
    """By hand: peft adapts any module, and timm keeps query, key and value in one."""
    model = ViT(ViTConfig(image_size=(32, 32), patch=16, dim=384, depth=1, heads=6, hidden=64, classes=5)).eval()
    randomize(model, seed=4)
    tensors = timm_state(model)
    base = tmp_path / "base"
    base.mkdir()
    save_file(tensors, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"architecture": "vit_small_patch16_224", "num_classes": 5}))
    down, up, head = torch.randn(4, 384), torch.randn(3 * 384, 4), torch.randn(2, 384)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    layer = "base_model.model.blocks.0.attn.qkv"
    weights = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    heads = {"base_model.model.head.weight": head, "base_model.model.head.bias": torch.zeros(2)}
    save_file(weights | heads, adapter / "adapter_model.safetensors")
    facts = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "modules_to_save": ["head"]}
    (adapter / "adapter_config.json").write_text(json.dumps(facts))
    found = load_timm(base, "base", read_adapter(adapter))
    state = found.module.state_dict()
    wanted = tensors["blocks.0.attn.qkv.weight"] + 1.5 * up @ down
    parts = [state[f"blocks.0.attention.{part}.weight"] for part in ("query", "key", "value")]
    assert_equal(torch.cat(parts), wanted)
    assert state["head.weight"].equal(head)
    assert found.spec.labels == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"peft_type": "IA3"}, "peft_type: .*LORA", id="other-kind"),
        pytest.param({"layer_replication": [[0, 1]]}, "layer_replication can't be followed; merge", id="replication"),
        pytest.param({"use_qalora": True, "use_new": 1}, "use_new, use_qalora can't be followed", id="unknown-key"),
        pytest.param({"init_lora_weights": "pissa"}, "'pissa' changed the base's weights", id="start"),
        pytest.param({"r": 4}, r"lora_A \(8, 48\) and lora_B \(48, 8\), expected rank 4", id="rank"),
        pytest.param({"r": 0}, "r: Input should be greater", id="rank-0"),
        pytest.param({"use_dora": True}, "expected A.weight, B.weight, magnitude", id="no-magnitude"),
        pytest.param({"modules_to_save": None}, r"classifier\.bias, .*classifier\.weight can't be", id="not-announced"),
        pytest.param({"modules_to_save": ["classifier", "norm"]}, "lacks modules_to_save .*: norm", id="not-saved"),
    ],
)
def test_configuration_that_cannot_be_followed(adapter: Path, changes: dict[str, Any], message: str) -> None:
    edit(adapter, "adapter_config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        read_adapter(adapter)


@pytest.mark.parametrize(
    ("field", "value", "pattern"),
    [
        ("target_modules", "*.fc1", "*.fc1"),
        ("exclude_modules", "fc[1", "fc[1"),
        ("layers_pattern", "layers)", "layers)"),
        ("layers_pattern", ["layers", "(?i)blocks"], "(?i)blocks"),  # alone it is one, but it stands inside another
        ("rank_pattern", {"fc1": 8, "(": 8}, "("),
        ("alpha_pattern", {"(?P<a": 8}, "(?P<a"),
    ],
)
def test_an_expression_that_is_none(adapter: Path, field: str, value: object, pattern: str) -> None:
    edit(adapter, "adapter_config.json", **{field: value})
    message = f"{adapter / 'adapter_config.json'}: {field}: {pattern!r} is no regular expression: "
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_adapter(adapter)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param(r"0\.attention\.q_proj\.lora_B", "0.other.lora_B", "q_proj has A.weight .*expected", id="partner"),
        pytest.param("q_proj", "query_key_value", "its base has no .*query_key_value.*another model", id="other-names"),
        pytest.param(r"layers\.1\.", "layers.7.", r"its base has no vit.layers.7.*another model", id="more-layers"),
        pytest.param(r"attention\.v_proj", "mlp.fc1", r"mlp.fc1 \(48, 48\), the base has \(80, 48\)", id="misshapen"),
        pytest.param(r"lora_A", "lora_embedding_A", "lora_embedding_A.weight.* can't be followed", id="embedding"),
    ],
)
def test_weights_that_cannot_be_merged(base: Path, adapter: Path, old: str, new: str, message: str) -> None:
    renamed(adapter, (old, new))
    with pytest.raises(CheckpointError, match=message):
        load(base, adapter)


def test_folder_without_weights(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no adapter's weights; looked for adapter_model"):
        read_adapter(adapter)
