"""From a picture's bytes to the graph's uint8 canvas, with the way back for boxes. The only implementation."""

import io
import threading
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ferryman.errors import ImageError
from ferryman.specs import PreprocessSpec

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MAX_PIXELS = 64_000_000  # 64 megapixels: 256 MB as Pillow holds RGB, above any camera read at full size by a detector
# Of a JPEG: a progressive one has some ten. Each goes over all blocks of the picture, though it be a few bytes.
MAX_SCANS = 100
_STRIP_PIXELS = 1_000_000  # of a picture that is brought to RGB: what that needs beside it stays small

_KERNELS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Geometry:
    """Where a canvas's pixels come from.

    original_size: (height, width) of the upright picture in pixels
    valid_size: (height, width) of the canvas's real pixels, from its top left
    region: (left, top, right, bottom) of the picture that the valid area shows, in the picture's pixels
    canvas_size: (height, width) of the canvas, which may be larger than the valid area
    """

    original_size: tuple[int, int]
    valid_size: tuple[int, int]
    region: tuple[float, float, float, float]
    canvas_size: tuple[int, int]

    def boxes_to_original(self, boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """boxes_xyxy: (count, 4) in [0, 1] of the valid area. Returns (count, 4) in pixels, clipped to the picture."""
        left, top, right, bottom = self.region
        scale = np.array([right - left, bottom - top] * 2, dtype=np.float32)
        boxes = boxes_xyxy * scale + np.array([left, top] * 2, dtype=np.float32)
        height, width = self.original_size
        return np.clip(boxes, 0, np.array([width, height] * 2, dtype=np.float32))


class _NoWarnings:
    """`warnings.catch_warnings` for several threads at once: the first one in silences, the last one out restores.

    Each for itself would restore, in another order than they entered, the filters that another one had set.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._silence: AbstractContextManager[object] = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._silence = warnings.catch_warnings()
                self._silence.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._silence.__exit__(None, None, None)


_NO_WARNINGS = _NoWarnings()


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An upright RGB picture from the bytes of a JPEG, PNG, WebP or BMP file.

    EXIF orientation is applied; transparency is laid on white; 16-bit grey is scaled to 8 bits; the first
    frame of an animation is taken. Size is checked before any pixel is decoded.
    Raises ImageError for anything else, for truncated data, for more than `max_pixels` pixels and for a JPEG of more
    than `MAX_SCANS` scans.
    """
    if not data:
        raise ImageError("the image is empty (0 bytes)")
    try:
        # Pillow warns about damage, and where its own limit is passed; ours, just below, refuses.
        with _NO_WARNINGS, Image.open(io.BytesIO(data), formats=FORMATS) as image:
            pixels = image.width * image.height
            if pixels > max_pixels:
                raise ImageError(
                    f"the image has {image.width}x{image.height} = {pixels:,} pixels, more than the limit of "
                    f"{max_pixels:,}; shrink it first"
                )
            # In what is coded between the markers no byte of 255 is followed by another one than 0 or a restart.
            if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MAX_SCANS:
                raise ImageError(f"the JPEG has more than {MAX_SCANS} scans; save it anew")
            ImageOps.exif_transpose(image, in_place=True)  # loads it
            return _to_rgb(image)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image has too many pixels, the limit is {max_pixels:,}; shrink it first") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"the {len(data):,} bytes are not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"
        ) from error
    # On damaged files Pillow's decoders raise whatever they stumble over.
    except Exception as error:
        raise ImageError(f"the image is damaged: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rows = max(1, _STRIP_PIXELS // image.width)
    if rows >= image.height:
        return _strip_to_rgb(image)
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(image.height, top + rows)))
        whole.paste(_strip_to_rgb(strip), (0, top))
    return whole


def _strip_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        # Pillow's own conversion clips 16-bit values at 255.
        levels = np.asarray(image).astype(np.uint32)
        transparent = image.info.get("transparency")  # one of the levels
        image = Image.fromarray(((np.minimum(levels, 65535) + 128) // 257).astype(np.uint8))
        if isinstance(transparent, int):
            image.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies what is RGB already


def fit_image(image: Image.Image, spec: PreprocessSpec) -> tuple[NDArray[np.uint8], Geometry]:
    """An RGB picture on the canvas that `spec` describes.

    Returns the canvas (height, width, 3) uint8, and its geometry.
    """
    canvas_height, canvas_width = spec.size
    kernel = _KERNELS[spec.interpolation]
    width, height = image.size
    if spec.fit == "stretch":
        to_height, to_width = spec.stretch_to or spec.size
        stretched = _resize(image, (to_width, to_height), kernel)
        left, top = _halve(to_width - canvas_width, spec), _halve(to_height - canvas_height, spec)
        box = (left, top, left + canvas_width, top + canvas_height)
        x_scale, y_scale = width / to_width, height / to_height
        region = (box[0] * x_scale, box[1] * y_scale, box[2] * x_scale, box[3] * y_scale)
        return _cut(stretched, box), Geometry((height, width), spec.size, region, spec.size)
    if spec.fit == "crop":
        assert spec.shortest_edge is not None  # PreprocessSpec checks it
        # The longer side rounds down, as torchvision's and transformers' resize do.
        scaled_width, scaled_height = (
            (spec.shortest_edge, int(spec.shortest_edge * height / width))
            if width <= height
            else (int(spec.shortest_edge * width / height), spec.shortest_edge)
        )
        left, top = _halve(scaled_width - canvas_width, spec), _halve(scaled_height - canvas_height, spec)
        x_scale, y_scale = width / scaled_width, height / scaled_height
        region = (
            left * x_scale,
            top * y_scale,
            min((left + canvas_width) * x_scale, float(width)),
            min((top + canvas_height) * y_scale, float(height)),
        )
        if scaled_width * scaled_height <= MAX_PIXELS:
            scaled = _resize(image, (scaled_width, scaled_height), kernel)
            canvas = _cut(scaled, (left, top, left + canvas_width, top + canvas_height))
        else:
            # A picture a thousand times longer than wide would be gigabytes; the crop alone differs in rounding.
            canvas = np.asarray(image.resize((canvas_width, canvas_height), kernel, box=region))
        return canvas, Geometry((height, width), spec.size, region, spec.size)
    scale = min(canvas_height / height, canvas_width / width)
    valid_height = min(canvas_height, max(1, round(height * scale)))
    valid_width = min(canvas_width, max(1, round(width * scale)))
    canvas = _pad(np.asarray(_resize(image, (valid_width, valid_height), kernel)), spec)
    valid_size = (valid_height, valid_width)
    return canvas, Geometry((height, width), valid_size, (0.0, 0.0, float(width), float(height)), spec.size)


# No copies where nothing changes: with the memory that it needs, one costs as much as half of decoding a JPEG.


def _resize(image: Image.Image, size: tuple[int, int], kernel: Image.Resampling) -> Image.Image:
    """size: (width, height)"""
    return image if image.size == size else image.resize(size, kernel)


def _cut(image: Image.Image, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """box: left, top, right, bottom"""
    return np.asarray(image if box == (0, 0, *image.size) else image.crop(box))


def _pad(valid: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.uint8]:
    """The canvas with the valid pixels at its top left."""
    height, width, _ = valid.shape
    canvas = np.empty((*spec.size, 3), dtype=np.uint8)
    canvas[:height, :width] = valid
    for empty in (canvas[height:], canvas[:height, width:]):
        # Three numbers a pixel are written ten times slower than one.
        empty[:] = spec.pad_value[0] if len(set(spec.pad_value)) == 1 else spec.pad_value
    return canvas


def canvas_waste(original_size: tuple[int, int], canvas: tuple[int, int]) -> float:
    """Share of a canvas's area, in [0, 1], that a picture wastes; sizes are (height, width) in pixels.

    Wasted is what another aspect ratio leaves empty or cuts off, and what enlarging fills without adding detail.
    """
    height, width = original_size
    scale = min(canvas[0] / height, canvas[1] / width)
    filled = height * scale * width * scale / (canvas[0] * canvas[1])
    return 1 - filled * min(1.0, 1 / scale**2)


def choose_canvas(original_size: tuple[int, int], canvases: Sequence[tuple[int, int]]) -> int:
    """Index of the canvas that a picture wastes the least of; sizes are (height, width) in pixels.

    Among canvases of which it uses a share within a hundredth of the best, the largest is taken: it keeps the most
    detail.
    """
    used = [1 - canvas_waste(original_size, canvas) for canvas in canvases]
    near = [index for index, share in enumerate(used) if share >= 0.99 * max(used)]
    return max(near, key=lambda index: canvases[index][0] * canvases[index][1])


def _halve(margin: int, spec: PreprocessSpec) -> int:
    """Pixels of the margin that lie before a centre crop."""
    return margin // 2 if spec.crop_rounding == "down" else round(margin / 2)


def preprocess_image(
    data: bytes, spec: PreprocessSpec, max_pixels: int = MAX_PIXELS
) -> tuple[NDArray[np.uint8], Geometry]:
    """`decode_image`, then `fit_image`."""
    return fit_image(decode_image(data, max_pixels), spec)


def stack_inputs(
    canvases: Sequence[NDArray[np.uint8]], geometries: Sequence[Geometry], input_names: tuple[str, ...]
) -> dict[str, NDArray[Any]]:
    """The graph's inputs for a batch: `image` (batch, height, width, 3) and, if named, `valid_size` (batch, 2).

    Takes at least one canvas.
    """
    # One canvas is not copied.
    image = np.stack(canvases) if len(canvases) > 1 else np.ascontiguousarray(canvases[0])[np.newaxis]
    inputs: dict[str, NDArray[Any]] = {"image": image}
    if "valid_size" in input_names:
        inputs["valid_size"] = np.array([geometry.valid_size for geometry in geometries], dtype=np.int32)
    return inputs
