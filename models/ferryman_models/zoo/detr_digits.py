"""Trains `detr-digits`: a small DETR that finds none to six handwritten digits on any background.

Two stages, since a DETR from scratch hardly learns in the time that there is:
1. the backbone alone as a dense detector: every cell of its map answers for the digit that it lies in, with a box
   relative to the cell.
2. the whole DETR with groups of queries and losses after every decoder layer, and two losses beside them that teach
   the memory: every cell answers through DETR's own heads, as if it were a query, and says where it is itself.

Attention's values carry no positions, and a map of ten cells is coarse: boxes were right to a pixel of 160 and no
better, whatever their size, until positions counted pixels and stood in the features too (`DETRConfig`).
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ferryman.preprocess import Geometry, fit_image
from ferryman.specs import PreprocessSpec, detection_spec
from ferryman_models.attention import attend_fused, set_attend
from ferryman_models.checkpoints.native import save_native
from ferryman_models.detr import DETR, DETRConfig
from ferryman_models.detr_loss import Objects, box_cxcywh_to_xyxy, deep_set_loss, generalized_iou
from ferryman_models.resnet import ResNetConfig
from ferryman_models.zoo.coco import coco_map
from ferryman_models.zoo.digits import LABELS, Split, load_digits, load_photographs
from ferryman_models.zoo.scenes import Scene, make_scene, random_size
from ferryman_models.zoo.training import Schedule, fit

NAME = "detr-digits"
SIDE = 160
PREPROCESS = PreprocessSpec(
    size=(SIDE, SIDE),
    fit="pad",
    interpolation="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
CONFIG = DETRConfig(
    classes=10,
    backbone=ResNetConfig("basic", (1, 2, 2), (32, 64, 128)),
    dim=128,
    heads=8,
    hidden=512,
    encoder_layers=2,
    decoder_layers=3,
    queries=12,
    query_groups=4,
    positions="pixels",
    temperature=20.0,
    place_features=True,
    dropout=0.0,
)
BACKBONE = Schedule(steps=2000, peak=1e-3)
SCHEDULE = Schedule(steps=12000, peak=4e-4)
BATCH = 16
MOST = 9  # digits of a training scene: more than the six at most of the others, for more to learn from each
REUSE = 3  # pictures are drawn once and shown this often, in other colours each time
SEED = 20


def dense_targets(boxes_cxcywh: Tensor, valid_size: tuple[int, int], side: int, stride: int) -> Tensor:
    """For every cell the number of the object that it answers for, or -1: (cells,) int64.

    A cell answers for the smallest object whose inner half holds the cell's centre, and always for an object whose
    centre lies in it. boxes_cxcywh: (count, 4) in [0, 1] of the valid area; side: of the canvas in pixels
    """
    grid = side // stride
    owner = torch.full((grid * grid,), -1, dtype=torch.int64)
    height, width = valid_size
    boxes = boxes_cxcywh * torch.tensor([width, height, width, height])
    centre = (torch.arange(grid) + 0.5) * stride
    order = boxes[:, 2:].prod(-1).argsort(descending=True)
    for number in order.tolist():
        cx, cy, w, h = boxes[number].tolist()
        inside = ((centre - cy).abs() < h / 4)[:, None] & ((centre - cx).abs() < w / 4)
        owner[inside.flatten()] = number
    for number in order.tolist():
        column, row = (boxes[number, :2] / stride).long().clamp(0, grid - 1).tolist()
        owner[row * grid + column] = number
    return owner


def dense_loss(logits: Tensor, boxes_cxcywh: Tensor, owners: Tensor, objects: list[Objects]) -> Tensor:
    """2 cross-entropy + 5 L1 + 2 (1 - generalised IoU), all per cell with an object; a scalar.

    Cells without one count 0.3 in the cross-entropy. It is divided by the number of cells with an object, not by
    all cells: as a mean over all of them the classes drown in the boxes' gradient and are hardly learned.

    logits: (batch, cells, classes + 1); boxes_cxcywh: (batch, cells, 4); owners: (batch, cells) int64, -1 for none
    """
    no_object = logits.shape[-1] - 1
    wanted = torch.full(owners.shape, no_object, dtype=torch.int64)
    pictures, cells = (owners >= 0).nonzero(as_tuple=True)
    starts = np.concatenate(([0], np.cumsum([len(o.labels) for o in objects])[:-1]))
    numbers = owners[pictures, cells] + torch.from_numpy(starts)[pictures]
    wanted[pictures, cells] = torch.cat([o.labels for o in objects])[numbers]
    weights = torch.ones(no_object + 1)
    weights[no_object] = 0.3
    count = max(1, len(numbers))
    classification = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weights, reduction="sum") / count
    answered = boxes_cxcywh[pictures, cells]
    expected = torch.cat([o.boxes_cxcywh for o in objects])[numbers]
    l1 = (answered - expected).abs().sum() / count
    overlap = generalized_iou(box_cxcywh_to_xyxy(answered), box_cxcywh_to_xyxy(expected))
    return 2 * classification + 5 * l1 + 2 * (1 - overlap).sum() / count


def to_inputs(canvases_u8: np.ndarray, valid_size: np.ndarray) -> tuple[Tensor, Tensor]:
    """(batch, side, side, 3) uint8 and (batch, 2) -> normalised image (batch, 3, side, side), valid pixels bool."""
    mean, std = torch.tensor(PREPROCESS.mean), torch.tensor(PREPROCESS.std)
    pixels = torch.arange(canvases_u8.shape[1])
    sizes = torch.from_numpy(valid_size)
    valid = (pixels[:, None] < sizes[:, 0, None, None]) & (pixels < sizes[:, 1, None, None])
    image = (torch.from_numpy(canvases_u8).to(torch.float32) / 255 - mean) / std * valid[..., None]
    return image.permute(0, 3, 1, 2), valid


@dataclass(frozen=True)
class Batch:
    """canvases: (batch, side, side, 3) uint8; sizes: (batch, 2) int64, (height, width) of the real pixels."""

    canvases: np.ndarray
    sizes: np.ndarray
    objects: list[Objects]

    def owners(self, stride: int) -> Tensor:
        """`dense_targets` of every picture: (batch, cells) int64; stride: pixels from cell to cell."""
        side = self.canvases.shape[1]
        pictures = zip(self.objects, self.sizes.tolist(), strict=True)
        return torch.stack(
            [dense_targets(found.boxes_cxcywh, (height, width), side, stride) for found, (height, width) in pictures]
        )

    def cell_centres(self, stride: int) -> Tensor:
        """(x, y) of every cell's centre in [0, 1] of the valid area, above 1 in the padding: (batch, cells, 2)."""
        grid = self.canvases.shape[1] // stride
        centre = (torch.arange(grid) + 0.5) * stride
        y, x = (centre / torch.from_numpy(self.sizes[:, axis, None]) for axis in (0, 1))
        return torch.stack((x[:, None].expand(-1, grid, -1), y[..., None].expand(-1, -1, grid)), dim=-1).flatten(1, 2)


class Stream:
    """Scenes of one split without end, on canvases of `side` pixels; scene number i is the same in every run."""

    def __init__(self, split: Split, side: int = SIDE) -> None:
        self.side = side
        self.digits, self.photographs = load_digits(split), load_photographs(split)
        self.drawn: dict[int, Scene] = {}

    def scene(self, number: int) -> Scene:
        if number not in self.drawn:
            random = np.random.default_rng((SEED, number))
            size = random_size(random, self.side, self.side)
            self.drawn[number] = make_scene(random, self.digits, self.photographs, size, MOST)
        return self.drawn[number]

    def batch(self, step: int) -> Batch:
        # Scenes come in blocks of BATCH; a block is shown in REUSE rounds, 64 blocks apart from itself.
        cycle, place = divmod(step, 64 * REUSE)
        block = cycle * 64 + place % 64
        if place == 0:
            self.drawn.clear()
        random = np.random.default_rng((SEED, step, 1))
        canvases = np.zeros((BATCH, self.side, self.side, 3), dtype=np.uint8)
        sizes = np.zeros((BATCH, 2), dtype=np.int64)
        objects: list[Objects] = []
        for slot in range(BATCH):
            scene = self.scene(block * BATCH + slot)
            height, width = scene.image.shape[:2]
            image = scene.image[..., random.permutation(3)]
            canvases[slot, :height, :width] = 255 - image if random.random() < 0.5 else image
            sizes[slot] = height, width
            left, top, right, bottom = (scene.boxes / np.array([width, height, width, height])).T
            boxes = np.stack(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top), axis=1)
            objects.append(Objects(torch.from_numpy(scene.labels), torch.from_numpy(boxes.astype(np.float32))))
        return Batch(canvases, sizes, objects)


def held_out_scenes(split: Split, count: int, seed: int = 7) -> list[Scene]:
    """Scenes of held-out digits with a longer side from 160 to 640 pixels."""
    random = np.random.default_rng(seed)
    digits, photographs = load_digits(split), load_photographs(split)
    return [make_scene(random, digits, photographs, random_size(random, 160, 640)) for _ in range(count)]


def evaluate_map(
    model: DETR, scenes: list[Scene], preprocess: PreprocessSpec = PREPROCESS, batch: int = 50
) -> tuple[float, float]:
    """COCO mAP (IoU 0.50 to 0.95) and mAP at IoU 0.50; every query's best class but "no object" is an answer."""
    answers: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start in range(0, len(scenes), batch):
        fitted: list[tuple[np.ndarray, Geometry]] = [
            fit_image(Image.fromarray(scene.image), preprocess) for scene in scenes[start : start + batch]
        ]
        sizes = np.array([geometry.valid_size for _, geometry in fitted])
        with torch.inference_mode():
            output = model(*to_inputs(np.stack([canvas for canvas, _ in fitted]), sizes))
        scores, labels = output.logits[-1].softmax(-1)[..., :-1].max(-1)
        boxes = box_cxcywh_to_xyxy(output.boxes_cxcywh[-1]).clamp(0, 1).numpy()
        for index, (_, geometry) in enumerate(fitted):
            answers.append((geometry.boxes_to_original(boxes[index]), scores[index].numpy(), labels[index].numpy()))
    return coco_map(scenes, answers)


class Trainee(nn.Module):
    """The DETR, and the heads that teach its backbone and its memory and are dropped afterwards."""

    def __init__(self, config: DETRConfig = CONFIG) -> None:
        super().__init__()
        self.config = config
        self.detr = DETR(config, nn.BatchNorm2d)
        set_attend(self.detr, attend_fused)
        for parameter in self.detr.parameters():
            if parameter.ndim == 4:  # convolutions run faster on channels-last weights
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.cell_head = nn.Linear(config.dim, config.classes + 1 + 4)
        self.place_head = nn.Linear(config.dim, 2)

    def project(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The backbone's map (batch, dim, grid, grid) and the valid pixels."""
        image, valid = to_inputs(batch.canvases, batch.sizes)
        return self.detr.project(image.contiguous(memory_format=torch.channels_last)), valid

    def backbone_loss(self, batch: Batch) -> Tensor:
        """Of stage 1; a scalar."""
        features, _ = self.project(batch)
        classes, stride = self.config.classes, self.config.backbone.stride
        logits, boxes = self.cell_head(features.flatten(2).transpose(1, 2)).split((classes + 1, 4), dim=-1)
        # Shifts in cells from the cell's own centre, sizes in cells on a logarithmic scale; then both in [0, 1] of the
        # valid area, as the boxes of the objects are.
        cell = stride / torch.from_numpy(batch.sizes).flip(-1)[:, None]
        centres = batch.cell_centres(stride) + boxes[..., :2] * cell
        sizes = boxes[..., 2:].clamp(-4, 4).exp() * cell
        return dense_loss(logits, torch.cat((centres, sizes), dim=-1), batch.owners(stride), batch.objects)

    def loss(self, batch: Batch) -> Tensor:
        """Of stage 2; a scalar."""
        features, valid = self.project(batch)
        memory, positions, valid_cells = self.detr.encode(features, valid)
        stride = self.config.backbone.stride
        owners = batch.owners(stride)
        dense = dense_loss(self.detr.class_head(memory), self.detr.box_head(memory), owners, batch.objects)
        place = (self.place_head(memory) - batch.cell_centres(stride)).abs()[valid_cells.flatten(1)].mean()
        answers = self.detr.decode(memory, positions, valid_cells)
        logits, boxes = self.detr.class_head(answers), self.detr.box_head(answers)
        groups = self.config.query_groups
        whole = deep_set_loss(logits, boxes, batch.objects, groups, no_object_weight=0.2, class_weight=2)
        return whole + dense + 10 * place


def train(folder: Path, out: Path, start: DETR | None = None, steps: int = SCHEDULE.steps) -> DETR:
    """Trains from scratch, or in stage 2 on from `start`, or resumes from `folder`; writes the checkpoint to `out`."""
    torch.manual_seed(SEED)
    trainee = Trainee()
    detr = trainee.detr
    stream, validation_stream = Stream("train"), Stream("validation")
    validation = held_out_scenes("validation", 200)

    def evaluate_backbone() -> str:
        with torch.inference_mode():
            loss = sum(trainee.backbone_loss(validation_stream.batch(step)).item() for step in range(8)) / 8
        return f"validation loss {loss:.3f}"

    def evaluate() -> str:
        figures = evaluate_map(detr, validation)
        return f"validation mAP {figures[0]:.3f}, mAP@0.5 {figures[1]:.3f}"

    backbone_steps = 0
    if start is None:
        backbone_steps = BACKBONE.steps
        fit(
            f"{NAME}-backbone",
            trainee,
            [{"params": list(trainee.parameters())}],
            BACKBONE,
            lambda step: trainee.backbone_loss(stream.batch(step)),
            evaluate_backbone,
            folder,
        )
    else:
        thaw(start, detr)
    backbone = list(detr.backbone.parameters())
    inside = {id(parameter) for parameter in backbone}
    rest = [parameter for parameter in trainee.parameters() if id(parameter) not in inside]
    fit(
        NAME,
        trainee,
        [{"params": backbone, "scale": 1 / 3}, {"params": rest}],
        Schedule(steps, SCHEDULE.peak),
        lambda step: trainee.loss(stream.batch(backbone_steps + step)),
        evaluate,
        folder,
    )
    model = freeze(detr)
    save_native(out, model, detection_spec(PREPROCESS, LABELS, CONFIG.queries))
    return model


def thaw(frozen: DETR, model: DETR) -> None:
    """Gives `model` the weights of `frozen`; its groups of queries start as scattered copies of the only one."""
    state = frozen.state_dict()
    groups = torch.cat([state["query_embeddings"]] * CONFIG.query_groups)
    groups[CONFIG.queries :] += 0.3 * torch.randn_like(groups[CONFIG.queries :])
    missing, unexpected = model.load_state_dict(state | {"query_embeddings": groups}, strict=False)
    if unexpected or not all(name.endswith("num_batches_tracked") for name in missing):
        raise ValueError(f"the weights to go on with are of another model: {missing}, {unexpected}")


def freeze(trained: DETR) -> DETR:
    """The same model for inference: frozen batch norm, one group of queries."""
    model = DETR(replace(trained.config, query_groups=1))
    state = {name: tensor for name, tensor in trained.state_dict().items() if "num_batches_tracked" not in name}
    state["query_embeddings"] = state["query_embeddings"][: trained.config.queries]
    model.load_state_dict(state)
    return model.eval()
