"""ExportModules: a reference model inside the graph contract, uint8 picture in and answers out.

Everything between the canvas and the answer is computed in here, so that every runtime has the same one
implementation and parity covers it.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ferryman.errors import ExportError
from ferryman.specs import ModelSpec
from ferryman_export.explain import attention_grid, last_attention, pool_patches
from ferryman_models.attention import attend_plain, set_attend, watch_attention
from ferryman_models.checkpoints.transformers_models import TransformersDetector
from ferryman_models.detr import DETR, DetrOutput
from ferryman_models.detr_masks import DetrMasksOutput
from ferryman_models.patch_segmenter import PatchSegmenter
from ferryman_models.vit import ViT


class ExportModule(nn.Module):
    """Base: holds the model in `eval()` mode with plain attention, and normalises its input.

    model: takes what the subclass gives it; spec: what the graph takes and answers
    strict: torch.export must read the model's bytecode, which takes several times as long
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        set_attend(model, attend_plain)
        self.model = model.eval()
        self.spec = spec
        self.strict = isinstance(model, TransformersDetector) and model.strict
        # In units of pixel values, so that the graph needs one subtraction and one division; a whole line of the
        # picture each, since runtimes are slow where the last dimension is of 3.
        width = spec.preprocess.size[1]
        self.register_buffer("mean", (torch.tensor(spec.preprocess.mean) * 255).repeat(width))
        self.register_buffer("std", (torch.tensor(spec.preprocess.std) * 255).repeat(width))

    def normalize(self, image: Tensor, valid_size: Tensor | None = None) -> Tensor:
        """(batch, height, width, 3) uint8 -> (batch, 3, height, width) float32, by the spec's mean and deviation.

        valid_size: see `find_valid`; what lies outside is then zero, whatever the canvas holds there
        """
        # (batch, height, width, 3) -> (batch, height, width * 3)
        lines = (image.to(torch.float32).flatten(2) - self.mean) / self.std  # TensorRT flattens no uint8
        if valid_size is not None:
            lines = torch.where(find_valid(valid_size, (image.shape[1], image.shape[2]), 3), lines, torch.zeros(()))
        return lines.unflatten(2, (-1, 3)).permute(0, 3, 1, 2)


def find_valid(valid_size: Tensor, size: tuple[int, int], channels: int = 1) -> Tensor:
    """Which values of canvases of `size`, in pixels, are real and not padding.

    valid_size: (batch, 2) int32, (height, width) of the real pixels at the top left
    Returns (batch, height, width * channels) bool.
    """
    height, width = size
    rows = torch.arange(height, dtype=torch.int32)
    columns = torch.arange(width, dtype=torch.int32).repeat_interleave(channels)
    return (rows[:, None] < valid_size[:, 0, None, None]) & (columns < valid_size[:, 1, None, None])


class ClassificationExport(ExportModule):
    """Graph contract of a classifier. A ViT's position embeddings are those of the spec's canvas, as constants."""

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        super().__init__(resize_positions(model, spec.preprocess.size) if isinstance(model, ViT) else model, spec)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """image: (batch, height, width, 3) uint8 RGB

        Returns logits and probabilities, both (batch, classes) float32, and the attention where the spec has it.
        """
        if not (self.spec.explains and isinstance(self.model, ViT)):
            logits = self.model(self.normalize(image))
            return logits, logits.softmax(dim=-1)
        with watch_attention(last_attention(self.model)) as watched:
            logits = self.model(self.normalize(image))
        return logits, logits.softmax(dim=-1), pool_patches(watched.weights, self.model.config, self.spec)


class EmbeddingExport(ExportModule):
    """Graph contract of an encoder. A ViT's position embeddings are those of the spec's canvas, as constants.

    Any other model returns class token and patches itself; see `own`.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        if isinstance(model, ViT) and not model.config.class_token:
            raise ExportError("an embedding needs a model with patches and a class token")
        super().__init__(resize_positions(model, spec.preprocess.size) if isinstance(model, ViT) else model, spec)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """image: (batch, height, width, 3) uint8 RGB

        Returns the class token (batch, dim) and the patches (batch, rows, columns, dim), both float32, and the
        attention where the spec has it.
        """
        if not isinstance(self.model, ViT):
            return self.model(self.normalize(image))
        config = self.model.config
        with watch_attention(last_attention(self.model)) as watched:
            tokens = self.model.forward_features(self.normalize(image))
        # (batch, rows*columns, dim) -> (batch, rows, columns, dim)
        answers = tokens[:, 0], tokens[:, config.prefix :].unflatten(1, config.grid(self.spec.preprocess.size))
        return (*answers, pool_patches(watched.weights, config, self.spec)) if self.spec.explains else answers


class DetectionExport(ExportModule):
    """Graph contract of a detector with a softmax over classes and "no object", as DETR's.

    A ViT's position embeddings are those of the spec's canvas, as constants.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        fitted = resize_positions(model, spec.preprocess.size) if isinstance(model, DETR) else model
        super().__init__(fitted, spec)
        for module in self.modules():
            if isinstance(module, DETR):
                module.auxiliary = False

    def prepare(self, image: Tensor, valid_size: Tensor) -> tuple[Tensor, Tensor]:
        """What the model takes: the normalised picture, and which pixels are real, (batch, height, width) bool."""
        return self.normalize(image, valid_size), find_valid(valid_size, (image.shape[1], image.shape[2]))

    def to_corners(self, boxes_cxcywh: Tensor) -> Tensor:
        """(batch, queries, 4) centre x, centre y, width, height -> x1, y1, x2, y2, clipped to [0, 1]."""
        centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
        return torch.cat((centre - half, centre + half), dim=-1).clamp(0, 1)

    def forward(self, image: Tensor, valid_size: Tensor) -> tuple[Tensor, ...]:
        """image: (batch, height, width, 3) uint8 RGB; valid_size: (batch, 2) int32, (height, width) of the real pixels

        Returns logits (batch, queries, classes + 1), boxes (batch, queries, 4) xyxy in [0, 1] of the valid area,
        scores (batch, queries), labels (batch, queries) int64, never "no object"; and each query's attention,
        (batch, queries, rows, columns), where the spec has it.
        """
        inputs = self.prepare(image, valid_size)
        if not (self.spec.explains and isinstance(self.model, DETR)):
            return self.answer(self.model(*inputs))
        with watch_attention(last_attention(self.model)) as watched:
            output = self.model(*inputs)
        # (batch, heads, queries, rows*columns) -> (batch, queries, rows, columns)
        attention = watched.weights.mean(dim=1).unflatten(-1, attention_grid(self.model, self.spec.preprocess.size))
        return *self.answer(output), attention

    def answer(self, output: DetrOutput | DetrMasksOutput) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits, boxes, scores and labels of the last decoder layer."""
        logits = output.logits[-1]
        # The probability is over all classes, the choice among all but the last ("no object").
        scores, labels = logits.softmax(dim=-1)[..., :-1].max(dim=-1)
        return logits, self.to_corners(output.boxes_cxcywh[-1]), scores, labels


class RankedDetectionExport(DetectionExport):
    """Graph contract of a detector that scores each class by itself: its best pairs of a query and a class."""

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        super().__init__(model, spec)
        self.classes = len(spec.labels)
        self.answers = int(spec.outputs[1].shape[1])

    def forward(self, image: Tensor, valid_size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """image: (batch, height, width, 3) uint8 RGB; valid_size: (batch, 2) int32, (height, width) of the real pixels

        Returns, best first, logits (batch, answers, classes) and boxes (batch, answers, 4) xyxy in [0, 1] of the valid
        area, both of the answer's query, scores (batch, answers), labels (batch, answers) int64.
        """
        output = self.model(*self.prepare(image, valid_size))
        logits, boxes = output.logits[-1], self.to_corners(output.boxes_cxcywh[-1])
        # (batch, queries, classes) -> (batch, queries * classes); by logits, since scores near one round together
        best, places = logits.flatten(1).topk(self.answers, dim=1)
        queries, labels = (places // self.classes)[..., None], places % self.classes
        logits = logits.gather(1, queries.expand(-1, -1, self.classes))
        return logits, boxes.gather(1, queries.expand(-1, -1, 4)), best.sigmoid(), labels


class SegmentationExport(DetectionExport):
    """Graph contract of a DETR with masks."""

    def forward(self, image: Tensor, valid_size: Tensor) -> tuple[Tensor, ...]:
        """As DetectionExport.forward, and masks (batch, queries, rows, columns) float16, the head's own logits."""
        output = self.model(*self.prepare(image, valid_size))
        # Beyond float16's range a logit is as sure as one at its end.
        largest = torch.finfo(torch.float16).max
        return *self.answer(output), output.masks.clamp(-largest, largest).to(torch.float16)


class SemanticExport(ExportModule):
    """Graph contract of a model that classifies patches. Position embeddings are those of the canvas, as constants."""

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        if not isinstance(model, PatchSegmenter):
            raise ExportError("a map of classes needs a model that classifies patches")
        vit = resize_positions(model.vit, spec.preprocess.size)
        if isinstance(vit, ViT) and vit is not model.vit:
            state = model.state_dict() | {f"vit.{name}": tensor for name, tensor in vit.state_dict().items()}
            with torch.device("meta"):
                model = PatchSegmenter(vit.config, model.classes, model.blocks)
            model.load_state_dict(state, assign=True)
        super().__init__(model, spec)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image: (batch, height, width, 3) uint8 RGB

        Returns every pixel's best class, uint8, and its probability, float16, both (batch, height, width).
        """
        logits = self.model(self.normalize(image))
        size = (image.shape[1], image.shape[2])
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        confidences, classes = logits.softmax(dim=1).max(dim=1)
        return classes.to(torch.uint8), confidences.to(torch.float16)


def resize_positions(model: ViT | DETR, image_size: tuple[int, int]) -> nn.Module:
    """The same model, tensors shared, with its ViT as if learned at (height, width): its graph needs no bicubic resize.

    Runtimes differ in bicubic `Resize` from PyTorch and from each other. A DETR on a ResNet comes back as it is.
    """
    vit = model.backbone if isinstance(model, DETR) else model
    if not isinstance(vit, ViT) or image_size == vit.config.image_size:
        return model
    config = replace(vit.config, image_size=image_size)
    with torch.device("meta"):
        resized = DETR(replace(model.config, backbone=config)) if isinstance(model, DETR) else ViT(config)
    name = "backbone.positions" if isinstance(model, DETR) else "positions"
    resized.load_state_dict(model.state_dict() | {name: vit.position_embeddings(image_size).detach()}, assign=True)
    return resized


EXPORT_MODULES: dict[str, type[ExportModule]] = {
    "classification": ClassificationExport,
    "detection": DetectionExport,
    "embedding": EmbeddingExport,
    "segmentation": SegmentationExport,
    "semantic-segmentation": SemanticExport,
}


def choose_module(spec: ModelSpec) -> type[ExportModule]:
    """The ExportModule of the spec's task."""
    return RankedDetectionExport if spec.ranked else EXPORT_MODULES[spec.task]
