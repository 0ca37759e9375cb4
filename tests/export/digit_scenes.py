"""Scenes of digits as COCO's files: -m tests.export.digit_scenes FOLDER, with 300 of training and 300 of test in it."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ferryman_models.zoo.detr_digits import held_out_scenes
from ferryman_models.zoo.scenes import Scene


def save_scenes(folder: Path, scenes: Sequence[Scene]) -> int:
    """PNG files and `digits.json`, whose categories are numbered otherwise than the classes; how many boxes."""
    document: dict[str, list[Any]] = {"images": [], "annotations": []}
    document["categories"] = [{"id": 100 - digit, "name": str(digit)} for digit in range(10)]
    folder.mkdir(parents=True)
    for number, scene in enumerate(scenes):
        Image.fromarray(scene.image).save(folder / f"{number:03}.png")
        height, width = scene.image.shape[:2]
        document["images"].append({"id": number, "file_name": f"{number:03}.png", "width": width, "height": height})
        for (x1, y1, x2, y2), digit in zip(scene.boxes.tolist(), scene.labels.tolist(), strict=True):
            facts = {"id": len(document["annotations"]), "image_id": number, "category_id": 100 - digit}
            document["annotations"].append({**facts, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    (folder / "digits.json").write_text(json.dumps(document), encoding="utf-8")
    return len(document["annotations"])


if __name__ == "__main__":
    place = Path(sys.argv[1])
    save_scenes(place / "train", held_out_scenes("train", 300, seed=11))
    save_scenes(place / "test", held_out_scenes("test", 300))
