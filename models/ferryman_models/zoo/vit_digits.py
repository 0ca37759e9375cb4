"""Trains `vit-digits`: one handwritten digit on any background, ten classes.

From labels alone a small ViT hardly finds the digits among backgrounds and colours: the loss stays at chance for
thousands of steps. So in training every patch also says which of its pixels are ink, through a head that is dropped
afterwards.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ferryman.preprocess import fit_image
from ferryman.specs import PreprocessSpec, classification_spec
from ferryman_models.attention import attend_fused, set_attend
from ferryman_models.checkpoints.native import save_native
from ferryman_models.vit import ViT, ViTConfig
from ferryman_models.zoo.digits import LABELS, Digits, Split, load_digits, load_photographs, render_digit
from ferryman_models.zoo.scenes import make_digit_picture
from ferryman_models.zoo.training import Schedule, fit

NAME = "vit-digits"
PREPROCESS = PreprocessSpec(
    size=(24, 24),
    fit="crop",
    shortest_edge=24,
    interpolation="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
CONFIG = ViTConfig(image_size=(24, 24), patch=4, dim=96, depth=5, heads=4, hidden=288, classes=10, pooling="mean")
SCHEDULE = Schedule(steps=6000, peak=1e-3, weight_decay=0.05)
BATCH = 64
SEED = 20


def to_input(images_u8: np.ndarray) -> Tensor:
    """(batch, height, width, 3) uint8 -> (batch, 3, height, width) float32, normalised by PREPROCESS."""
    mean, std = torch.tensor(PREPROCESS.mean), torch.tensor(PREPROCESS.std)
    scaled = torch.from_numpy(images_u8).to(torch.float32) / 255
    return ((scaled - mean) / std).permute(0, 3, 1, 2)


def make_batch(
    random: np.random.Generator, digits: Digits, indices: np.ndarray, photographs: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of the digits with these indices on the model's canvas, and their ink.

    Returns (batch, height, width, 3) uint8 and (batch, height, width) uint8, 255 where a pixel is all ink.
    """
    pictures: list[np.ndarray] = []
    inks: list[np.ndarray] = []
    for index in indices:
        picture, ink = make_digit_picture(random, digits, int(index), photographs, side=36)
        pictures.append(fit_image(Image.fromarray(picture), PREPROCESS)[0])
        inks.append(fit_image(Image.fromarray((ink * 255).astype(np.uint8)), PREPROCESS)[0])
    return np.stack(pictures), np.stack(inks)


def top1(model: ViT, split: Split, repeats: int = 1, seed: int = 7) -> float:
    """Share of right answers over every digit of the split, each drawn `repeats` times in another picture."""
    random = np.random.default_rng(seed)
    digits, photographs = load_digits(split), load_photographs(split)
    indices = np.tile(np.arange(len(digits.labels)), repeats)
    with torch.inference_mode():
        answers = model(to_input(make_batch(random, digits, indices, photographs)[0])).argmax(-1).numpy()
    return float((answers == digits.labels[indices]).mean())


def plain_top1(model: ViT, split: Split) -> float:
    """Share of right answers over the split's digits as they are: white on black, upright, centred, without noise."""
    digits = load_digits(split)
    pictures: list[np.ndarray] = []
    for digit in digits.images:
        coverage = render_digit(digit, 40.0)
        canvas = np.zeros((64, 64), dtype=np.float32)
        rows, columns = min(64, coverage.shape[0]), min(64, coverage.shape[1])
        top, left = (64 - rows) // 2, (64 - columns) // 2
        canvas[top : top + rows, left : left + columns] = coverage[:rows, :columns]
        grey = np.round(canvas * 255).astype(np.uint8)
        pictures.append(fit_image(Image.fromarray(np.stack([grey] * 3, axis=-1)), PREPROCESS)[0])
    with torch.inference_mode():
        answers = model(to_input(np.stack(pictures))).argmax(-1).numpy()
    return float((answers == digits.labels).mean())


class Trainee(nn.Module):
    """The ViT, and the head that says where the ink is."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = ViT(CONFIG)
        self.ink_head = nn.Linear(CONFIG.dim, CONFIG.patch**2)
        set_attend(self, attend_fused)

    def loss(self, image: Tensor, labels: Tensor, ink: Tensor) -> Tensor:
        """Cross-entropy of the digit, and binary cross-entropy of every pixel of every patch; a scalar.

        image: (batch, 3, height, width); labels: (batch,) int64; ink: (batch, height, width) in [0, 1]
        """
        tokens = self.vit.forward_features(image)
        # (batch, 1, height, width) -> (batch, patch*patch, patches) -> (batch, patches, patch*patch)
        wanted = F.unfold(ink[:, None], CONFIG.patch, stride=CONFIG.patch).transpose(1, 2)
        found = F.binary_cross_entropy_with_logits(self.ink_head(tokens[:, 1:]), wanted)
        return F.cross_entropy(self.vit.classify(tokens), labels) + found


def train(folder: Path, out: Path, steps: int = SCHEDULE.steps) -> ViT:
    """Trains from scratch or resumes from `folder`; writes the checkpoint to `out`."""
    torch.manual_seed(SEED)
    trainee = Trainee()
    model = trainee.vit
    digits, photographs = load_digits("train"), load_photographs("train")

    def step_loss(step: int) -> Tensor:
        random = np.random.default_rng((SEED, step))
        indices = random.integers(len(digits.labels), size=BATCH // 2)
        pictures, inks = make_batch(random, digits, indices, photographs)
        # Each is shown a second time in other colours: its channels permuted and inverted.
        images = to_input(np.concatenate((pictures, 255 - pictures[..., random.permutation(3)])))
        labels, ink = torch.from_numpy(digits.labels[indices]), torch.from_numpy(inks).float() / 255
        return trainee.loss(images, labels.repeat(2), ink.repeat(2, 1, 1))

    def evaluate() -> str:
        return f"validation top-1 {top1(model, 'validation', repeats=3):.3f}"

    schedule = Schedule(steps, SCHEDULE.peak, weight_decay=SCHEDULE.weight_decay)
    fit(NAME, trainee, [{"params": list(trainee.parameters())}], schedule, step_loss, evaluate, folder)
    model.eval()
    save_native(out, model, classification_spec(PREPROCESS, LABELS))
    return model
