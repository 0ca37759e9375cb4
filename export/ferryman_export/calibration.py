"""Real pictures to calibrate with, and others to judge by, which calibration never sees."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ferryman.errors import UsageError
from ferryman.golden import Tensors
from ferryman.specs import Facts, ModelSpec
from ferryman_export.samples import find_pictures, make_inputs, read_picture

MAX_PICTURES = 300
FEW_PICTURES = 100
LEAST_PICTURES = 12


class CalibrationFacts(Facts):
    """folder: as the user named it; sha256: of the pictures' names and canvases; of the pictures, `held_out` judged

    left_out: pictures of the folder that are golden samples, or the same as another of it
    """

    folder: str
    sha256: str
    pictures: int
    held_out: int
    left_out: int

    def notes(self) -> tuple[str, ...]:
        notes: list[str] = []
        if self.left_out:
            notes.append(f"{self.left_out} calibration pictures are left out: golden samples, or there twice")
        if self.pictures < FEW_PICTURES:
            notes.append(
                f"calibrated with {self.pictures} pictures, fewer than {FEW_PICTURES}: others may be answered worse"
            )
        return tuple(notes)


@dataclass(frozen=True)
class Pictures:
    """Some pictures as a graph's inputs: per tensor one array, whose first dimension counts them."""

    names: tuple[str, ...]
    inputs: Tensors

    def __len__(self) -> int:
        return len(self.names)

    def one(self, index: int) -> Tensors:
        """A picture as a batch of 1."""
        return {name: array[index : index + 1] for name, array in self.inputs.items()}


@dataclass(frozen=True)
class Calibration:
    """seen: two thirds, to calibrate with; held_out: the other third, every third one in the order of their names"""

    facts: CalibrationFacts
    seen: Pictures
    held_out: Pictures


def read_calibration(folder: Path, spec: ModelSpec, golden: Tensors) -> Calibration:
    """At most `MAX_PICTURES` of a folder's pictures, fitted to the model's canvas; each once, and no golden sample.

    golden: the golden samples' inputs, on which parity is measured
    Raises UsageError when fewer than `LEAST_PICTURES` are left, FileAccessError and ImageError for one that can't be
    read.
    """
    paths = find_pictures(folder, MAX_PICTURES)
    known = set(_digests(golden, spec))
    fitted: dict[str, Tensors] = {}
    # One after the other: whole photographs of 12 million pixels would take gigabytes.
    for path in paths:
        (name,), one = make_inputs({path.relative_to(folder).as_posix(): read_picture(path)}, spec)
        (same,) = _digests(one, spec)
        if same not in known:
            known.add(same)
            fitted[name] = one
    if len(fitted) < LEAST_PICTURES:
        raise UsageError(
            f"{folder} holds {len(fitted)} pictures that are no golden samples and differ, too few to calibrate with: "
            f"give {LEAST_PICTURES} or more"
        )
    names = tuple(fitted)
    inputs = {name: np.concatenate([one[name] for one in fitted.values()]) for name in spec.input_names}
    digest = hashlib.sha256()
    for name, same in zip(names, _digests(inputs, spec), strict=True):
        digest.update(name.encode() + b"\0" + same)
    held = [index for index in range(len(names)) if index % 3 == 2]
    seen = [index for index in range(len(names)) if index % 3 != 2]
    facts = CalibrationFacts(
        folder=folder.name,
        sha256=digest.hexdigest(),
        pictures=len(names),
        held_out=len(held),
        left_out=len(paths) - len(names),
    )

    def take(indices: list[int]) -> Pictures:
        chosen = {name: array[indices] for name, array in inputs.items()}
        return Pictures(tuple(names[index] for index in indices), chosen)

    return Calibration(facts, take(seen), take(held))


def _digests(inputs: Tensors, spec: ModelSpec) -> Iterator[bytes]:
    """SHA-256 of each picture, as the graph gets it."""
    for index in range(len(inputs["image"])):
        yield hashlib.sha256(b"".join(inputs[name][index].tobytes() for name in spec.input_names)).digest()
