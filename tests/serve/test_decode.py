"""From a file's bytes to pixels: every kind of picture and every kind of damage."""

import io
import struct
import threading
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile, PngImagePlugin

from ferryman import preprocess
from ferryman.errors import ImageError
from ferryman.preprocess import decode_image

from .toy import make_bomb, make_png, png_chunk

Pixels = NDArray[np.uint8]
_RNG = np.random.default_rng(7)
NOISE = _RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8)
GRADIENT = np.stack(np.meshgrid(np.arange(0, 240, 10), np.arange(0, 160, 10)), -1)  # (16, 24, 2), smooth for JPEG
SMOOTH = np.concatenate((GRADIENT, GRADIENT[..., :1] // 2), axis=-1).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(data: bytes) -> Pixels:
    image = decode_image(data)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (encode(Image.fromarray(SMOOTH), "PNG"), 0),
        (encode(Image.fromarray(SMOOTH), "BMP"), 0),
        (encode(Image.fromarray(SMOOTH), "WEBP", lossless=True), 0),
        (encode(Image.fromarray(SMOOTH), "WEBP", quality=95), 12),
        (encode(Image.fromarray(SMOOTH), "JPEG", quality=98, subsampling=0), 4),
        (encode(Image.fromarray(SMOOTH), "JPEG", quality=98, subsampling=0, progressive=True), 4),
    ],
    ids=["PNG", "BMP", "lossless WebP", "WebP", "JPEG", "progressive JPEG"],
)
def test_formats(data: bytes, tolerance: int) -> None:
    assert np.abs(decode(data).astype(int) - SMOOTH).max() <= tolerance


# How a camera that was held so stores an upright picture, in NumPy's words (EXIF 2.32, tag 0x0112).
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](SMOOTH)))
    options = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    upright = decode(encode(stored, kind, exif=exif, **options))
    assert upright.shape == SMOOTH.shape
    assert np.abs(upright.astype(int) - SMOOTH).max() <= (4 if kind == "JPEG" else 0)


def test_an_orientation_that_is_none() -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    assert (decode(encode(Image.fromarray(NOISE), "PNG", exif=exif)) == NOISE).all()


def _over_white(rgb: Pixels, alpha: Pixels) -> NDArray[np.float64]:
    share = alpha[..., None] / 255
    return rgb * share + 255 * (1 - share)


ALPHA = _RNG.integers(0, 256, NOISE.shape[:2], dtype=np.uint8)
GREY = np.ascontiguousarray(NOISE[..., 0])
GREY_RGB = np.repeat(GREY[..., None], 3, axis=-1)


def _palette(transparency: bytes | None) -> bytes:
    image = Image.fromarray(GREY % 4)
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    assert image.mode == "P"
    return encode(image, "PNG", **({} if transparency is None else {"transparency": transparency}))


PALETTE = (np.array([10, 40, 70, 100])[GREY % 4][..., None] + [0, 10, 20]).astype(np.uint8)
PALETTE_ALPHA = np.array([0, 128, 255, 255], dtype=np.uint8)[GREY % 4]
WIDE = (_RNG.integers(0, 65536, NOISE.shape[:2])).astype(np.uint16)
WIDE[0, :4] = [0, 256, 65535, 65280]
LEVELS = np.repeat(np.round(WIDE[..., None] / 257), 3, axis=-1)
MODES = {
    "alpha": (encode(Image.fromarray(np.dstack((NOISE, ALPHA))), "PNG"), _over_white(NOISE, ALPHA)),
    "grey and alpha": (encode(Image.fromarray(np.dstack((GREY, ALPHA)), "LA"), "PNG"), _over_white(GREY_RGB, ALPHA)),
    "WebP with alpha": (
        encode(Image.fromarray(np.dstack((NOISE, ALPHA))), "WEBP", lossless=True, exact=True),
        _over_white(NOISE, ALPHA),
    ),
    "palette": (_palette(None), PALETTE),
    "palette and transparency": (_palette(bytes([0, 128])), _over_white(PALETTE, PALETTE_ALPHA)),
    "grey": (encode(Image.fromarray(GREY), "PNG"), GREY_RGB),
    "one transparent grey": (
        encode(Image.fromarray(GREY), "PNG", transparency=int(GREY[0, 0])),
        np.where(GREY[0, 0] == GREY_RGB, 255, GREY_RGB),
    ),
    "black and white": (encode(Image.fromarray(GREY > 99), "PNG"), np.where(GREY_RGB > 99, 255, 0)),
    "16-bit grey": (encode(Image.fromarray(WIDE), "PNG"), LEVELS),
    # Two levels that are one at 8 bits: only one of them is transparent.
    "one transparent 16-bit grey": (
        encode(Image.fromarray(np.array([[32000, 32001, 0]], dtype=np.uint16)), "PNG", transparency=32000),
        np.array([[[255] * 3, [125] * 3, [0] * 3]]),
    ),
    "grey BMP": (encode(Image.fromarray(GREY), "BMP"), GREY_RGB),
    "black and white BMP": (encode(Image.fromarray(GREY > 99), "BMP"), np.where(GREY_RGB > 99, 255, 0)),
}


@pytest.mark.parametrize(("data", "expected"), MODES.values(), ids=MODES)
def test_modes(data: bytes, expected: NDArray[np.float64]) -> None:
    assert np.abs(decode(data) - expected).max() <= 1


def _without_adobe(data: bytes) -> bytes:
    """A JPEG without its APP14 segment."""
    start = data.index(b"\xff\xee")
    (length,) = struct.unpack(">H", data[start + 2 : start + 4])
    return data[:start] + data[start + 2 + length :]


@pytest.mark.parametrize("change", [bytes, _without_adobe], ids=["Adobe", "plain"])
def test_cmyk(change: Callable[[bytes], bytes]) -> None:
    """Adobe stores inverted values, and so does everybody else: the marker changes nothing."""
    data = encode(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=98)
    assert b"Adobe" in data
    assert b"Adobe" not in _without_adobe(data)
    cyan = decode(change(data)).reshape(-1, 3).mean(axis=0)
    assert np.abs(cyan - [0, 255, 255]).max() < 4


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "MPO"])
def test_the_first_frame_of_several(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    pixels = decode(encode(first, kind, save_all=True, append_images=[second]))
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() < 10


REFUSED = {
    "empty": (b"", "the image is empty"),
    "text": (b"this is no picture" * 10, "the 180 bytes are not a JPEG, PNG, WEBP or BMP image"),
    "GIF": (encode(Image.fromarray(GREY), "GIF"), "are not a JPEG"),
    "TIFF": (encode(Image.fromarray(GREY), "TIFF"), "are not a JPEG"),
    "PPM": (encode(Image.fromarray(NOISE), "PPM"), "are not a JPEG"),
    "PNG without data": (make_png(4, 4), "damaged"),
    "PNG of no width": (make_png(0, 4), "are not a JPEG"),
    "PNG of no size": (make_png(0, 0, png_chunk(b"IDAT", zlib.compress(b""))), "are not a JPEG"),
    "BMP of no width": (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 0, 8, 1, 24, 0, 0, 0, 0, 0, 0),
        "are not a JPEG",
    ),
    "BMP of no height": (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 8, 0, 1, 24, 0, 0, 0, 0, 0, 0),
        "are not a JPEG",
    ),
    "BMP of negative width": (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, -8, 8, 1, 24, 0, 0, 0, 0, 0, 0),
        "the image",
    ),
    "text that unpacks to megabytes": (
        make_png(
            4,
            4,
            png_chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * (PngImagePlugin.MAX_TEXT_CHUNK + 1))),
            png_chunk(b"IDAT", zlib.compress(bytes(52))),
        ),
        "damaged",
    ),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_picture_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def _webp_canvas(width: int, height: int) -> bytes:
    """An extended WebP file whose canvas is that large, and which holds a picture of 1x1."""
    small = encode(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    frame = b"ANMF" + struct.pack("<I", 16 + len(small)) + bytes(16) + small
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0]) + size
    body += b"ANIM" + struct.pack("<I", 6) + bytes(6) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


BOMBS = {
    "30,000 x 30,000 PNG": make_bomb(30_000, 30_000),
    "10,000 x 10,000 PNG": make_bomb(10_000, 10_000),
    "PNG as large as its header can say": make_png(2**31 - 1, 2**31 - 1),
    "WebP": _webp_canvas(12_000, 12_000),
    "BMP": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 9_000, 9_000, 1, 24, 0, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_before_decoding(data: bytes) -> None:
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=r"limit (of|is) 64,000,000"):
            decode_image(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6
    assert time.process_time() - start < 1.0


def test_a_jpeg_of_many_scans_is_refused() -> None:
    """A scan goes over the whole picture though it holds nothing: half a megabyte of them took minutes."""
    data = encode(Image.effect_noise((64, 64), 90), "JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    assert decode_image(data).size == (64, 64)
    with pytest.raises(ImageError, match="more than 100 scans; save it anew"):
        decode_image(data[:first] + data[first:-2] * 100 + data[-2:])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK", "I;16", "1"])
def test_large_pictures_are_brought_to_rgb_strip_by_strip(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (50, 30, 4), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(noise.view(np.uint16)[..., 0])
        data = encode(image, "PNG", transparency=int(np.asarray(image)[7, 7]))
    else:
        image = Image.fromarray(noise, "CMYK" if mode == "CMYK" else "RGBA").convert(mode)
        data = encode(image, "JPEG" if mode == "CMYK" else "PNG", **({"transparency": 3} if mode == "P" else {}))
    whole = np.asarray(decode_image(data))
    monkeypatch.setattr(preprocess, "_STRIP_PIXELS", 30 * 7)
    assert decode_image(data).mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decode_image(data)), whole)


def test_the_limit_is_exact() -> None:
    data = encode(Image.new("RGB", (20, 10)), "PNG")
    assert decode_image(data, max_pixels=200).size == (20, 10)
    with pytest.raises(ImageError, match="20x10 = 200 pixels, more than the limit of 199; shrink it first"):
        decode_image(data, max_pixels=199)


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    return exif


SMALL = Image.fromarray(NOISE[:5, :6])
SEEDS = {
    "PNG": encode(SMALL, "PNG", exif=_exif()),
    "palette PNG": _palette(bytes([0, 128])),
    "JPEG": encode(SMALL, "JPEG", exif=_exif()),
    "WebP": encode(SMALL, "WEBP", exif=_exif()),
    "animated WebP": encode(SMALL, "WEBP", save_all=True, append_images=[SMALL.transpose(Image.Transpose.ROTATE_180)]),
    "BMP": encode(SMALL, "BMP"),
    "palette BMP": encode(SMALL.convert("1"), "BMP"),
    "MPO": encode(SMALL, "MPO", save_all=True, append_images=[SMALL]),
}


def _damaged(data: bytes) -> Iterator[bytes]:
    """Prefixes, and copies with one byte changed; long files are sampled, all of their headers is taken."""
    places = [place for place in range(len(data)) if place < 64 or place % 11 == 0 or len(data) - place < 8]
    for place in places:
        yield data[:place]
        for change in (0xFF, 0x01, 0x80):
            yield data[:place] + bytes([data[place] ^ change]) + data[place + 1 :]


def _try_to_decode(data: bytes) -> Image.Image | ImageError:
    try:
        return decode_image(data, max_pixels=100_000)
    except ImageError as error:
        return error


@pytest.mark.parametrize("data", SEEDS.values(), ids=SEEDS)
def test_damage_gives_a_picture_or_an_image_error(data: bytes) -> None:
    """Warnings are errors in these tests, so none may leak either."""
    assert decode_image(data).width
    answers = [_try_to_decode(damaged) for damaged in _damaged(data)]
    refusals = [answer for answer in answers if isinstance(answer, ImageError)]
    assert len(refusals) > 64
    assert not any("\n" in str(refusal) for refusal in refusals)
    for answer in answers:
        if isinstance(answer, Image.Image):
            assert answer.mode == "RGB"
            assert min(answer.size) > 0


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    """`warnings.catch_warnings` of several threads restore each other's filters; ours are process-wide and counted."""
    noisy = SEEDS["JPEG"].replace(b"a description", b"a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
    broken = SEEDS["MPO"][:-40]
    before = list(warnings.filters)
    failures: list[BaseException] = []

    def work() -> None:
        for number in range(25):
            try:
                decode_image((noisy, broken, b"x")[number % 3])
            except ImageError:
                pass
            except BaseException as error:  # noqa: BLE001 - told below, in the main thread
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert warnings.filters == before


def test_truncated_files_are_refused_whatever_pillow_was_told() -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    data = encode(Image.fromarray(_RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")
    with pytest.raises(ImageError, match="damaged"):
        decode_image(data[: len(data) // 2])
