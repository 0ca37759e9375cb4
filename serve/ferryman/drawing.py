"""Answers drawn onto pictures so that a person can read them."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ferryman.results import Classification, Detection

READABLE_SIDE = 640  # a smaller picture is enlarged to this before anything is written on it

# Okabe and Ito's palette: told apart by colour-blind readers too.
_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")


def _enlarge(image: Image.Image) -> tuple[Image.Image, int]:
    """An RGB copy, enlarged by a whole factor when it is small, and the factor."""
    factor = max(1, -(-READABLE_SIDE // max(image.size)))
    size = (image.width * factor, image.height * factor)
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS), factor


def _write(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, colour: str, limit: tuple[int, int]) -> None:
    """Text on a filled tag whose lower left corner is at (x, y), moved inside the picture where it would leave it."""
    font = ImageFont.load_default(size=max(14, max(limit) // 40))
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 8, bottom - top + 6
    x = min(max(0, x), max(0, limit[0] - width))
    y = min(max(height, y), limit[1])
    draw.rectangle((x, y - height, x + width, y), fill=colour)
    red, green, blue = Image.new("RGB", (1, 1), colour).getpixel((0, 0))  # type: ignore[misc]
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    draw.text((x + 4 - left, y - height + 3 - top), text, fill="black" if bright else "white", font=font)


def draw_detections(image: Image.Image, detections: Sequence[Detection], colour: str | None = None) -> Image.Image:
    """A copy with every box and its label and score; boxes in pixels of `image`.

    colour: of all boxes, by default one a class
    """
    canvas, factor = _enlarge(image)
    draw = ImageDraw.Draw(canvas)
    line = max(2, max(canvas.size) // 300)
    # The best stands on top.
    for detection in sorted(detections, key=lambda d: d.score):
        shade = colour or _COLOURS[detection.class_id % len(_COLOURS)]
        x1, y1, x2, y2 = (side * factor for side in detection.box_xyxy)
        draw.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=shade, width=line)
        _write(draw, x1, y1, f"{detection.label} {detection.score:.2f}", shade, canvas.size)
    return canvas


def draw_classification(image: Image.Image, answer: Classification) -> Image.Image:
    """A copy with the best classes and their probabilities at its foot."""
    canvas, _ = _enlarge(image)
    draw = ImageDraw.Draw(canvas)
    text = "   ".join(f"{p.label} {p.score:.2f}" for p in answer.predictions[:3])
    _write(draw, 0, canvas.height, text, _COLOURS[4], canvas.size)
    return canvas
