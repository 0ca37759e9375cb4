"""Calibration pictures: that no verdict is measured on one of them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferryman.errors import UsageError
from ferryman.parity import TOLERANCES
from ferryman_export.pipeline import Crossing, ExportRequest, prepare
from ferryman_export.sources import SourceOptions, open_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """30 pictures of noise."""
    (place := tmp_path / "pictures").mkdir()
    random = np.random.default_rng(6)
    for number in range(30):
        Image.fromarray(random.integers(0, 256, (36, 36, 3), np.uint8)).save(place / f"{number:02}.png")
    return place


def prepare_digits(samples: Path | None, calibration: Path) -> Crossing:
    checkpoint = open_source("vit-digits", SourceOptions())
    request = ExportRequest("vit-digits", calibration.parent / "r", samples=samples, calibration=calibration)
    return prepare(checkpoint, checkpoint.spec, request, TOLERANCES["fp32"], lambda stage, done, total: None)


def test_no_verdict_is_measured_on_what_calibration_saw(folder: Path) -> None:
    """One folder for both, and one of its pictures twice under other names and in another format."""
    shutil.copy(folder / "03.png", folder / "copy.png")
    Image.open(folder / "03.png").save(folder / "again.bmp")
    crossing = prepare_digits(folder, folder)
    found = crossing.calibration
    assert found is not None
    seen, held_out, golden = (
        [image.tobytes() for image in inputs["image"]]
        for inputs in (found.seen.inputs, found.held_out.inputs, crossing.golden.inputs)
    )
    assert len(seen) > len(held_out) > 0
    assert len(set(seen + held_out)) == len(seen + held_out) == found.facts.pictures
    assert set(golden).isdisjoint(seen + held_out)
    samples = len(set(golden))
    assert found.facts.pictures == 30 - samples
    assert found.facts.left_out == 2 + samples
    assert found.facts.notes()[0] == f"{2 + samples} calibration pictures are left out: golden samples, or there twice"


def test_too_few_that_are_left(folder: Path) -> None:
    for number in range(20):
        (folder / f"{number:02}.png").unlink()
    for number in range(20):
        shutil.copy(folder / "29.png", folder / f"copy-{number}.png")
    with pytest.raises(UsageError, match="holds 10 pictures that are no golden samples and differ, too few"):
        prepare_digits(None, folder)
