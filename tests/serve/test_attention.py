"""Attention maps: where they lie on the original, how they are drawn, and who is refused them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferryman import convert
from ferryman.attention import Attention
from ferryman.drawing import MOST_PANELS, draw_looked_classification, draw_looked_detections
from ferryman.errors import EngineError, FerrymanError, UsageError
from ferryman.heat import colour_levels
from ferryman.predictor import Predictor
from ferryman.preprocess import fit_image
from ferryman.results import (
    Classification,
    Detection,
    Detections,
    Outputs,
    Prediction,
    classification_from_outputs,
    detections_from_outputs,
)
from ferryman.specs import PreprocessSpec, add_attention
from ferryman.v1 import vision_pb2 as pb

from .both import Both
from .toy import SPECS, make_picture

GRID = (np.arange(6).reshape(2, 3) / 16).astype(np.float32)


# Of a picture 200 wide and 100 high on a canvas of 60 by 60: what the grid over the whole canvas covers.
@pytest.mark.parametrize(
    ("spec", "covers"),
    [
        (PreprocessSpec(size=(60, 60), fit="stretch"), (0, 0, 200, 100)),
        (PreprocessSpec(size=(60, 60), fit="pad"), (0, 0, 200, 200)),  # the lower half of the canvas is empty
        (PreprocessSpec(size=(60, 60), fit="crop", shortest_edge=60), (50, 0, 150, 100)),
        (PreprocessSpec(size=(60, 60), fit="crop", shortest_edge=80), (62.5, 12.5, 137.5, 87.5)),
    ],
    ids=["stretch", "pad", "crop", "crop with a margin"],
)
def test_what_a_grid_covers(spec: PreprocessSpec, covers: tuple[float, ...]) -> None:
    canvas, geometry = fit_image(Image.new("RGB", (200, 100)), spec)
    assert canvas.shape[:2] == geometry.canvas_size
    found = Attention.of(GRID, geometry)
    assert found.covers_xyxy == pytest.approx(covers)
    assert found.grid.dtype == np.float32


def test_spread_weights_lie_where_the_cells_do() -> None:
    grid = np.zeros((4, 4), dtype=np.float32)
    grid[1, 3] = 0.5  # the centre is at (87.5, 37.5) of 100
    beyond = Attention(grid, (0, 0, 100, 100)).spread((400, 200), (100, 50))
    assert beyond.shape == (200, 400)
    assert np.unravel_index(beyond.argmax(), beyond.shape)[0] in range(148, 152)  # the picture ends at 50 of 100
    assert beyond[150, 350:].min() == pytest.approx(0.5, abs=0.01)
    inside = Attention(grid, (25, 0, 75, 50)).spread((100, 50), (100, 50))
    assert np.isnan(inside[:, :25]).all()
    assert np.isnan(inside[:, 75:]).all()
    assert not np.isnan(inside[:, 25:75]).any()
    one = Attention(np.full((1, 1), 0.25, dtype=np.float32), (0, 0, 1, 1)).spread((3, 2), (1, 1))
    assert (one == 0.25).all()


def test_brighter_is_more() -> None:
    """CIE lightness grows evenly with the level, whatever the hue."""
    scaled = colour_levels(np.linspace(0, 1, 33)) / 255
    linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(luminance > 216 / 24389, 116 * np.cbrt(luminance) - 16, luminance * 24389 / 27)
    steps = np.diff(lightness)
    assert lightness[0] < 6
    assert lightness[-1] > 96
    assert steps.min() > 1
    assert steps.max() < 2.5 * np.median(steps)


def _outputs(*shape: int) -> Outputs:
    attention = np.random.default_rng(0).random((2, *shape)).astype(np.float32) / 12
    return {
        "probabilities": np.array([[0.1, 0.2, 0.3, 0.4]] * 2, dtype=np.float32),
        "scores": np.array([[0.2, 0.9, 0.6]] * 2, dtype=np.float32),
        "labels": np.array([[0, 1, 2]] * 2, dtype=np.int64),
        "boxes": np.array([[[0, 0, 0.5, 0.5]] * 3] * 2, dtype=np.float32),
        "attention": attention,
    }


def test_each_answer_gets_its_own_map_when_asked() -> None:
    canvas, geometry = fit_image(Image.new("RGB", (64, 32)), SPECS["toy-detector"].preprocess)
    assert canvas.any() is not None
    classifier, detector = add_attention(SPECS["toy-classifier"], (2, 3)), add_attention(SPECS["toy-detector"], (2, 3))
    outputs = _outputs(2, 3)
    answer = classification_from_outputs(outputs, 1, geometry, classifier, explain=True)
    assert answer.attention is not None
    np.testing.assert_array_equal(answer.attention.grid, outputs["attention"][1])
    assert classification_from_outputs(outputs, 1, geometry, classifier).attention is None
    outputs = _outputs(3, 2, 3)
    found = detections_from_outputs(outputs, 0, geometry, detector, 0.5, explain=True).detections
    assert [detection.class_id for detection in found] == [1, 2]
    for detection, query in zip(found, (1, 2), strict=True):
        assert detection.attention is not None
        np.testing.assert_array_equal(detection.attention.grid, outputs["attention"][0, query])
    outputs["attention"][0, 0] = np.nan
    with pytest.raises(EngineError, match="attention maps for this image are NaN"):
        detections_from_outputs(outputs, 0, geometry, detector, 0.5, explain=True)


LOOKED = Attention(GRID, (0.0, -1.5, 20.0, 30.5))


def test_maps_survive_the_wire() -> None:
    classification = Classification((64, 48), (32, 32), (Prediction("cat", 3, 0.5),), LOOKED)
    message = convert.message_from_classification(classification)
    found = convert.classification_from_message(pb.Classification.FromString(message.SerializeToString()))
    assert found == classification
    assert found.attention is not None
    np.testing.assert_array_equal(found.attention.grid, GRID)
    detections = Detections((1, 2), (3, 4), (Detection("dog", 7, 1.0, (0.0, 0.5, 1.0, 2.0), LOOKED),))
    message = convert.message_from_detections(detections)
    assert convert.detections_from_message(message) == detections
    del message.detections[0].attention.values[0]
    with pytest.raises(FerrymanError, match="the server's answer can't be read"):
        convert.detections_from_message(message)
    message.detections[0].attention.Clear()
    with pytest.raises(FerrymanError, match="an attention map has rows and columns"):
        convert.detections_from_message(message)


@pytest.mark.parametrize("size", [(1, 1), (40, 30), (2000, 1500), (4000, 10), (1, 3000)], ids=str)
def test_heat_maps_of_any_picture(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (90, 90, 90))
    looked = Attention(GRID, (0.0, 0.0, size[0] * 1.0, size[1] * 2.0))
    answer = Classification(size, size, (Prediction("x", 0, 1.0),), looked)
    assert draw_looked_classification(picture, answer).width >= 640 // 3
    found = [Detection("x", 0, score / 10, (0, 0, *size), looked) for score in range(8)]
    for count, (columns, rows) in {0: (1, 1), 2: (2, 1), 8: (3, 2)}.items():
        drawn = draw_looked_detections(picture, found[:count])
        panel = draw_looked_detections(picture, found[:1] if count else [])
        assert drawn.size == (columns * (panel.width + 8) - 8, rows * (panel.height + 8) - 8)
        assert max(panel.size) < 1300
    assert MOST_PANELS == 6
    with pytest.raises(ValueError, match="it was not asked for"):
        draw_looked_classification(picture, replace(answer, attention=None))
    with pytest.raises(ValueError, match="it was not asked for"):
        draw_looked_detections(picture, [replace(found[0], attention=None)])


def test_models_without_maps_say_how_to_get_them(toy_repository: Path, toy_server: str) -> None:
    picture, message = make_picture((1, 2, 3)), "was exported without attention maps; export it with `ferryman export"
    with Predictor.open(toy_repository / "toy-classifier") as predictor, pytest.raises(UsageError, match=message):
        predictor.classify([picture], explain=True)
    with Predictor.open(toy_repository / "toy-detector") as predictor, pytest.raises(UsageError, match=message):
        predictor.detect([picture], explain=True)
    both = Both(toy_server)
    for ask, model in ((both.classify, "toy-classifier"), (both.detect, "toy-detector")):
        with pytest.raises(UsageError, match=message):
            ask([picture], model=model, explain=True)
