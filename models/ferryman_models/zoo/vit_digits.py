"""Trains `vit-digits`: one handwritten digit on any background, ten classes.

From labels alone a small ViT hardly finds the digits among backgrounds and colours, and 1,497 digits are too few for
it to read other writers. So it has a teacher (Touvron et al. 2021, "DeiT"): six small convolutional nets, which see
the ink alone, white on black, and learn to read it in minutes. The ViT sees the same ink in any colour on any
background. Its answers learn the teacher's, and every patch learns what the teacher sees there and which pixels are
ink, through heads that are dropped afterwards. The teacher names shapes between the digits too (Beyer et al. 2022, "A
good teacher is patient and consistent"), so there are more of them than writers.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import map_coordinates, zoom
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
CONFIG = ViTConfig(image_size=(24, 24), patch=4, dim=128, depth=6, heads=4, hidden=384, classes=10, pooling="mean")
TEACHER_SCHEDULE = Schedule(steps=1500, peak=2e-3, weight_decay=0.05)
SCHEDULE = Schedule(steps=12000, peak=1e-3, weight_decay=0.05)
GO_ON = Schedule(steps=4000, peak=5e-4, weight_decay=0.05)  # from weights that are trained already
BATCH = 64
SEED = 20
TEACHER_DIM = 128
TEACHERS = 6


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


def vary(random: np.random.Generator, digits: Digits, indices: np.ndarray) -> Digits:
    """The digits with these indices, half of them blended with another digit, half of them warped."""
    shapes: list[np.ndarray] = []
    for index in indices:
        shape = digits.images[index].astype(np.float32)
        if random.random() < 0.5:
            share = random.uniform(0.2, 0.5)
            shape = (1 - share) * shape + share * digits.images[random.integers(len(digits.labels))]
            shape *= 255 / shape.max()
        if random.random() < 0.5:
            # A shift of about half a pixel, given on 3 x 3 points and linear between them.
            shifts = zoom(random.normal(0, 0.5, (2, 3, 3)), (1, 8 / 3, 8 / 3), order=1)
            shape = map_coordinates(shape, np.mgrid[0:8, 0:8] + shifts, order=3)
        shape = np.clip(shape, 0, 255).astype(np.uint8)
        shapes.append(shape if (shape > 128).any() else digits.images[index])
    return Digits(np.stack(shapes), digits.labels[indices])


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


class Teacher(nn.Module):
    """Three convolutions and a linear layer, from ink to classes."""

    def __init__(self) -> None:
        super().__init__()

        def convolution(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
            )

        # Two halvings: a cell of the map is a patch of the ViT.
        self.see = nn.Sequential(
            convolution(1, 32), nn.MaxPool2d(2), convolution(32, 64), nn.MaxPool2d(2), convolution(64, TEACHER_DIM)
        )
        self.read = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4 * TEACHER_DIM, CONFIG.classes)
        )

    def forward(self, ink: Tensor) -> tuple[Tensor, Tensor]:
        """ink: (batch, height, width) in [0, 1]. Returns logits (batch, classes), map (batch, patches, TEACHER_DIM)."""
        seen = self.see(ink[:, None])
        return self.read(seen), seen.flatten(2).transpose(1, 2)


class Teachers(nn.Module):
    """Several teachers, whose answers are averaged: they err on different digits. What is seen is the first one's."""

    def __init__(self, count: int = TEACHERS) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(Teacher() for _ in range(count))

    def forward(self, ink: Tensor) -> tuple[Tensor, Tensor]:
        """As of a Teacher, but log probabilities for logits."""
        answers = [teacher(ink) for teacher in self.teachers]
        mean = torch.stack([logits.softmax(-1) for logits, _ in answers]).mean(0)
        return mean.log(), answers[0][1]


class Trainee(nn.Module):
    """The ViT, and the heads that say where the ink is and what the teacher sees."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = ViT(CONFIG)
        self.ink_head = nn.Linear(CONFIG.dim, CONFIG.patch**2)
        self.teacher_head = nn.Linear(CONFIG.dim, TEACHER_DIM)
        set_attend(self, attend_fused)

    def loss(self, image: Tensor, ink: Tensor, answer: Tensor, seen: Tensor) -> Tensor:
        """Cross-entropy with the teacher's answer, of every patch with its ink, and distance to what is seen; a scalar.

        image: (batch, 3, height, width); ink: (batch, height, width) in [0, 1]; answer: (batch, classes) logits; seen:
        (batch, patches, TEACHER_DIM)
        """
        tokens = self.vit.forward_features(image)
        # (batch, 1, height, width) -> (batch, patch*patch, patches) -> (batch, patches, patch*patch)
        wanted = F.unfold(ink[:, None], CONFIG.patch, stride=CONFIG.patch).transpose(1, 2)
        found = F.binary_cross_entropy_with_logits(self.ink_head(tokens[:, 1:]), wanted)
        # Every patch counts alike, however strongly the teacher reacts to it.
        sight = F.mse_loss(self.teacher_head(tokens[:, 1:]), F.layer_norm(seen, seen.shape[-1:]))
        return F.cross_entropy(self.vit.classify(tokens), answer.softmax(-1)) + found + sight


def train(folder: Path, out: Path, start: ViT | None = None, steps: int | None = None) -> ViT:
    """Trains from scratch or on from `start`, or resumes from `folder`; writes the checkpoint to `out`.

    steps: by default those of `SCHEDULE`, or of `GO_ON` from a start
    """
    schedule = SCHEDULE if start is None else GO_ON
    torch.manual_seed(SEED)
    teacher, trainee = Teachers(), Trainee()
    model = trainee.vit
    if start is not None:
        model.load_state_dict(start.state_dict())
    digits, photographs = load_digits("train"), load_photographs("train")
    validation = load_digits("validation")

    def inks(random: np.random.Generator, shapes: Digits, indices: np.ndarray) -> Tensor:
        found = make_batch(random, shapes, indices, photographs)[1]
        return torch.from_numpy(found).float() / 255

    def teacher_loss(step: int) -> Tensor:
        random = np.random.default_rng((SEED, step, 1))
        indices = random.integers(len(digits.labels), size=2 * BATCH)
        ink, labels = inks(random, digits, indices), torch.from_numpy(digits.labels[indices])
        losses = [F.cross_entropy(one(ink)[0], labels) for one in teacher.teachers]
        return torch.stack(losses).sum()

    def evaluate_teacher() -> str:
        indices = np.tile(np.arange(len(validation.labels)), 3)
        with torch.inference_mode():
            answer, _ = teacher(inks(np.random.default_rng(7), validation, indices))
        return f"validation top-1 {float((answer.argmax(-1).numpy() == validation.labels[indices]).mean()):.3f}"

    def step_loss(step: int) -> Tensor:
        random = np.random.default_rng((SEED, step))
        shapes = vary(random, digits, random.integers(len(digits.labels), size=BATCH // 2))
        pictures, covered = make_batch(random, shapes, np.arange(BATCH // 2), photographs)
        # Each is shown a second time in other colours: its channels permuted and inverted.
        images = to_input(np.concatenate((pictures, 255 - pictures[..., random.permutation(3)])))
        ink = torch.from_numpy(covered).float() / 255
        with torch.no_grad():
            answer, seen = teacher.eval()(ink)
        return trainee.loss(images, ink.repeat(2, 1, 1), answer.repeat(2, 1), seen.repeat(2, 1, 1))

    def evaluate() -> str:
        return f"validation top-1 {top1(model, 'validation', repeats=3):.3f}"

    def parameters(module: nn.Module) -> list[dict[str, object]]:
        return [{"params": list(module.parameters())}]

    name = f"{NAME}-teacher"
    fit(name, teacher, parameters(teacher), TEACHER_SCHEDULE, teacher_loss, evaluate_teacher, folder)
    fit(
        NAME,
        trainee,
        parameters(trainee),
        replace(schedule, steps=steps or schedule.steps),
        step_loss,
        evaluate,
        folder,
    )
    model.eval()
    save_native(out, model, classification_spec(PREPROCESS, LABELS))
    return model
