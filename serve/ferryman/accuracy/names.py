"""The names that a data set gives to its classes, found among a model's labels."""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

_SHOWN = 5
_SEPARATORS = re.compile(r"[\s_.-]+")
_WORDNET = re.compile(r"(n\d{8})\b[\s_:,-]*(.*)")
_NUMBERED = re.compile(r"LABEL_(\d+)")


class LabelFinder:
    """Finds classes by their label; else by what only one label says but for case and separators.

    A label such as `n01440764 tench, Tinca tinca` is found by each of its parts, and `LABEL_7`, which stands for a
    class without a name, by its number.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self._exact: dict[str, set[int]] = {}
        self._loose: dict[str, set[int]] = {}
        for index, label in enumerate(labels):
            self._exact.setdefault(label, set()).add(index)
            for part in _parts(label):
                self._loose.setdefault(_plain(part), set()).add(index)

    def find(self, name: str) -> int | None:
        """The class that is called so; None for none, and for several."""
        found = self._exact.get(name) or self._loose.get(_plain(name)) or set[int]()
        return next(iter(found)) if len(found) == 1 else None

    def describe_unknown(self, names: Sequence[str]) -> str:
        """Names that were not found, each with the label that it may mean: `pnats (nearest label: pants), sofa`."""
        plain = {_plain(label): label for label in self.labels}
        told: list[str] = []
        for name in names[:_SHOWN]:
            near = get_close_matches(_plain(name), plain, 1)
            told.append(f"{name} (nearest label: {plain[near[0]]})" if near else name)
        more = len(names) - _SHOWN
        return ", ".join(told) + (f" and {more} more" if more > 0 else "")


def is_wordnet(name: str) -> bool:
    """Whether a name is nothing but a WordNet id, as ImageNet's folders are called."""
    return _WORDNET.fullmatch(name) is not None and len(name) == 9


def _plain(name: str) -> str:
    return _SEPARATORS.sub(" ", name).strip().casefold()


def _parts(label: str) -> Iterator[str]:
    yield label
    if match := _NUMBERED.fullmatch(label):
        yield match[1]
    words = label
    if match := _WORDNET.fullmatch(label):
        words = match[2]
        yield match[1]
        yield words
    yield from words.split(",")
