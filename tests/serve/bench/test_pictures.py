"""The pictures that a benchmark asks about."""

from pathlib import Path

import pytest
from numpy.testing import assert_array_equal

from ferryman.bench.pictures import encode_golden, read_pictures
from ferryman.bundle import Bundle
from ferryman.errors import ImageError, UsageError
from ferryman.golden import load_golden
from ferryman.preprocess import preprocess_image

from ..toy import make_picture


@pytest.mark.parametrize("name", ["toy-classifier", "toy-detector"])
def test_golden_samples_as_pictures(toy_repository: Path, name: str) -> None:
    """Encoded, decoded and fitted again, they are the canvases that they were."""
    bundle = Bundle.open(toy_repository / name)
    golden = load_golden(bundle.file("golden.npz"), bundle.spec)
    pictures = encode_golden(bundle)
    files = pictures.images
    assert pictures.read_ms == ()
    assert len(files) == len(golden)
    for index, data in enumerate(files):
        canvas, geometry = preprocess_image(data, bundle.spec.preprocess)
        assert_array_equal(canvas, golden.inputs["image"][index])
        if name == "toy-detector":
            assert geometry.valid_size == tuple(golden.inputs["valid_size"][index])


def test_broken_files_of_a_folder_are_named_and_left_out(tmp_path: Path) -> None:
    good = make_picture((200, 30, 30))
    (tmp_path / "inner").mkdir()
    for name in ("b.png", "inner/a.png"):
        (tmp_path / name).write_bytes(good)
    (tmp_path / "half.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_bytes(b"no picture")
    found = read_pictures([tmp_path])
    assert found.images == (good, good)
    assert found.what.startswith("2 pictures, ")
    assert len(found.read_ms) == 2  # of those that are left out nothing is told
    assert min(found.read_ms) > 0
    assert [line.split(": ")[0] for line in found.broken] == [
        str(tmp_path / "empty.jpg"),
        str(tmp_path / "half.png"),
    ]
    with pytest.raises(ImageError, match=r"half\.png"):  # that was named itself
        read_pictures([tmp_path / "b.png", tmp_path / "half.png"])
    (tmp_path / "b.png").unlink()
    (tmp_path / "inner" / "a.png").unlink()
    with pytest.raises(UsageError, match=r"holds no picture that can be decoded; .*empty\.jpg: "):
        read_pictures([tmp_path])
