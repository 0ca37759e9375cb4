"""Pictures of digits to calibrate vit-digits with: -m tests.export.digit_pictures FOLDER, which must not exist."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ferryman_models.zoo.digits import load_digits, load_photographs
from ferryman_models.zoo.scenes import make_digit_picture

COUNT = 100


def save_digit_pictures(folder: Path) -> None:
    """Of the training split, over photographs; the same ones every time."""
    folder.mkdir(parents=True)
    digits, photographs = load_digits("train"), load_photographs("train")
    random = np.random.default_rng(4)
    for number in range(COUNT):
        picture, _ = make_digit_picture(random, digits, number, photographs, side=36)
        Image.fromarray(picture).save(folder / f"{number:03}.png")


if __name__ == "__main__":
    save_digit_pictures(Path(sys.argv[1]))
