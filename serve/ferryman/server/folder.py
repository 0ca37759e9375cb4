"""What a repository folder holds now: versions of models, and the file that says which of them answer."""

import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from ferryman.bundle import find_bundles, is_bundle
from ferryman.errors import BundleNotFoundError, FerrymanError, FileAccessError, UsageError, propose
from ferryman.specs import Facts

CHOICES = "versions.toml"
Version = tuple[str, int]  # a model's name and a number
Mark = frozenset[tuple[str, int, int]]
State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
_Pinned = Annotated[int, Field(ge=1)] | Literal["newest"]
_Target = Annotated[str, Field(pattern=r"^[^/]+(/[1-9][0-9]*)?$")]


class Choices(Facts):
    """The file `versions.toml` of a repository; without it the newest version of each model answers.

    serve: by a model's name the version that answers requests that name none
    aliases: further names, each for NAME/VERSION, or for NAME: whichever version answers there
    """

    serve: Mapping[str, _Pinned] = Field(default_factory=dict[str, _Pinned])
    aliases: Mapping[str, _Target] = Field(default_factory=dict[str, _Target])

    def pinned(self, name: str) -> int | None:
        """The version of a model that must answer, None for the newest."""
        version = self.serve.get(name, "newest")
        return None if version == "newest" else version

    def choose(self, name: str, versions: Sequence[int]) -> int:
        """The one of its versions, ascending, that answers. Raises BundleNotFoundError when it is not there."""
        pinned = self.pinned(name)
        if pinned is not None and pinned not in versions:
            raise BundleNotFoundError(
                f"{CHOICES}: {name} has no version {pinned} to serve; it has {', '.join(map(str, versions))}"
            )
        return pinned or versions[-1]

    def check_pinned(self, known: Mapping[str, Sequence[int]]) -> None:
        """Raises BundleNotFoundError for a pin of a model that is not there: a name that is mistyped pins nothing."""
        for name in self.serve:
            if name not in known:
                raise BundleNotFoundError(f"{CHOICES}: [serve] names {name}, which is not there{propose(name, known)}")

    def check_aliases(self, known: Mapping[str, Sequence[int]]) -> None:
        """Raises BundleNotFoundError for an alias of what is not there, UsageError for one that is a model's name."""
        for alias in self.aliases:
            name, version = self.target(alias)
            if alias in known:
                raise UsageError(f"{CHOICES}: the alias {alias} is a model's name")
            if name not in known or (version and version not in known[name]):
                raise BundleNotFoundError(f"{CHOICES}: {alias} stands for {self.aliases[alias]}, which is not there")

    def target(self, alias: str) -> Version:
        """What an alias stands for, with version 0 where it follows the model."""
        name, _, version = self.aliases[alias].partition("/")
        return name, int(version or 0)


@dataclass(frozen=True)
class Seen:
    """versions: by name, ascending, never empty; marks: of the versions that were asked about"""

    versions: Mapping[str, Sequence[int]]
    choices: Choices
    marks: Mapping[Version, Mark]


@dataclass(frozen=True)
class VersionState:
    """reason: why it is not READY, empty when it is."""

    name: str
    version: int
    state: State
    reason: str


def look(folder: Path, marked: Collection[Version] = ()) -> Seen:
    """marked: whose files are to be marked, see `mark_files`

    Raises BundleNotFoundError when there is nothing to serve, FileAccessError, and UsageError for a `versions.toml`
    that says nothing that can be understood.
    """
    found = find_bundles(folder)
    if not found:
        if is_bundle(folder):
            raise BundleNotFoundError(
                f"{folder} is a model by itself, and a repository holds each as NAME/VERSION: give the folder "
                "above, or put the model into such folders"
            )
        raise BundleNotFoundError(
            f"{folder} holds no bundle as NAME/VERSION; give the folder that `ferryman export -o` wrote to"
        )
    marks = {key: mark_files(folder / key[0] / str(key[1])) for key in marked}
    choices = _read_choices(folder / CHOICES)
    if find_bundles(folder) != found:  # a folder that went meanwhile would look like one with less, and without choices
        return look(folder, marked)
    return Seen(found, choices, marks)


def mark_files(folder: Path) -> Mark:
    """Names, sizes and times of all files, which tell whether a version that was refused has been mended since."""
    try:
        found = [(path, path.stat()) for path in folder.rglob("*") if not path.is_dir()]
    except OSError:  # one that went meanwhile: the next look tells
        return frozenset()
    return frozenset((str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns) for path, stat in found)


def reason_of(error: BaseException, folder: Path) -> str:
    """Why a version can't be served, for callers, who don't learn where the repository lies."""
    if not isinstance(error, FerrymanError):
        return "an unexpected error, see the server's log"
    return str(error).replace(f"{folder}/", "")


def _read_choices(file: Path) -> Choices:
    try:
        return Choices.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Choices()
    except OSError as error:
        raise FileAccessError(f"can't read {file}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:  # of the encoding or of TOML
        raise UsageError(f"{file} is not TOML: {error}") from error
