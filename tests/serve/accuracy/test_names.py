"""Names of a data set among a model's labels."""

import pytest

from ferryman.accuracy.names import LabelFinder

IMAGENET = ("n01440764 tench, Tinca tinca", "n02012849 crane", "n03126707 crane", "n03594734 jean, blue jean, denim")
CASES: dict[str, tuple[tuple[str, ...], str, int | None]] = {
    "as it is": (("shirt", "t-shirt"), "t-shirt", 1),
    "case": (("RBC", "WBC"), "wbc", 1),
    "separators": (("traffic light", "stop sign"), "Stop_Sign", 1),
    "the exact one first": (("t shirt", "t-shirt"), "t-shirt", 1),
    "one of two that differ in separators": (("t shirt", "t-shirt"), "t_shirt", None),
    "twice among the labels": (("N/A", "person", "N/A"), "N/A", None),
    "nothing in common": (("cat", "dog"), "sofa", None),
    "part of a word": (("hat", "that"), "ha", None),
    "WordNet id": (IMAGENET, "n03126707", 2),
    "synonym": (IMAGENET, "Denim", 3),
    "name after the id": (IMAGENET, "tench", 0),
    "name of two classes": (IMAGENET, "crane", None),
    "number of a class without a name": (("LABEL_0", "LABEL_1", "LABEL_10"), "10", 2),
    "number where classes have names": (("cat", "dog"), "1", None),
    "digits that are labels": (("9", "0"), "0", 1),
}


@pytest.mark.parametrize(("labels", "name", "found"), CASES.values(), ids=CASES)
def test_names(labels: tuple[str, ...], name: str, found: int | None) -> None:
    assert LabelFinder(labels).find(name) == found


def test_unknown_names_come_with_the_nearest_label() -> None:
    finder = LabelFinder(("Pants", "shirt"))
    assert finder.describe_unknown(["pnats", "sofa"]) == "pnats (nearest label: Pants), sofa"
    assert finder.describe_unknown([f"x{number}" for number in range(8)]) == "x0, x1, x2, x3, x4 and 3 more"
