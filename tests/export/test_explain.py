"""`--explain`: attention maps through the whole crossing, against transformers' own; then in every answer of them."""

import json
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from ferryman.__main__ import main
from ferryman.bundle import Bundle
from ferryman.errors import UsageError
from ferryman.golden import load_golden
from ferryman.parity import ParityReports
from ferryman.predictor import Predictor
from ferryman.specs import PreprocessSpec, classification_spec, embedding_spec
from ferryman_export.explain import explained_spec
from ferryman_export.pipeline import ExportRequest, export
from ferryman_export.reference import normalize_reference, reference_outputs
from ferryman_export.samples import make_inputs, read_pictures
from ferryman_export.wrappers import choose_module
from ferryman_models.attention import MultiHeadAttention, attend_fused, attend_plain, set_attend
from ferryman_models.vit import ViT

from ..models.weights import HFResNetConfig, calibrate_norms, randomize
from ..serve.both import Both
from ..serve.commands.outcome import finish, spawn
from ..serve.server.process import ServerProcess
from .families import DETECTORS, PADDED, SQUARE
from .tiny import MEAN, STD, VIT

hf: Any = transformers
EAGER = {"attn_implementation": "eager"}
REGISTERS = 3


def save(model: Any, folder: Path, processor: str, size: dict[str, int]) -> str:
    model.save_pretrained(folder)
    document = {"image_processor_type": f"{processor}ImageProcessor", "size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(document))
    return str(folder)


def build_dinov2() -> Any:
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2}
    facts = sizes | {"image_size": 64, "patch_size": 16, "num_register_tokens": REGISTERS, "num_labels": 7}
    model = hf.Dinov2WithRegistersForImageClassification(hf.Dinov2WithRegistersConfig(**facts, **EAGER))
    randomize(model, seed=1)
    return model.eval()


def build_detr() -> Any:
    backbone = HFResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], out_features=["stage2"], layer_type="basic"
    )
    facts = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 9, "num_labels": 5}
    facts |= {f"{part}_attention_heads": 4 for part in ("encoder", "decoder")}
    facts |= {f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")}
    options: dict[str, Any] = {"use_timm_backbone": False, "use_pretrained_backbone": False}
    model = hf.DetrForObjectDetection(hf.DetrConfig(backbone_config=backbone, **facts, **options, **EAGER))
    randomize(model, seed=1)
    calibrate_norms(model.model.backbone.model, seed=1)
    return model.eval()


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {"dinov2": build_dinov2(), "detr": build_detr()}


@pytest.fixture(scope="module")
def bundles(models: dict[str, Any], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A DINOv2 with registers and a DETR in one repository."""
    folder = tmp_path_factory.mktemp("explained")
    repository = folder / "repository"
    source = save(models["dinov2"], folder / "dinov2", "ViT", SQUARE)
    request = ExportRequest(source, repository, "dinov2", samples=pictures, explain=True)
    found = {"dinov2": export(request)}
    source = save(models["detr"], folder / "detr", "Detr", PADDED)
    # Neither side is a multiple of its stride of 8: the last cells reach beyond the canvas.
    command = ["ferryman", "export", source, "-o", repository, "--size", "60x92", "--samples", pictures, "--explain"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(word) for word in command])
        with pytest.raises(SystemExit) as end:
            main()
    assert not end.value.code
    return found | {"detr": Bundle.open(repository / "detr")}


@pytest.mark.parametrize(("name", "shape"), [("dinov2", (4, 4)), ("detr", (9, 8, 12))])
def test_the_graph_answers_attention_within_tolerance(
    name: str, shape: tuple[int, ...], bundles: dict[str, Bundle]
) -> None:
    bundle = bundles[name]
    assert bundle.spec.explains
    assert bundle.spec.outputs[-1].shape == ("batch", *shape)
    (report,) = ParityReports.model_validate_json(bundle.file("parity.json").read_bytes()).reports
    errors = [error for error in report.errors if error.output == "attention"]
    assert all(error.limit == 1e-4 for error in errors)
    assert 0 < max(error.max_abs for error in errors) <= 1e-5  # in tiny models nothing but rounding may differ


@torch.no_grad()
@pytest.mark.parametrize("task", ["classification", "embedding"])
def test_mean_pooling_shows_its_patches_and_an_embedding_its_class_token(task: str, pictures: Path) -> None:
    """The wrapper against NumPy; the module that is watched is left as it was."""
    torch.manual_seed(1)
    model = ViT(VIT).eval()
    set_attend(model, attend_fused)
    preprocess = PreprocessSpec(size=(40, 24), fit="stretch", mean=MEAN, std=STD)
    spec = classification_spec(preprocess, tuple("abcdefg"))
    if task == "embedding":
        spec = embedding_spec(preprocess, VIT.dim, (5, 3))
    spec = explained_spec(spec, model, "tiny")
    _, inputs = make_inputs(read_pictures(pictures), spec)
    expected = reference_outputs(model, inputs, spec)["attention"]
    wrapper = choose_module(spec)(model, spec)
    found = wrapper(torch.from_numpy(inputs["image"]))[-1].numpy()
    assert found.shape == expected.shape == (6, 5, 3)
    assert found.std() > 1e-4
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    last = cast("ViT", wrapper.model).blocks[-1].attention
    assert cast("MultiHeadAttention", last).attend is attend_plain


@torch.no_grad()
@pytest.mark.parametrize("name", ["dinov2", "detr"])
def test_attention_equals_transformers(name: str, bundles: dict[str, Bundle], models: dict[str, Any]) -> None:
    bundle, model = bundles[name], models[name]
    golden = load_golden(bundle.file("golden.npz"), bundle.spec)
    inputs = golden.batch(list(range(len(golden))))
    with Predictor(bundle) as predictor:
        found = predictor.sessions[0].run(inputs)["attention"]
    preprocess = bundle.spec.preprocess
    pixels = torch.stack([torch.from_numpy(normalize_reference(image, preprocess)) for image in inputs["image"]])
    if name == "detr":
        mask = torch.zeros(len(pixels), *preprocess.size, dtype=torch.long)
        for index, (height, width) in enumerate(inputs["valid_size"]):
            mask[index, :height, :width] = 1
        assert (found.sum(axis=1) == 0).any(axis=(1, 2)).sum() >= 2, "nothing is padded, so the mask proves nothing"
        expected = model(pixels * mask[:, None], mask, output_attentions=True).cross_attentions[-1].mean(dim=1)
    else:
        expected = model(pixels, output_attentions=True).attentions[-1].mean(dim=1)[:, 0, 1 + REGISTERS :]
    assert expected.std() > 1e-3, "the weights are all alike, which proves nothing"
    np.testing.assert_allclose(found, expected.reshape(found.shape).numpy(), rtol=0, atol=1e-4)


def test_what_has_no_map_is_refused(pictures: Path, tmp_path: Path) -> None:
    family = DETECTORS["yolos"]
    family.build().save_pretrained(tmp_path / "model")
    family.build_processor().save_pretrained(tmp_path / "model")
    request = ExportRequest(str(tmp_path / "model"), tmp_path / "r", samples=pictures, explain=True)
    with pytest.raises(UsageError, match="is a TransformersDetector for detection: --explain shows"):
        export(request)
    assert not (tmp_path / "r").exists()


def test_predictor_and_server_explain_alike(bundles: dict[str, Bundle], pictures: Path) -> None:
    images = [path.read_bytes() for path in sorted(pictures.iterdir())]
    with ServerProcess({"repository": str(bundles["detr"].path.parents[1]), "threads": 1}) as server:
        both = Both(server.address)
        with Predictor(bundles["dinov2"]) as predictor:
            classes, _ = predictor.classify(images, explain=True)
            assert predictor.classify(images)[0][0].attention is None
        served = both.classify(images, model="dinov2", explain=True).results
        for found, expected in zip(served, classes, strict=True):
            assert expected.attention is not None
            assert found.attention.covers_xyxy == pytest.approx(expected.attention.covers_xyxy)
            np.testing.assert_allclose(found.attention.grid, expected.attention.grid, atol=1e-6)
            assert 0.05 < expected.attention.grid.sum() < 1  # the rest went to the class token and the registers
        with Predictor(bundles["detr"]) as predictor:
            detections, _ = predictor.detect(images, 0.0, explain=True)
            assert predictor.detect(images, 0.0)[0][0].detections[0].attention is None
        served = both.detect(images, model="detr", score_threshold=0.0, explain=True).results
        for found, expected in zip(served, detections, strict=True):
            assert len(found.detections) == len(expected.detections) == 9
            for one, other in zip(found.detections, expected.detections, strict=True):
                assert other.attention is not None
                np.testing.assert_allclose(one.attention.grid, other.attention.grid, atol=1e-6)
                left, top, right, bottom = other.attention.covers_xyxy
                assert (left, top) == (0, 0)
                assert (right >= found.size[0], bottom >= found.size[1]) == (True, True)
                assert other.attention.grid.sum() == pytest.approx(1, abs=1e-5)
        assert both.detect(images, model="detr", score_threshold=0.0).results[0].detections[0].attention is None


@pytest.mark.parametrize(("command", "name"), [("classify", "dinov2"), ("detect", "detr")])
def test_heat_maps_are_drawn(
    command: str, name: str, bundles: dict[str, Bundle], pictures: Path, tmp_path: Path
) -> None:
    picture, out = pictures / "128x192.png", tmp_path / "out.png"
    options = ("--score", 0) if command == "detect" else ()
    outcome = finish(spawn(command, picture, "--bundle", bundles[name].path, "--explain", out, *options, "--json"))
    assert outcome.status == 0, outcome.stderr
    (document,) = outcome.document
    attention = (document if name == "dinov2" else document["detections"][0])["attention"]
    grid = np.array(attention["rows"])
    assert grid.shape == ((4, 4) if name == "dinov2" else (8, 12))
    assert grid.sum() <= 1 + 1e-4
    with Image.open(out) as drawn:
        panels = (2, 1) if name == "dinov2" else (3, 2)
        assert drawn.size == (panels[0] * (4 * 192 + 8) - 8, panels[1] * (4 * 128 + 8) - 8)
        colours = np.asarray(drawn.convert("RGB")).reshape(-1, 3).astype(int)
        assert ((colours[:, 0] > 200) & (colours[:, 2] < 160)).any(), "nothing is hot"
