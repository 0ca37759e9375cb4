"""`--explain` at several sizes in one bundle: an encoder against transformers, a DETR on a DINOv2 against PyTorch's own
attention; then over a server, in streams, and drawn by the command line.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ferryman.bundle import Bundle
from ferryman.client import AsyncClient, Client
from ferryman.golden import Tensors, load_golden
from ferryman.manifest import sized_name
from ferryman.predictor import Predictor
from ferryman.specs import ModelSpec, PreprocessSpec, detection_spec
from ferryman_export.pipeline import ExportRequest, export
from ferryman_export.reference import normalize_reference
from ferryman_models.attention import MultiHeadAttention
from ferryman_models.checkpoints.native import save_native
from ferryman_models.detr import DETR, DecoderLayer, dinov2_detr_config
from ferryman_models.vit import ViTConfig

from ..models.weights import randomize
from ..serve.both import PATIENCE_S, Both
from ..serve.commands.outcome import finish, spawn
from ..serve.server.process import ServerProcess
from .test_explain import EAGER, REGISTERS, save
from .tiny import MEAN, STD

hf: Any = transformers
# (height, width) of the canvases, neither side of the second as in the first
SIZES = {"encoder": ((64, 64), (48, 96)), "detr": ((56, 84), (84, 42))}
GRIDS = {"encoder": ((4, 4), (3, 6)), "detr": ((4, 6), (6, 3))}
QUERIES = 7


def build_encoder() -> Any:
    facts = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2}
    facts |= {"image_size": 64, "patch_size": 16, "num_register_tokens": REGISTERS}
    model = hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**facts, **EAGER))
    randomize(model, seed=1)
    return model.eval()


def build_detr() -> DETR:
    """`dinov2_detr_config` with everything small but its patches, registers and layer scale."""
    config = dinov2_detr_config(classes=4)
    assert isinstance(config.backbone, ViTConfig)
    backbone = replace(config.backbone, image_size=(56, 56), dim=32, depth=2, heads=4, hidden=64)
    small = replace(config, backbone=backbone, dim=32, heads=4, hidden=64, encoder_layers=1, decoder_layers=2)
    torch.manual_seed(1)
    model = DETR(replace(small, queries=QUERIES)).eval()
    randomize(model, seed=1)
    return model


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {"encoder": build_encoder(), "detr": build_detr()}


@pytest.fixture(scope="module")
def bundles(models: dict[str, Any], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Both in one repository, at two sizes each."""
    folder = tmp_path_factory.mktemp("explained")
    preprocess = PreprocessSpec(size=SIZES["detr"][0], fit="pad", mean=MEAN, std=STD)
    save_native(folder / "detr.safetensors", models["detr"], detection_spec(preprocess, tuple("abcd"), QUERIES))
    sources = {
        "encoder": save(models["encoder"], folder / "encoder", "ViT", {"height": 64, "width": 64}),
        "detr": str(folder / "detr.safetensors"),
    }
    return {
        name: export(ExportRequest(source, folder / "repository", name, pictures, SIZES[name], explain=True))
        for name, source in sources.items()
    }


def weights_of_encoder(model: Any, inputs: Tensors, spec: ModelSpec) -> Tensor:
    """As transformers answers them: (batch, patches)."""
    pixels = torch.stack([torch.from_numpy(normalize_reference(image, spec.preprocess)) for image in inputs["image"]])
    return model(pixels, output_attentions=True).attentions[-1].mean(dim=1)[:, 0, 1 + REGISTERS :]


def weights_of_detr(model: DETR, inputs: Tensors, spec: ModelSpec) -> Tensor:
    """As PyTorch's own attention answers them, of what ours is given: (batch, queries, cells)."""
    pixels = torch.stack([torch.from_numpy(normalize_reference(image, spec.preprocess)) for image in inputs["image"]])
    valid = torch.zeros(len(pixels), *spec.preprocess.size, dtype=torch.bool)
    for index, (height, width) in enumerate(inputs["valid_size"]):
        valid[index, :height, :width] = True
    ours = cast("DecoderLayer", model.decoder[-1]).cross_attention
    theirs = nn.MultiheadAttention(model.config.dim, model.config.heads, batch_first=True).eval()
    projections = (ours.query, ours.key, ours.value)
    cast("Tensor", theirs.in_proj_weight).copy_(torch.cat([part.weight for part in projections]))
    cast("Tensor", theirs.in_proj_bias).copy_(torch.cat([part.bias for part in projections]))
    found: list[Tensor] = []

    def attend(module: MultiHeadAttention, args: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        query, key, value, mask = args
        padding = mask[:, 0, 0] < 0
        assert padding.any(dim=1).sum() >= 2, "nothing is padded, so the mask proves nothing"
        found.append(theirs(query, key, value, key_padding_mask=padding, need_weights=True)[1])

    hook = ours.register_forward_pre_hook(attend)
    model(pixels * valid[:, None], valid)
    hook.remove()
    return found[0]


REFERENCES: dict[str, Callable[[Any, Tensors, ModelSpec], Tensor]] = {
    "encoder": weights_of_encoder,
    "detr": weights_of_detr,
}


@torch.no_grad()
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("name", REFERENCES)
def test_every_size_shows_where_it_looks(
    name: str, index: int, bundles: dict[str, Bundle], models: dict[str, Any]
) -> None:
    bundle = bundles[name]
    spec = bundle.manifest.specs[index]
    golden = load_golden(bundle.file(sized_name("golden.npz", index, spec)), spec)
    inputs = golden.batch(list(range(len(golden))))
    with Predictor(bundle) as predictor:
        found = predictor.sessions[index].run(inputs)["attention"]
    assert found.shape[-2:] == GRIDS[name][index]
    expected = REFERENCES[name](models[name], inputs, spec)
    assert expected.std() > 1e-3, "the weights are all alike, which proves nothing"
    np.testing.assert_allclose(found, expected.reshape(found.shape).numpy(), rtol=0, atol=1e-5)


def encode(pictures: Path) -> list[bytes]:
    return [(pictures / name).read_bytes() for name in ("40x90.png", "90x40.png", "50x50.png")]


def grid_of(answer: Any) -> NDArray[np.float32]:
    assert answer.attention is not None
    return answer.attention.grid


def check_alike(found: Any, expected: Any) -> None:
    assert found.covers_xyxy == pytest.approx(expected.covers_xyxy)
    np.testing.assert_allclose(found.grid, expected.grid, atol=1e-6)


def test_a_server_shows_it_in_every_call(bundles: dict[str, Bundle], pictures: Path) -> None:
    """Of pictures that go to different sizes, in one request and as frames, to both clients as in this process."""
    images = encode(pictures)
    with Predictor(bundles["encoder"]) as predictor:
        embeddings, _ = predictor.embed(images, explain=True)
        assert predictor.embed(images)[0][0].attention is None
    with Predictor(bundles["detr"]) as predictor:
        detections, _ = predictor.detect(images, 0.0, explain=True)
    assert {grid_of(one).shape for one in embeddings} == set(GRIDS["encoder"])
    assert {grid_of(one.detections[0]).shape for one in detections} == set(GRIDS["detr"])
    with ServerProcess({"repository": str(bundles["detr"].path.parents[1]), "threads": 1}) as server:
        both = Both(server.address)
        answer = both.embed(images, model="encoder", explain=True)
        for found, expected in zip(answer.results, embeddings, strict=True):
            assert found.canvas == expected.canvas
            check_alike(found.attention, expected.attention)
        assert both.embed(images, model="encoder").results[0].attention is None

        asked: dict[str, Any] = {"model": "detr", "score_threshold": 0.0, "explain": True, "timeout": PATIENCE_S}

        async def stream() -> list[Any]:
            async with AsyncClient(server.address) as client:
                return [frame.result async for frame in client.stream_detect(images, **asked)]

        with Client(server.address) as client:
            blocking = [frame.result for frame in client.stream_detect(images, **asked)]
        for frames in (blocking, asyncio.run(stream()), both.detect(images, **asked).results):
            for found, expected in zip(frames, detections, strict=True):
                assert found.canvas == expected.canvas
                assert len(found.detections) == QUERIES
                for one, other in zip(found.detections, expected.detections, strict=True):
                    check_alike(one.attention, other.attention)


def test_embed_draws_it(bundles: dict[str, Bundle], pictures: Path, tmp_path: Path) -> None:
    """Beside the picture; the maps stand in the answer and in the file of arrays too."""
    files = [pictures / "40x90.png", pictures / "90x40.png"]
    options = ("--explain", tmp_path / "out", "--output", tmp_path / "out.npz", "--json")
    outcome = finish(spawn("embed", *files, "--bundle", bundles["encoder"].path, *options))
    assert outcome.status == 0, outcome.stderr
    shown = [np.array(document["attention"]["rows"]) for document in outcome.document]
    assert [tuple(document["canvas"]) for document in outcome.document] == [(96, 48), (64, 64)]
    with np.load(tmp_path / "out.npz") as arrays:
        for index, rows in enumerate(shown):
            np.testing.assert_allclose(arrays[f"attention.{index}"], rows, atol=1e-6)
            assert arrays[f"patches.{index}"].shape[:2] == rows.shape
    with Image.open(tmp_path / "out" / "40x90.png") as drawn:
        factor = -(-640 // 90)
        assert drawn.size == (2 * factor * 90 + 8, factor * 40)
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    left, right = pixels[:, : factor * 90], pixels[:, factor * 90 + 8 :]
    with Image.open(files[0]) as original:
        colours = np.asarray(original.convert("RGB")).reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(left.reshape(-1, 3).mean(axis=0), colours, atol=1)
    # The brightest cell is where the answer says.
    row, column = np.unravel_index(shown[0].argmax(), shown[0].shape)
    rows, columns = shown[0].shape
    heat = right.astype(float)[..., 0] - right[..., 2]
    cells = heat[: heat.shape[0] // rows * rows, : heat.shape[1] // columns * columns]
    cells = cells.reshape(rows, cells.shape[0] // rows, columns, -1).mean(axis=(1, 3))
    assert np.unravel_index(cells.argmax(), cells.shape) == (row, column)
