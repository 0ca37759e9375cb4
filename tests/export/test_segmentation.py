"""From a folder of `save_pretrained` or facebookresearch's files to segments of pictures, through a real server."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ferryman.bundle import Bundle
from ferryman.errors import TaskError, UsageError
from ferryman.masks import Mask
from ferryman.parity import ParityReports
from ferryman.predictor import Predictor
from ferryman.preprocess import Geometry
from ferryman.results import Segmentation
from ferryman.segmenting import segmentation_from_outputs
from ferryman.specs import PreprocessSpec, segmentation_spec
from ferryman_export.pipeline import ExportRequest, export

from ..models.test_detr_masks import build_hf, save
from ..models.weights import RESNET18, randomize, rename_backbone_as_timm
from ..serve.both import Both
from ..serve.server.process import ServerProcess

CANVAS = (90, 122)  # no multiple of any stride
THRESHOLD = 0.3
STUFF = (1, 3)
# One that fills the canvas and one that is padded to it; both are halved exactly by anybody's rounding.
PICTURES = {"whole.png": (180, 244), "tall.png": (180, 120)}


def make_picture(size: tuple[int, int]) -> bytes:
    """A few coloured discs on a slope. size: (height, width)"""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    pixels = np.stack((x / size[1] * 200, y / size[0] * 200, np.full(size, 60.0)), axis=-1)
    random = np.random.default_rng(size[1])
    for _ in range(6):
        cy, cx, radius = random.uniform(0, size[0]), random.uniform(0, size[1]), random.uniform(10, 50)
        pixels[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = random.uniform(0, 255, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures."""
    path = tmp_path_factory.mktemp("pictures")
    for name, size in PICTURES.items():
        (path / name).write_bytes(make_picture(size))
    return path


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    """A DetrForSegmentation whose queries differ in class and place on these pictures and are rather sure of it."""
    model = build_hf(RESNET18, {})
    with torch.no_grad():
        # Where a query looks is a share of one over all heads and cells; at random weights nobody would hear it.
        model.mask_head.conv1.conv.weight[:, model.config.d_model :].mul_(1500)
        model.mask_head.output_conv.weight.mul_(4)
    head = model.detr.class_labels_classifier
    outputs = [ask_transformers(model, (folder / name).read_bytes())[1] for name in PICTURES]
    with torch.no_grad():
        answers = torch.cat([output.last_hidden_state[0] for output in outputs])
        centred = answers - answers.mean(dim=0)
        head.weight.div_((centred @ head.weight.T).std()).mul_(4)
        head.bias.copy_(-head.weight @ answers.mean(dim=0))
        head.bias[-1] -= 2  # "no object"
    return model


@pytest.fixture(scope="module")
def bundle(reference: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    source = save(reference, tmp_path_factory.mktemp("detr"))
    rename_backbone_as_timm(source)  # as the published panoptic checkpoints are
    document = {
        "image_processor_type": "DetrImageProcessor",
        "size": {"max_height": CANVAS[0], "max_width": CANVAS[1]},
    }
    (source / "preprocessor_config.json").write_text(json.dumps(document))
    request = ExportRequest(str(source), tmp_path_factory.mktemp("repository"), "panoptic", samples=folder)
    made = export(request)
    # What a panoptic checkpoint of 250 classes says by its numbers; the graph knows nothing of it.
    from ..serve.toy import recertify, reseal

    spec = made.spec.model_copy(update={"stuff": STUFF})
    reseal(made.path, specs=[spec])
    recertify(made.path)
    return Bundle.open(made.path)


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[str]:
    with ServerProcess({"repository": str(bundle.path.parents[1]), "threads": 1}) as process:
        yield process.address


def test_bundle_is_proved(bundle: Bundle) -> None:
    (report,) = ParityReports.model_validate_json(bundle.file("parity.json").read_bytes()).reports
    assert report.passed
    assert report.detections > 0
    assert (report.pixel_agreement, report.mask_iou) == (1.0, 1.0)
    assert {error.output for error in report.errors if error.limit is not None} == {"boxes", "scores", "masks"}
    assert bundle.spec.outputs[-1].shape == ("batch", 7, 23, 31)


def ask_transformers(model: Any, data: bytes) -> Any:
    """Its own processor and model; the picture on the canvas, with a mask of what is real."""
    processor: Any = transformers.DetrImageProcessorPil(
        size={"max_height": CANVAS[0], "max_width": CANVAS[1]},
        pad_size={"height": CANVAS[0], "width": CANVAS[1]},
    )
    inputs = processor(Image.open(io.BytesIO(data)), return_tensors="pt")
    with torch.no_grad():
        return processor, model(**inputs), inputs["pixel_mask"][0].bool()


def enlarge(masks: Tensor, valid: Tensor, size: tuple[int, int]) -> Tensor:
    """(queries, rows, columns) over the canvas -> (queries, height, width) of the original; valid: its pixels there."""
    grids = [
        (torch.arange(side) + 0.5) / side * int(real) / whole * 2 - 1
        for side, real, whole in zip(size, (valid.any(1).sum(), valid.any(0).sum()), CANVAS, strict=True)
    ]
    y, x = torch.meshgrid(*grids, indexing="ij")
    return F.grid_sample(masks[None], torch.stack((x, y), dim=-1)[None], padding_mode="border", align_corners=False)[0]


def panoptic_by_the_paper(output: Any, valid: Tensor, size: tuple[int, int]) -> list[tuple[int, float, NDArray[Any]]]:
    """Label, score and mask of each segment, by Carion et al. 2020, section 4.4, on what `transformers` answers."""
    scores, labels = output.logits[0].softmax(-1).max(-1)
    kept = (scores > THRESHOLD) & (labels != output.logits.shape[-1] - 1)
    sent = output.pred_masks[0].half().float()  # as the graph contract has them; random masks are much alike
    scores, labels, masks = scores[kept], labels[kept], enlarge(sent, valid, size)[kept]
    names: list[Any] = [int(label) if int(label) in STUFF else (query,) for query, label in enumerate(labels)]
    alive = list(range(len(names)))
    while True:
        best = [alive[int(i)] for i in masks[alive].argmax(0).flatten()]
        owner = np.array([names.index(names[query]) for query in best]).reshape(size)
        small = {query for query in alive if (owner == names.index(names[query])).sum() <= 4}
        if not small:
            break
        alive = [query for query in alive if query not in small]
    return [
        (
            int(labels[first]),
            max(float(scores[q]) for q in range(len(names)) if names[q] == names[first]),
            owner == first,
        )
        for first in np.unique(owner)
    ]


def check_answer(found: Segmentation, expected: list[tuple[int, float, NDArray[Any]]]) -> None:
    expected = sorted(expected, key=lambda segment: -segment[1])
    assert [segment.class_id for segment in found.segments] == [class_id for class_id, _, _ in expected]
    agreed = 0
    for segment, (_, score, inside) in zip(found.segments, expected, strict=True):
        mask = segment.mask.to_array()
        assert segment.score == pytest.approx(score, abs=1e-4)
        agreed += int((mask & inside).sum())
    # A number on the edge of two float16s may be rounded to either.
    assert agreed >= 0.998 * found.size[0] * found.size[1]


def test_answers_are_those_of_transformers(bundle: Bundle, reference: Any, folder: Path, server: str) -> None:
    """From image bytes, through a server and both clients."""
    both = Both(server)
    kinds: set[bool] = set()
    for name, size in PICTURES.items():
        data = (folder / name).read_bytes()
        [found] = both.segment([data], model="panoptic", score_threshold=THRESHOLD).results
        assert found.size == (size[1], size[0])
        _, output, valid = ask_transformers(reference, data)
        expected = panoptic_by_the_paper(output, valid, size)
        check_answer(found, expected)
        assert len(found.segments) >= 2
        kinds |= {segment.class_id in STUFF for segment in found.segments}
        with Predictor(bundle) as predictor:
            assert predictor.segment([data], THRESHOLD)[0][0].segments[0].mask == found.segments[0].mask
            # A model with masks is a detector too.
            assert len(predictor.detect([data], THRESHOLD)[0][0].detections) >= len(found.segments)
    assert kinds == {True, False}, "the pictures show no stuff, or no things: nothing was proved of one"


def test_merge_where_queries_are_sure() -> None:
    """`post_process_panoptic_segmentation` weighs a mask's probability by its query's score, DETR's authors its logit
    by nothing, and drops segments that lose a fifth of their area to others. Where one query is sure of each pixel,
    as trained models are, both say the same but for some pixels along the edges."""
    random = np.random.default_rng(5)
    queries, rows, columns, size, canvas = 8, 25, 34, (300, 407), (100, 136)
    centres = random.uniform(0, 1, (queries, 2)) * (rows, columns)
    places = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1) + 0.5
    nearest = ((places[None] - centres[:, None, None]) ** 2).sum(-1).argmin(0)
    masks = np.where(nearest[None] == np.arange(queries)[:, None, None], 8.0, -8.0) + random.normal(
        size=(queries, rows, columns)
    )
    logits = np.full((queries, 6), -3.0)
    logits[np.arange(queries), [0, 1, 1, 2, 3, 3, 4, 5]] = random.uniform(3, 6, queries)  # the last is no object
    probabilities = torch.from_numpy(logits).softmax(-1).numpy()
    outputs = {
        "logits": logits,
        "scores": probabilities[:, :-1].max(-1),
        "labels": probabilities[:, :-1].argmax(-1),
        "masks": masks.astype(np.float16),
    }
    spec = segmentation_spec(PreprocessSpec(size=canvas, fit="pad"), tuple("abcde"), queries, (rows, columns), STUFF)
    geometry = Geometry(size, canvas, (0.0, 0.0, float(size[1]), float(size[0])), canvas)

    found = segmentation_from_outputs({k: v[None] for k, v in outputs.items()}, 0, geometry, spec)

    output: Any = transformers.models.detr.modeling_detr.DetrSegmentationOutput(
        logits=torch.from_numpy(logits)[None], pred_masks=torch.from_numpy(masks)[None]
    )
    processor: Any = transformers.DetrImageProcessorPil()
    [theirs] = processor.post_process_panoptic_segmentation(
        output, threshold=0.85, label_ids_to_fuse=set(STUFF), target_sizes=[size]
    )
    segments = {segment["id"]: segment["label_id"] for segment in theirs["segments_info"]}
    assert sorted(segments.values()) == sorted(segment.class_id for segment in found.segments)
    classes = np.vectorize(lambda number: segments.get(number, -1))(theirs["segmentation"].numpy())
    ours = np.full(size, -1)
    for segment in found.segments:
        ours[segment.mask.to_array()] = segment.class_id
    assert (classes == ours).mean() > 0.97


def test_errors(server: str, folder: Path) -> None:
    both = Both(server)
    data = (folder / "whole.png").read_bytes()
    with pytest.raises(UsageError, match=r"score_threshold is 2, expected a value in \[0, 1\]"):
        both.segment([data], model="panoptic", score_threshold=2)
    with pytest.raises(UsageError, match="holds no image"):
        both.segment([], model="panoptic")
    with pytest.raises(TaskError, match="panoptic is a segmentation model and can't answer classification requests"):
        both.classify([data], model="panoptic")
    assert both.model_info("panoptic").task == "segmentation"


def ferryman(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ferryman", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command_line(bundle: Bundle, folder: Path, server: str, tmp_path: Path) -> None:
    picture, drawn = folder / "tall.png", tmp_path / "drawn.png"
    options = ["segment", picture, "--score", THRESHOLD]
    result = ferryman(*options, "--bundle", bundle.path, "--draw", drawn, "--json")
    assert result.returncode == 0, result.stderr
    [document] = json.loads(result.stdout)
    assert document["size"] == [120, 180]
    masks = [Mask((180, 120), tuple(segment["mask"]["counts"])) for segment in document["segments"]]
    assert [mask.area for mask in masks] == [segment["area"] for segment in document["segments"]]
    with Image.open(drawn) as image:
        assert image.size == (120 * 4, 180 * 4)
    served = ferryman(*options, "--address", server, "--model", "panoptic", "--json")
    assert json.loads(served.stdout)[0]["segments"] == document["segments"]
    table = ferryman(*options, "--bundle", bundle.path)
    assert "LABEL_" in table.stdout
    assert "%" in table.stdout
    bench = ferryman("bench", "--address", server, "--model", "panoptic", "--image", picture, "--seconds", "0.1")
    assert bench.returncode == 0, bench.stderr


@pytest.mark.nightly
def test_semantic_head_from_facebook_files(folder: Path, tmp_path: Path) -> None:
    """A DINOv2 and its segmentation head, exported by the command line and asked about a picture's own pixels."""
    from ferryman_models.vit import ViT, ViTConfig

    from ..models.test_weights_files import timm_state

    config = ViTConfig(
        image_size=(56, 56), patch=14, dim=48, depth=2, heads=6, hidden=64, classes=0, layer_scale=True, pooling="cls"
    )
    vit = ViT(config)
    norm, classifier = nn.BatchNorm2d(48), nn.Conv2d(48, 5, 1)
    for seed, module in enumerate((vit, norm, classifier)):
        randomize(module, seed)
    with torch.no_grad():
        classifier.weight.mul_(4)
    torch.save(timm_state(vit.eval()), tmp_path / "dinov2.pth")
    head = {f"decode_head.bn.{name}": tensor for name, tensor in norm.eval().state_dict().items()}
    head |= {f"decode_head.conv_seg.{name}": tensor for name, tensor in classifier.state_dict().items()}
    torch.save(head, tmp_path / "head.pth")
    (tmp_path / "labels.txt").write_text("wall\nsky\ntree\nroad\ncar\n")
    size = (56, 84)
    options = ["--arch", "dinov2_vits14", "--head", tmp_path / "head.pth", "--labels", tmp_path / "labels.txt"]
    options += ["--size", "56x84", "--name", "semantic", "--samples", folder, "-o", tmp_path / "r"]
    result = ferryman("export", tmp_path / "dinov2.pth", *options)
    assert result.returncode == 0, result.stderr
    assert "of the pixels or more agree" in result.stdout

    data = (folder / "whole.png").read_bytes()
    with Predictor.open(tmp_path / "r" / "semantic") as predictor:
        [found], _ = predictor.segment([data])

    # The offset quirk of the positions is of the original: as `load_weights_file` has it for this architecture.
    from ferryman_models.checkpoints.weights_file import load_weights_file

    module = load_weights_file(tmp_path / "dinov2.pth", "dinov2_vits14", "x", head=tmp_path / "head.pth").module
    picture = Image.open(io.BytesIO(data)).convert("RGB").resize((84, 56), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None] / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        logits = module((pixels - mean[:, None, None]) / std[:, None, None])
    canvas = F.interpolate(logits, size=size, mode="bilinear").argmax(1)[:, None].float()
    expected = F.interpolate(canvas, size=PICTURES["whole.png"], mode="nearest-exact")[0, 0].numpy()
    ours = np.full(expected.shape, -1)
    for segment in found.segments:
        ours[segment.mask.to_array()] = segment.class_id
    assert (ours == expected).mean() > 0.999
    assert len(found.segments) >= 2
    assert {segment.label for segment in found.segments} <= {"wall", "sky", "tree", "road", "car"}
    assert sum(segment.mask.area for segment in found.segments) == 180 * 244
