"""ExportModules: a reference model inside the graph contract, uint8 picture in and answers out.

Everything between the canvas and the answer is computed in here, so that every runtime has the same one
implementation and parity covers it.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ferryman.errors import ExportError
from ferryman.specs import ModelSpec
from ferryman_models.attention import attend_plain, set_attend
from ferryman_models.vit import ViT


class ExportModule(nn.Module):
    """Base: holds the model in `eval()` mode with plain attention, and normalises its input.

    model: takes what the subclass gives it; spec: what the graph takes and answers
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        set_attend(model, attend_plain)
        self.model = model.eval()
        self.spec = spec
        # In units of pixel values, so that the graph needs one subtraction and one division.
        self.register_buffer("mean", torch.tensor(spec.preprocess.mean) * 255)
        self.register_buffer("std", torch.tensor(spec.preprocess.std) * 255)

    def normalize(self, image: Tensor) -> Tensor:
        """(batch, height, width, 3) uint8 -> (batch, 3, height, width) float32, by the spec's mean and deviation."""
        return ((image.to(torch.float32) - self.mean) / self.std).permute(0, 3, 1, 2)


class ClassificationExport(ExportModule):
    """Graph contract of a classifier. A ViT's position embeddings are those of the spec's canvas, as constants."""

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        super().__init__(resize_positions(model, spec.preprocess.size) if isinstance(model, ViT) else model, spec)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image: (batch, height, width, 3) uint8 RGB

        Returns logits and probabilities, both (batch, classes) float32.
        """
        logits = self.model(self.normalize(image))
        return logits, logits.softmax(dim=-1)


class EmbeddingExport(ExportModule):
    """Graph contract of an encoder. A ViT's position embeddings are those of the spec's canvas, as constants.

    Any other model returns class token and patches itself; see `own`.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        if isinstance(model, ViT) and not model.config.class_token:
            raise ExportError("an embedding needs a model with patches and a class token")
        super().__init__(resize_positions(model, spec.preprocess.size) if isinstance(model, ViT) else model, spec)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image: (batch, height, width, 3) uint8 RGB

        Returns the class token (batch, dim) and the patches (batch, rows, columns, dim), both float32.
        """
        if not isinstance(self.model, ViT):
            return self.model(self.normalize(image))
        config, tokens = self.model.config, self.model.forward_features(self.normalize(image))
        # (batch, rows*columns, dim) -> (batch, rows, columns, dim)
        return tokens[:, 0], tokens[:, config.prefix :].unflatten(1, config.grid(self.spec.preprocess.size))


class DetectionExport(ExportModule):
    """Graph contract of a DETR."""

    def mask_padding(self, image: Tensor, valid_size: Tensor) -> tuple[Tensor, Tensor]:
        """Sets padding to zero, as the model was trained with, whatever the canvas holds there.

        image: (batch, 3, height, width) float32, normalised; valid_size: (batch, 2) int32, (height, width)
        Returns the image and which pixels are real, (batch, height, width) bool.
        """
        height, width = image.shape[2], image.shape[3]
        rows = torch.arange(height, dtype=torch.int32)[None, :, None] < valid_size[:, 0, None, None]
        columns = torch.arange(width, dtype=torch.int32)[None, None, :] < valid_size[:, 1, None, None]
        valid = rows & columns
        return torch.where(valid[:, None], image, torch.zeros(())), valid

    def to_corners(self, boxes_cxcywh: Tensor) -> Tensor:
        """(batch, queries, 4) centre x, centre y, width, height -> x1, y1, x2, y2, clipped to [0, 1]."""
        centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
        return torch.cat((centre - half, centre + half), dim=-1).clamp(0, 1)

    def forward(self, image: Tensor, valid_size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """image: (batch, height, width, 3) uint8 RGB; valid_size: (batch, 2) int32, (height, width) of the real pixels

        Returns logits (batch, queries, classes + 1), boxes (batch, queries, 4) xyxy in [0, 1] of the valid area,
        scores (batch, queries), labels (batch, queries) int64, never "no object".
        """
        normalised, valid = self.mask_padding(self.normalize(image), valid_size)
        output = self.model(normalised, valid)
        logits = output.logits[-1]
        # The probability is over all classes, the choice among all but the last ("no object").
        scores, labels = logits.softmax(dim=-1)[..., :-1].max(dim=-1)
        return logits, self.to_corners(output.boxes_cxcywh[-1]), scores, labels


def resize_positions(model: ViT, image_size: tuple[int, int]) -> ViT:
    """The same ViT, tensors shared, as if learned at (height, width): its graph needs no bicubic resize.

    Runtimes differ in bicubic `Resize` from PyTorch and from each other.
    """
    if image_size == model.config.image_size:
        return model
    state = model.state_dict() | {"positions": model.position_embeddings(image_size).detach()}
    with torch.device("meta"):
        resized = ViT(replace(model.config, image_size=image_size))
    resized.load_state_dict(state, assign=True)
    return resized


EXPORT_MODULES: dict[str, type[ExportModule]] = {
    "classification": ClassificationExport,
    "detection": DetectionExport,
    "embedding": EmbeddingExport,
}
