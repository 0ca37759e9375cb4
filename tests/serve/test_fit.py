"""From pixels to the canvas, and the way back for boxes."""

import io
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from ferryman.preprocess import canvas_waste, choose_canvas, fit_image, preprocess_image
from ferryman.specs import PreprocessSpec

SIZES = [(1, 1), (1, 300), (300, 1), (7, 5), (64, 48), (101, 67), (67, 101), (333, 100), (256, 256)]


def _noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("canvas", [(32, 32), (24, 31), (31, 24)], ids=str)
def test_crop_is_the_known_rule(size: tuple[int, int], canvas: tuple[int, int]) -> None:
    """Shortest edge, the longer side rounded down, centre cut out at half the difference rounded down.

    That is what transformers' image processors do (`get_resize_output_image_size`, `center_crop`). torchvision's
    CenterCrop starts at round(difference / 2), half to even: one pixel further where the difference is 3, 7, 11 ...
    """
    width, height = size
    edge = 36
    image = _noise(width, height)
    spec = PreprocessSpec(size=canvas, fit="crop", shortest_edge=edge, interpolation="bicubic")
    pixels, geometry = fit_image(image, spec)
    short, long = sorted(size)
    scaled = (edge, edge * long // short) if width <= height else (edge * long // short, edge)
    left, top = (scaled[0] - canvas[1]) // 2, (scaled[1] - canvas[0]) // 2
    expected = np.asarray(image.resize(scaled, Image.Resampling.BICUBIC))[
        top : top + canvas[0], left : left + canvas[1]
    ]
    assert pixels.shape == (*canvas, 3)
    assert (pixels == expected).all()
    assert geometry.valid_size == canvas
    x1, y1, x2, y2 = geometry.region
    assert 0 <= x1 < x2 <= width
    assert 0 <= y1 < y2 <= height
    assert x1 + x2 == pytest.approx(width, abs=1 * width / scaled[0] + 1e-6)  # centred within a canvas pixel
    assert y1 + y2 == pytest.approx(height, abs=1 * height / scaled[1] + 1e-6)


FITS = {
    "stretch": {"size": (24, 31), "fit": "stretch"},
    "stretch and cut": {"size": (24, 31), "fit": "stretch", "stretch_to": (29, 36), "interpolation": "bicubic"},
    "crop": {"size": (24, 31), "fit": "crop", "shortest_edge": 36, "interpolation": "lanczos"},
    "crop of nothing": {"size": (48, 48), "fit": "crop", "shortest_edge": 48},
    "pad grey": {"size": (48, 64), "fit": "pad", "pad_value": (114, 114, 114)},
    "pad colour": {"size": (30, 31), "fit": "pad", "pad_value": (9, 99, 199), "interpolation": "nearest"},
}
STORED = {"as it is": None, "not turned": 1, "turned": 6, "mirrored": 2}


@pytest.mark.parametrize("facts", FITS.values(), ids=FITS)
@pytest.mark.parametrize("orientation", STORED.values(), ids=STORED)
@pytest.mark.parametrize("size", [(7, 5), (101, 67), (64, 49), (48, 48)], ids=str)
def test_the_short_ways_are_the_long_way_bit_for_bit(
    size: tuple[int, int], orientation: int | None, facts: dict[str, Any]
) -> None:
    """Copies that are left out: each step as Pillow documents it, on a picture of its own."""
    spec, file, exif = PreprocessSpec.model_validate(facts), io.BytesIO(), Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    _noise(*size).save(file, "JPEG", exif=exif)
    canvas, geometry = preprocess_image(file.getvalue(), spec)
    with Image.open(file) as stored:
        picture = ImageOps.exif_transpose(stored).convert("RGB")
    assert geometry.original_size == (picture.height, picture.width)
    kernel = Image.Resampling[spec.interpolation.upper()]
    height, width = geometry.valid_size
    if spec.fit == "pad":
        expected = Image.new("RGB", (spec.size[1], spec.size[0]), spec.pad_value)
        expected.paste(picture.resize((width, height), kernel), (0, 0))
    else:
        edge = spec.shortest_edge or 0
        ratio = edge / min(picture.size)
        scaled = (
            (spec.stretch_to or spec.size)[::-1]
            if spec.fit == "stretch"
            else tuple(edge if side == min(picture.size) else int(side * ratio + 1e-9) for side in picture.size)
        )
        left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
        expected = picture.resize((scaled[0], scaled[1]), kernel).crop((left, top, left + width, top + height))
    assert (canvas == np.asarray(expected)).all()


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (3, 50_000)], ids=str)
def test_crop_of_a_thread_takes_little_memory(size: tuple[int, int]) -> None:
    """Resized as a whole, 1 x 60,000 would be 256 x 15 million pixels."""
    width, height = size
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    spec = PreprocessSpec(size=(224, 224), fit="crop", shortest_edge=256)
    start = time.process_time()
    pixels, geometry = fit_image(image, spec)
    assert time.process_time() - start < 2.0
    assert pixels.shape == (224, 224, 3)
    x1, y1, x2, y2 = geometry.region
    assert 0 <= x1 < x2 <= width
    assert 0 <= y1 < y2 <= height
    middle = np.asarray(image)[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))]
    assert abs(pixels.mean() - middle.mean()) < 2


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic", "lanczos"])
def test_the_crop_alone_is_nearly_the_crop_of_the_whole(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = Image.linear_gradient("L")
    image = Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180))).resize((300, 170), Image.Resampling.BICUBIC)
    facts = {"size": (97, 128), "fit": "crop", "shortest_edge": 131, "interpolation": kernel}
    spec = PreprocessSpec.model_validate(facts)
    whole, geometry = fit_image(image, spec)
    monkeypatch.setattr("ferryman.preprocess.MAX_PIXELS", 1000)
    alone, same_geometry = fit_image(image, spec)
    assert geometry == same_geometry
    assert np.abs(whole.astype(int) - alone).max() <= 2


@pytest.mark.parametrize("size", [*SIZES, (1, 10_000), (10_000, 1)], ids=str)
def test_pad_geometry_and_the_way_back(size: tuple[int, int]) -> None:
    width, height = size
    spec = PreprocessSpec(size=(96, 128), fit="pad", pad_value=(9, 8, 7))
    pixels, geometry = fit_image(_noise(width, height), spec)
    valid_height, valid_width = geometry.valid_size
    assert pixels.shape == (96, 128, 3)
    assert valid_height == 96 or valid_width == 128
    assert 1 <= valid_height <= 96
    assert 1 <= valid_width <= 128
    if min(size) * 128 > max(size):  # else a side would be less than a pixel
        assert abs(valid_width / valid_height - width / height) <= (1 + width / height) / valid_height
    assert (pixels[valid_height:] == (9, 8, 7)).all()
    assert (pixels[:, valid_width:] == (9, 8, 7)).all()
    # A box on the original's pixels -> on the canvas's valid area -> back.
    boxes = np.array([[0, 0, width, height], [width / 4, height / 3, width / 2, height * 0.9]])
    on_canvas = boxes * np.array([valid_width / width, valid_height / height] * 2)
    normalised = on_canvas / np.array([valid_width, valid_height] * 2)
    back = geometry.boxes_to_original(normalised.astype(np.float32))
    assert np.abs(back - boxes).max() < 1e-3 * max(1, max(size) / 1000)


def test_an_object_is_found_where_it_was_drawn() -> None:
    """By pixels rather than by formulas: a white block on black, found on the canvas, lies where it was drawn."""
    image = Image.new("RGB", (300, 170))
    image.paste("white", (120, 40, 210, 130))
    for spec in (
        PreprocessSpec(size=(96, 128), fit="pad"),
        PreprocessSpec(size=(96, 128), fit="stretch"),
        PreprocessSpec(size=(96, 128), fit="crop", shortest_edge=130),
    ):
        pixels, geometry = fit_image(image, spec)
        rows, columns = np.nonzero(pixels[..., 0] > 127)
        found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        valid_height, valid_width = geometry.valid_size
        box = (found / np.array([valid_width, valid_height] * 2)).astype(np.float32)[None]
        pixel = max(300 / 128, 170 / 72)  # of the canvas, in pixels of the picture
        assert np.abs(geometry.boxes_to_original(box)[0] - [120, 40, 210, 130]).max() <= pixel, spec.fit


def test_stretch_takes_the_whole_picture() -> None:
    image = _noise(50, 20)
    pixels, geometry = fit_image(image, PreprocessSpec(size=(8, 16), fit="stretch", interpolation="lanczos"))
    assert (pixels == np.asarray(image.resize((16, 8), Image.Resampling.LANCZOS))).all()
    assert (geometry.valid_size, geometry.region) == ((8, 16), (0, 0, 50, 20))


def test_boxes_are_clipped_to_the_picture() -> None:
    _, geometry = fit_image(_noise(6, 5), PreprocessSpec(size=(32, 32), fit="pad"))
    boxes = geometry.boxes_to_original(np.array([[-0.5, -1, 1.5, 2], [0.5, 0.5, 0.5, 0.5]], dtype=np.float32))
    assert boxes.tolist() == [[0, 0, 6, 5], [3, 2.5, 3, 2.5]]
    assert geometry.boxes_to_original(np.empty((0, 4), dtype=np.float32)).shape == (0, 4)


@pytest.mark.parametrize(
    ("fit", "processor", "settings", "size"),
    [
        ("stretch", "vit.image_processing_pil_vit.ViTImageProcessorPil", {"size": {"height": 32, "width": 32}}, 32),
        (
            "crop",
            "bit.image_processing_pil_bit.BitImageProcessorPil",
            {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}},
            32,
        ),
    ],
    ids=["ViT", "DINOv2 (BiT)"],
)
def test_the_canvas_is_that_of_transformers(fit: str, processor: str, settings: dict[str, object], size: int) -> None:
    """The same picture through transformers' processor, scaling and normalisation off."""
    pytest.importorskip("transformers")
    from importlib import import_module

    module, _, name = processor.rpartition(".")
    make = getattr(import_module(f"transformers.models.{module}"), name)
    reference = make(do_rescale=False, do_normalize=False, resample=Image.Resampling.BICUBIC, **settings)
    spec = PreprocessSpec(
        size=(size, size),
        fit="crop" if fit == "crop" else "stretch",
        shortest_edge=36 if fit == "crop" else None,
        interpolation="bicubic",
    )
    for width, height in [(64, 48), (101, 67), (67, 101), (333, 100), (40, 41), (33, 39)]:
        image = _noise(width, height)
        expected = np.asarray(reference(images=image, return_tensors="np")["pixel_values"])[0]
        pixels, _ = fit_image(image, spec)
        assert (pixels == expected.transpose(1, 2, 0)).all(), (width, height)


WASTES = [
    # picture, canvas, share of the canvas that is wasted
    ((480, 640), (480, 640), 0.0),
    ((960, 1280), (480, 640), 0.0),
    ((240, 320), (480, 640), 0.75),
    ((640, 480), (480, 640), 1 - 360 / 640),
    ((1, 1000), (100, 100), 1 - 1 / 1000),
]


@pytest.mark.parametrize(("picture", "canvas", "expected"), WASTES)
def test_waste(picture: tuple[int, int], canvas: tuple[int, int], expected: float) -> None:
    assert canvas_waste(picture, canvas) == pytest.approx(expected)


def test_the_canvas_of_the_least_waste_and_then_of_the_most_detail() -> None:
    canvases = [(240, 320), (480, 640), (640, 480)]
    cases = {(480, 640): 1, (3000, 4000): 1, (4000, 3000): 2, (240, 320): 0, (500, 500): 1, (10, 10): 0}
    assert {size: choose_canvas(size, canvases) for size in cases} == cases
