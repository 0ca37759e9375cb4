"""Labelled pictures: what they show, and how well a model's answers to them agree with that."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ferryman.accuracy.scores import BoxScores, TopScores
from ferryman.errors import EngineError, FileAccessError, ImageError, UsageError
from ferryman.manifest import Tolerance
from ferryman.predictor import Predictor
from ferryman.preprocess import decode_image
from ferryman.results import Classification, Detections

T = TypeVar("T", Classification, Detections)
Progress = Callable[[str, int, int], None]  # the stage's name, steps done, steps in all


@dataclass(frozen=True)
class Truth(ABC, Generic[T]):
    """Pictures with what is to be answered to each. T: the answer to one picture, as it is served

    place: as the user named it; paths: of the pictures; sha256: of the pictures and of what is said of them
    notes: what was left out or assumed, a line each
    """

    place: Path
    paths: tuple[Path, ...]
    sha256: str
    notes: tuple[str, ...]

    def ask(self, predictor: Predictor, advance: Callable[[int, int], None] = lambda done, total: None) -> list[T]:
        """A model's answer to every picture, each asked alone. Raises EngineError, FileAccessError, ImageError.

        advance: called with the number of pictures answered and in all
        """
        answers: list[T] = []
        for done, path in enumerate(self.paths):
            advance(done, len(self.paths))
            data = read_picture(path)
            try:
                answers.append(self.ask_one(predictor, data))
            except (EngineError, ImageError) as error:
                raise type(error)(f"{path}: {error}") from error
        return answers

    @abstractmethod
    def ask_one(self, predictor: Predictor, image: bytes) -> T: ...

    @abstractmethod
    def score(self, answers: Sequence[T]) -> TopScores | BoxScores:
        """answers: one a picture, of any model with these labels."""

    @abstractmethod
    def compare(self, answers: Sequence[T], reference: Sequence[T], tolerance: Tolerance) -> float | None:
        """The share of the reference's answers that are given again, whatever is true; None where it has none."""


def read_picture(path: Path) -> bytes:
    """Raises FileAccessError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileAccessError(f"can't read {path}: {error.strerror}") from error


def check_pictures(
    paths: Sequence[Path],
    names: Sequence[str],
    sizes: Sequence[tuple[int, int] | None],
    told: bytes,
    progress: Progress,
) -> str:
    """Decodes every picture, so that a broken one is found before anything is measured; returns a digest of all.

    names: that go into the digest; sizes: (width, height) in pixels that a picture must have, None for any
    told: what else goes into the digest
    Raises FileAccessError, ImageError, and UsageError for another size.
    """
    digest = hashlib.sha256(told)
    for done, (path, name, size) in enumerate(zip(paths, names, sizes, strict=True)):
        progress("read the labelled pictures", done, len(paths))
        data = read_picture(path)
        try:
            found = decode_image(data).size
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error
        if size not in (None, found):
            raise UsageError(f"{path} has {_by(found)} pixels upright, its annotations are for {_by(size)}")
        digest.update(name.encode(errors="surrogateescape") + b"\0" + hashlib.sha256(data).digest())
    return digest.hexdigest()


def _by(size: Sequence[int] | None) -> str:
    return "x".join(map(str, size or ()))
