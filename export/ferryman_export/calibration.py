"""Real pictures to calibrate with, and others to judge by, which calibration never sees."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ferryman.errors import UsageError
from ferryman.golden import Tensors
from ferryman.specs import Facts, ModelSpec
from ferryman_export.samples import make_inputs, read_pictures

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

    Raises UsageError when there are fewer than `LEAST_PICTURES`, FileAccessError and ImageError for one that can't be
    read.
    """
    pictures = read_pictures(folder, MAX_PICTURES)
    if len(pictures) < LEAST_PICTURES:
        raise UsageError(
            f"{folder} holds {len(pictures)} pictures, too few to calibrate with: give {LEAST_PICTURES} or more, "
            f"better {MAX_PICTURES}, of the kind that the model will see"
        )
    names, inputs = make_inputs(pictures, spec)
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
