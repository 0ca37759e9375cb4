"""Answers drawn onto pictures so that a person can read them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageColor, ImageDraw, ImageFont

from ferryman.results import Classification, Detection

READABLE_SIDE = 640  # a smaller picture is enlarged to this before anything is written on it

# Okabe and Ito's palette: told apart by colour-blind readers too.
_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")


def _enlarge(image: Image.Image) -> tuple[Image.Image, int]:
    """An RGB copy, enlarged by a whole factor when it is small, and the factor."""
    factor = max(1, -(-READABLE_SIDE // max(image.size)))
    size = (image.width * factor, image.height * factor)
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS), factor


@dataclass(frozen=True)
class _Tag:
    """One line of text. offset: of its ink from where it is drawn; size: (width, height) with the margin round it."""

    text: str
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    offset: tuple[float, float]
    size: tuple[int, int]


def _make_tag(text: str, picture: tuple[int, int]) -> _Tag:
    """text: becomes one line of at most 80 characters; picture: (width, height) that the font's size goes by"""
    text = " ".join(text.split())[:80]
    font = ImageFont.load_default(size=max(14, min(max(picture) // 40, min(picture) // 4)))
    left, top, right, bottom = font.getbbox(text)
    return _Tag(text, font, (left, top), (math.ceil(right - left) + 8, math.ceil(bottom - top) + 6))


def _make_room(image: Image.Image, tags: Sequence[_Tag]) -> Image.Image:
    """The picture, with white at its right and foot where it is too small to hold every tag."""
    width, height = (max(image.size[side], *(tag.size[side] for tag in tags), 0) for side in (0, 1))
    if (width, height) == image.size:
        return image
    roomy = Image.new("RGB", (width, height), "white")
    roomy.paste(image)
    return roomy


def _write(canvas: Image.Image, x: float, y: float, tag: _Tag, colour: str) -> None:
    """A filled tag whose lower left corner is at (x, y), moved inside the picture where it would leave it."""
    draw = ImageDraw.Draw(canvas)
    width, height = tag.size
    x = min(max(0, x), canvas.width - width)
    y = min(max(height, y), canvas.height)
    draw.rectangle((x, y - height, x + width - 1, y - 1), fill=colour)
    red, green, blue = ImageColor.getrgb(colour)[:3]
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    left, top = tag.offset
    draw.text((x + 4 - left, y - height + 3 - top), tag.text, fill="black" if bright else "white", font=tag.font)


def draw_detections(image: Image.Image, detections: Sequence[Detection], colour: str | None = None) -> Image.Image:
    """A copy with every box and its label and score; boxes in pixels of `image`.

    A small picture is enlarged, and a narrow one gets white at its right or foot, until the text has room.
    colour: of all boxes, by default one a class
    """
    canvas, factor = _enlarge(image)
    line = max(2, max(canvas.size) // 300)
    # The best stands on top.
    ordered = sorted(detections, key=lambda d: d.score)
    tags = [_make_tag(f"{detection.label} {detection.score:.2f}", canvas.size) for detection in ordered]
    canvas = _make_room(canvas, tags)
    draw = ImageDraw.Draw(canvas)
    for detection, tag in zip(ordered, tags, strict=True):
        shade = colour or _COLOURS[detection.class_id % len(_COLOURS)]
        x1, y1, x2, y2 = (side * factor for side in detection.box_xyxy)
        draw.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=shade, width=line)
        _write(canvas, x1, y1, tag, shade)
    return canvas


def draw_classification(image: Image.Image, answer: Classification) -> Image.Image:
    """A copy with the best classes and their probabilities at its foot."""
    canvas, _ = _enlarge(image)
    tag = _make_tag(", ".join(f"{p.label} {p.score:.2f}" for p in answer.predictions[:3]), canvas.size)
    canvas = _make_room(canvas, [tag])
    _write(canvas, 0, canvas.height, tag, _COLOURS[4])
    return canvas
