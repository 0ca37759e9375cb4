"""A folder of pictures a class, the layout of torchvision's ImageFolder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ferryman.accuracy.names import LabelFinder, is_wordnet
from ferryman.accuracy.scores import TopScores
from ferryman.accuracy.truth import Progress, Truth, check_pictures
from ferryman.errors import FileAccessError, UsageError
from ferryman.manifest import Tolerance
from ferryman.predictor import Predictor
from ferryman.preprocess import SUFFIXES
from ferryman.results import Classification

BEST = 5


@dataclass(frozen=True)
class LabelledPictures(Truth[Classification]):
    """labels: the model's; class_ids: one a picture"""

    labels: tuple[str, ...]
    class_ids: tuple[int, ...]

    def ask_one(self, predictor: Predictor, image: bytes) -> Classification:
        return predictor.classify([image], BEST)[0][0]

    def score(self, answers: Sequence[Classification]) -> TopScores:
        each: dict[str, list[bool]] = {}
        among_best = 0
        for wanted, answer in zip(self.class_ids, answers, strict=True):
            best = [prediction.class_id for prediction in answer.predictions[:BEST]]
            each.setdefault(self.labels[wanted], []).append(best[0] == wanted)
            among_best += wanted in best
        right, count = sum(map(sum, each.values())), len(self.class_ids)
        return TopScores(
            pictures=count,
            right=right,
            top1=right / count,
            top5=among_best / count if len(self.labels) > BEST else None,
            per_class={label: sum(found) / len(found) for label, found in each.items()},
        )

    def compare(
        self, answers: Sequence[Classification], reference: Sequence[Classification], tolerance: Tolerance
    ) -> float:
        """Of the best classes."""
        pairs = zip(answers, reference, strict=True)
        return sum(one.predictions[0].class_id == other.predictions[0].class_id for one, other in pairs) / len(answers)


def read_image_folder(folder: Path, labels: tuple[str, ...], progress: Progress) -> LabelledPictures:
    """Every picture in FOLDER/CLASS and below it. Raises UsageError, FileAccessError, ImageError."""
    try:
        names = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError as error:
        raise FileAccessError(f"can't read {folder}: {error.strerror}") from error
    if not names:
        raise UsageError(f"{folder} holds no folders; pictures belong in one a class, such as {folder / labels[0]}")
    classes, notes = match_folders(folder, names, labels)
    paths: list[Path] = []
    class_ids: list[int] = []
    for name, class_id in classes.items():
        found = sorted(path for path in (folder / name).rglob("[!.]*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise UsageError(f"{folder / name} holds no picture ({', '.join(SUFFIXES)})")
        paths += found
        class_ids += [class_id] * len(found)
    missing = len(labels) - len(set(class_ids))
    if missing:
        notes.append(f"{missing} of the model's {len(labels)} classes have no pictures")
    relative = [path.relative_to(folder).as_posix() for path in paths]
    digest = check_pictures(paths, relative, [None] * len(paths), b"", progress)
    return LabelledPictures(folder, tuple(paths), digest, tuple(notes), labels, tuple(class_ids))


def match_folders(folder: Path, names: Sequence[str], labels: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """The class of each folder, and what was assumed. Raises UsageError for folders that are called like none."""
    finder = LabelFinder(labels)
    classes = {name: found for name in names if (found := finder.find(name)) is not None}
    if not classes and len(names) == len(labels) and all(map(is_wordnet, names)):
        ordered = {name: index for index, name in enumerate(names)}
        return ordered, ["the labels hold no WordNet ids: the folders are taken in the order of theirs, as ImageNet's"]
    unknown = [name for name in names if name not in classes]
    if unknown:
        inner = [name for name in unknown if any(finder.find(child.name) is not None for child in _list(folder / name))]
        hint = f"; did you mean {folder / inner[0]}?" if inner else ""
        raise UsageError(
            f"{folder} has folders that are no class of the model: {finder.describe_unknown(unknown)}{hint}"
        )
    return classes, []


def _list(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # it only helps a message
        return []
