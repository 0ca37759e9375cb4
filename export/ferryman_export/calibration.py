"""Real pictures to calibrate with, and others to judge by, which calibration never sees."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ferryman.golden import Tensors
from ferryman.specs import Facts, ModelSpec
from ferryman_export.samples import find_pictures, make_inputs, read_picture

MAX_PICTURES = 300
FEW_PICTURES = 100
LEAST_PICTURES = 12


class CalibrationFacts(Facts):
    """folder: as the user named it; sha256: of the pictures' names and canvases; of the pictures, `held_out` judged"""

    folder: str
    sha256: str
    pictures: int
    held_out: int

    def notes(self) -> tuple[str, ...]:
        if self.pictures >= FEW_PICTURES:
            return ()
        return (f"calibrated with {self.pictures} pictures, fewer than {FEW_PICTURES}: others may be answered worse",)


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


def read_calibration(folder: Path, spec: ModelSpec) -> Calibration:
    """At most `MAX_PICTURES` of a folder's pictures, fitted to the model's canvas.

    Raises UsageError when there is none, FileAccessError and ImageError for one that can't be read.
    """
    # One after the other: whole photographs of 12 million pixels would take gigabytes.
    fitted = [
        make_inputs({path.relative_to(folder).as_posix(): read_picture(path)}, spec)
        for path in find_pictures(folder, MAX_PICTURES)
    ]
    names = tuple(name for (name,), _ in fitted)
    inputs = {name: np.concatenate([one[name] for _, one in fitted]) for name in spec.input_names}
    digest = hashlib.sha256()
    for index, name in enumerate(names):
        digest.update(name.encode() + b"\0")
        for tensor in spec.inputs:
            digest.update(inputs[tensor.name][index].tobytes())
    held = [index for index in range(len(names)) if index % 3 == 2]
    seen = [index for index in range(len(names)) if index % 3 != 2]
    facts = CalibrationFacts(folder=folder.name, sha256=digest.hexdigest(), pictures=len(names), held_out=len(held))

    def take(indices: list[int]) -> Pictures:
        chosen = {name: array[indices] for name, array in inputs.items()}
        return Pictures(tuple(names[index] for index in indices), chosen)

    return Calibration(facts, take(seen), take(held))
