"""Answers drawn onto pictures so that a person can read them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from ferryman.attention import Attention
from ferryman.heat import lay_heat
from ferryman.results import Classification, Detection, Embedding, Segmentation

READABLE_SIDE = 640  # a smaller picture is enlarged to this before anything is written on it
MOST_PANELS = 6  # objects whose attention is drawn

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


@dataclass(frozen=True)
class Components:
    """The three directions in which a picture's patches differ most, and the range that becomes 0 to 255.

    mean: (dim,); axes: (dim, 3); low, high: (3,); all float64
    """

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, patches: NDArray[np.float32]) -> "Components":
        """patches: (rows, columns, dim)"""
        flat = patches.reshape(-1, patches.shape[-1]).astype(np.float64)
        mean = flat.mean(axis=0)
        axes = np.linalg.svd(flat - mean, full_matrices=False)[2][:3].T
        # A picture of fewer than three patches has fewer directions.
        axes = np.pad(axes, ((0, 0), (0, 3 - axes.shape[1])))
        projected = (flat - mean) @ axes
        return cls(mean, axes, projected.min(axis=0), projected.max(axis=0))


def draw_embedding(
    image: Image.Image, patches: NDArray[np.float32], components: Components | None = None
) -> Image.Image:
    """The picture, and beside it its patches in the colours of their three principal components.

    image: what the patches cover; patches: (rows, columns, dim) float32
    components: by default the patches' own; give the same ones to compare two answers
    """
    canvas, _ = _enlarge(image)
    found = components or Components.of(patches)
    projected = (patches.astype(np.float64) - found.mean) @ found.axes
    levels = (projected - found.low) / np.maximum(found.high - found.low, 1e-12) * 255
    colours = Image.fromarray(np.clip(np.round(levels), 0, 255).astype(np.uint8))
    both = Image.new("RGB", (2 * canvas.width, canvas.height))
    both.paste(canvas)
    both.paste(colours.resize(canvas.size, Image.Resampling.NEAREST), (canvas.width, 0))
    return both


def draw_classification(image: Image.Image, answer: Classification) -> Image.Image:
    """A copy with the best classes and their probabilities at its foot."""
    canvas, _ = _enlarge(image)
    tag = _make_tag(", ".join(f"{p.label} {p.score:.2f}" for p in answer.predictions[:3]), canvas.size)
    canvas = _make_room(canvas, [tag])
    _write(canvas, 0, canvas.height, tag, _COLOURS[4])
    return canvas


def draw_segmentation(image: Image.Image, answer: Segmentation) -> Image.Image:
    """A copy with every segment under a colour of its own, a line round it, and its label and score on it.

    image: of the size that the masks have. A small picture is enlarged until the text has room.
    """
    canvas, factor = _enlarge(image)
    line = max(1, max(canvas.size) // 500)
    pixels = np.asarray(canvas).astype(np.float32)
    places: list[tuple[float, float]] = []
    for number, segment in enumerate(answer.segments):
        # Each a little darker when the palette begins anew.
        colour = np.array(ImageColor.getrgb(_COLOURS[number % len(_COLOURS)])) * 0.75 ** (number // len(_COLOURS))
        inside = segment.mask.to_array()
        places.append(_middle(inside))
        inside = inside.repeat(factor, axis=0).repeat(factor, axis=1)
        pixels[inside] = 0.5 * pixels[inside] + 0.5 * colour
        pixels[inside & ~_shrink(inside, line)] = colour
    drawn = Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))
    tags = [_make_tag(f"{segment.label} {segment.score:.2f}", canvas.size) for segment in answer.segments]
    drawn = _make_room(drawn, tags)
    # The best stands on top.
    for number, (tag, (x, y)) in reversed(list(enumerate(zip(tags, places, strict=True)))):
        width, height = tag.size
        _write(drawn, x * factor - width / 2, y * factor + height / 2, tag, _COLOURS[number % len(_COLOURS)])
    return drawn


def _middle(inside: NDArray[np.bool_]) -> tuple[float, float]:
    """(x, y) of the pixel of a mask that is about the farthest from its edge; inside: not empty."""
    step = 1 + max(inside.shape) // 128  # so fine is enough for a tag
    deep = inside[::step, ::step]
    if not deep.any():
        deep, step = inside, 1
    while (deeper := _shrink(deep, 1)).any():
        deep = deeper
    y, x = np.nonzero(deep)
    nearest = ((y - y.mean()) ** 2 + (x - x.mean()) ** 2).argmin()
    return float(x[nearest]) * step + 0.5, float(y[nearest]) * step + 0.5


def _shrink(inside: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """The mask without what is that near to its edge; a picture's edge is one too."""
    for _ in range(pixels):
        padded = np.pad(inside, 1)
        inside = inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside


def draw_looked_classification(image: Image.Image, answer: Classification) -> Image.Image:
    """The picture with the best classes at its foot, and beside it where the model looked.

    image: of the answer's size. Raises ValueError for an answer without attention.
    """
    panel = _fit_panel(image)
    return _draw_beside(draw_classification(panel, answer), panel, image.size, answer.attention)


def draw_looked_embedding(image: Image.Image, answer: Embedding) -> Image.Image:
    """The picture, and beside it where the class token looked.

    image: of the answer's size. Raises ValueError for an answer without attention.
    """
    panel = _fit_panel(image)
    return _draw_beside(panel, panel, image.size, answer.attention)


def _draw_beside(
    first: Image.Image, panel: Image.Image, picture: tuple[int, int], attention: Attention | None
) -> Image.Image:
    """The first, and the panel under the weights."""
    if attention is None:
        raise ValueError("the answer has no attention: it was not asked for")
    return _tile([first, _draw_attention(panel, picture, attention)], 2)


def draw_looked_detections(image: Image.Image, detections: Sequence[Detection]) -> Image.Image:
    """A panel for each of the best objects with its box and where its query looked, best first.

    image: of the size that the boxes go by. Raises ValueError for objects without attention.
    """
    best = sorted(detections, key=lambda d: -d.score)[:MOST_PANELS]
    panel = _fit_panel(image)
    panels: list[Image.Image] = []
    for detection in best:
        if detection.attention is None:
            raise ValueError("the objects have no attention: it was not asked for")
        panels.append(_draw_attention(panel, image.size, detection.attention, detection))
    if not panels:
        tag = _make_tag("nothing found", panel.size)
        panel = _make_room(panel, [tag])
        _write(panel, 0, 0, tag, _COLOURS[4])
        panels.append(panel)
    return _tile(panels, math.ceil(math.sqrt(len(panels))))


def _fit_panel(image: Image.Image) -> Image.Image:
    """A readable RGB copy that is small enough to stand beside others."""
    panel, _ = _enlarge(image)
    if max(image.size) > READABLE_SIDE:
        panel.thumbnail((READABLE_SIDE, READABLE_SIDE), Image.Resampling.LANCZOS)
    return panel


def _draw_attention(
    panel: Image.Image, picture: tuple[int, int], attention: Attention, found: Detection | None = None
) -> Image.Image:
    """The panel under the weights, the largest named at its foot, with the box and label of what was found.

    picture: (width, height) of the original, which the boxes go by
    """
    scales = (panel.width / picture[0], panel.height / picture[1]) * 2
    panel = lay_heat(panel, attention, picture)
    share = _make_tag(f"brightest cell {attention.grid.max():.1%}", panel.size)
    tags = [share] if found is None else [share, _make_tag(f"{found.label} {found.score:.2f}", panel.size)]
    panel = _make_room(panel, tags)
    _write(panel, 0, panel.height, share, "#000000")
    if found is not None:
        x1, y1, x2, y2 = (side * scale for side, scale in zip(found.box_xyxy, scales, strict=True))
        corners = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
        # No heat is blue.
        ImageDraw.Draw(panel).rectangle(corners, outline=_COLOURS[1], width=3)
        _write(panel, x1, y1, tags[1], _COLOURS[1])
    return panel


def _tile(panels: Sequence[Image.Image], columns: int) -> Image.Image:
    """Panels row by row on white, each in a cell of the largest's size."""
    gap = 8
    width, height = (max(panel.size[side] for panel in panels) + gap for side in (0, 1))
    tiled = Image.new("RGB", (columns * width - gap, -(-len(panels) // columns) * height - gap), "white")
    for number, panel in enumerate(panels):
        tiled.paste(panel, (number % columns * width, number // columns * height))
    return tiled
