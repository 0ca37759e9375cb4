"""Golden samples come back as they were saved, and what is none is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferryman.bundle import Bundle
from ferryman.errors import BundleCorruptError
from ferryman.golden import load_golden, save_golden

from .toy import reseal


def _npz(path: Path, **changes: object) -> None:
    with np.load(path) as file:
        arrays: dict[str, Any] = {name: file[name] for name in file.files} | changes
    np.savez(path, allow_pickle=False, **{name: array for name, array in arrays.items() if array is not None})


def _array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def _boxes(*shape: int, dtype: str = "float32") -> dict[str, Any]:
    return {"output.boxes": np.zeros(shape, dtype)}


WRONG_GOLDEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "does not hold this model's golden samples"),
    "text": (lambda path: path.write_bytes(b"hello"), "does not hold"),
    "half a zip": (lambda path: path.write_bytes(path.read_bytes()[:100]), "does not hold"),
    "a lone array": (_array, "does not hold"),
    "no output": (lambda path: _npz(path, **{"output.boxes": None}), "does not hold"),
    "no names": (lambda path: _npz(path, names=None), "does not hold"),
    "no sample": (lambda path: _npz(path, names=[]), "no sample"),
    "another shape": (lambda path: _npz(path, **_boxes(6, 3, 1)), r"output boxes is float32 \(6, 3, 1\), expected"),
    "another length": (lambda path: _npz(path, **_boxes(5, 3, 4)), "output boxes"),
    "another type": (lambda path: _npz(path, **_boxes(6, 3, 4, dtype="float64")), "output boxes is float64"),
    "a single number": (lambda path: _npz(path, **_boxes()), "output boxes"),
}


@pytest.mark.parametrize(("harm", "message"), WRONG_GOLDEN.values(), ids=WRONG_GOLDEN)
def test_wrong_golden_samples(folder: Path, harm: Callable[[Path], object], message: str) -> None:
    """Sealed with right digests all the same."""
    harm(folder / "golden.npz")
    reseal(folder)
    bundle = Bundle.open(folder)
    with pytest.raises(BundleCorruptError, match=message):
        load_golden(bundle.file("golden.npz"), bundle.spec)


def test_golden_samples_come_back(folder: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(folder)
    golden = load_golden(bundle.file("golden.npz"), bundle.spec)
    save_golden(tmp_path / "again.npz", golden)
    again = load_golden(tmp_path / "again.npz", bundle.spec)
    assert again.names == golden.names
    assert all((again.outputs[name] == array).all() for name, array in golden.outputs.items())
    assert all(array.shape[0] == 2 for array in golden.batch([3, 3]).values())
