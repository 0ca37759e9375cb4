"""Drawn answers can be read, on pictures of any size and shape."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ferryman.drawing import draw_classification, draw_detections
from ferryman.results import Classification, Detection, Prediction

GREY = (90, 90, 90)
SIZES = [(1, 1), (3, 2), (40, 30), (640, 480), (1500, 1000), (4000, 10), (10, 4000), (1, 3000)]
TAG = (0, 114, 178)  # of draw_classification


def _detection(label: str, score: float, box: tuple[float, float, float, float], class_id: int = 0) -> Detection:
    return Detection(label=label, class_id=class_id, score=score, box_xyxy=box)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...], tuple[int, int]]]:
    """Each text that was written, the place of its ink, and the picture's size."""
    found: list[tuple[str, tuple[int, ...], tuple[int, int]]] = []
    original = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, fill: str, font: object) -> None:
        left, top, right, bottom = self.textbbox(xy, text, font=font)  # type: ignore[arg-type]
        found.append((text, (int(left), int(top), int(right), int(bottom)), self.im.size))
        original(self, xy, text, fill=fill, font=font)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return found


def _assert_readable(written: list[tuple[str, tuple[int, ...], tuple[int, int]]]) -> None:
    for text, (left, top, right, bottom), (width, height) in written:
        assert 0 <= left < right <= width, text
        assert 0 <= top < bottom <= height, text
        assert bottom - top >= 8, text


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_tag_lies_inside(
    size: tuple[int, int], written: list[tuple[str, tuple[int, ...], tuple[int, int]]]
) -> None:
    width, height = size
    corners = [(0, 0, width / 2, height / 2), (width / 2, height / 2, width, height), (width, height, width, height)]
    detections = [_detection(f"object {number}", 0.5, box, number) for number, box in enumerate(corners)]
    drawn = draw_detections(Image.new("RGB", size, GREY), detections)
    assert drawn.mode == "RGB"
    assert drawn.width >= width
    assert drawn.height >= height
    assert drawn.width * drawn.height < 3e6
    assert [text for text, _, _ in written] == ["object 0 0.50", "object 1 0.50", "object 2 0.50"]
    _assert_readable(written)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_classes_at_the_foot(
    size: tuple[int, int], written: list[tuple[str, tuple[int, ...], tuple[int, int]]]
) -> None:
    predictions = tuple(Prediction(label, number, 0.25) for number, label in enumerate("abcd"))
    drawn = draw_classification(
        Image.new("RGB", size, GREY), Classification(size=size, canvas=size, predictions=predictions)
    )
    assert [text for text, _, _ in written] == ["a 0.25, b 0.25, c 0.25"]
    _assert_readable(written)
    assert drawn.getpixel((0, drawn.height - 1)) == TAG
    assert _colours(drawn) >= 3  # picture, tag, letters


def _colours(image: Image.Image) -> int:
    return len(image.getcolors(maxcolors=1 << 24) or ())


@pytest.mark.parametrize("scale", [1, 10], ids=["small", "large"])
def test_boxes_lie_where_they_were_found(scale: int) -> None:
    """A small picture is enlarged by a whole factor, and its boxes with it."""
    size = (100 * scale, 80 * scale)
    box = (20.0 * scale, 30.0 * scale, 60.0 * scale, 50.0 * scale)
    image = Image.new("RGB", size, GREY)
    drawn = draw_detections(image, [_detection("x", 0.5, box)], colour="#ff0000")
    factor = drawn.width // size[0]
    assert drawn.size == (size[0] * factor, size[1] * factor)
    assert drawn.width >= 640
    red = (np.asarray(drawn) == (255, 0, 0)).all(axis=-1)
    rows, columns = np.nonzero(red)
    assert (columns.min(), columns.max()) == (box[0] * factor, box[2] * factor)
    assert rows.max() == box[3] * factor
    assert red[int(box[3] * factor), int(box[0] * factor) : int(box[2] * factor)].all()
    assert not red[int(45 * scale * factor), int(40 * scale * factor)]  # the inside stays visible
    assert (np.asarray(image) == GREY).all()  # a copy was drawn on


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("café 日本 ✈ 🦜", "café 日本 ✈ 🦜 0.50"),
        ("two\nlines\tand a tab", "two lines and a tab 0.50"),
        ("x" * 500, "x" * 80),
        ("", "0.50"),
        ("[bold]:cat:", "[bold]:cat: 0.50"),
    ],
    ids=["unicode", "line break", "endless", "empty", "markup"],
)
def test_labels_of_all_kinds(
    label: str, text: str, written: list[tuple[str, tuple[int, ...], tuple[int, int]]]
) -> None:
    draw_detections(Image.new("RGB", (50, 50)), [_detection(label, 0.5, (0, 0, 50, 50))])
    assert [text for text, _, _ in written] == [text]
    _assert_readable(written)


def test_the_best_is_on_top() -> None:
    box = (10.0, 60.0, 90.0, 90.0)
    found = [_detection("a", 0.9, box, class_id=0), _detection("b", 0.4, box, class_id=1)]
    for detections in (found, found[::-1]):
        drawn = draw_detections(Image.new("RGB", (100, 100)), detections)
        assert drawn.getpixel((drawn.width * 89 // 100, drawn.height * 60 // 100)) == (230, 159, 0)


def test_nothing_found_draws_nothing() -> None:
    drawn = draw_detections(Image.new("RGB", (700, 700), GREY), [])
    assert _colours(drawn) == 1
    assert _colours(draw_classification(drawn, Classification((700, 700), (700, 700), ()))) <= 2


def test_boxes_outside_and_turned() -> None:
    """Boxes of a model that is wrong are drawn as well as may be, never an error."""
    boxes = [(-50.0, -50.0, 900.0, 900.0), (90.0, 90.0, 10.0, 10.0), (500.0, 500.0, 600.0, 600.0)]
    draw_detections(Image.new("L", (100, 100)), [_detection("x", 0.5, box) for box in boxes])
