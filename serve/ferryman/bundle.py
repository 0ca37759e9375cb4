"""Bundle: an immutable directory with a model's variants, golden samples and proof."""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from ferryman.errors import (
    BundleCorruptError,
    BundleNotFoundError,
    BundlePathError,
    BundleSchemaError,
    FileAccessError,
    UsageError,
    propose,
)
from ferryman.files import sha256_file, temporary_folder, undisturbed
from ferryman.golden import FILE_NAME as GOLDEN
from ferryman.golden import GoldenSamples, load_golden
from ferryman.manifest import FILE_NAME, FileFacts, Manifest, Tolerance, VariantFacts, read_manifest, sized_name
from ferryman.specs import ModelSpec, Target

CERTIFICATES = "certificates"
_VERSION = re.compile("[1-9][0-9]*")


class Bundle:
    """An opened bundle: every file's digest was right when `open` returned.

    path: its folder, NAME/VERSION; digest: SHA-256 of the manifest, which holds every file's digest
    """

    def __init__(self, path: Path, manifest: Manifest, digest: str) -> None:
        self.path = path
        self.manifest = manifest
        self.digest = digest

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """The bundle in `path`, or the highest version in it when `path` is a NAME folder.

        Raises BundleNotFoundError, BundleSchemaError, BundlePathError or BundleCorruptError.
        """
        folder = Path(path)
        if not os.path.lexists(folder / FILE_NAME):
            versions = list_versions(folder)
            if versions:
                folder = folder / str(versions[-1])
        manifest, raw = read_manifest(folder)
        bundle = cls(folder, manifest, hashlib.sha256(raw).hexdigest())
        for name, facts in manifest.files.items():
            bundle._check_file(name, facts)
        for variant in manifest.variants:
            if variant.path not in manifest.files:
                raise BundleCorruptError(
                    f"{folder}: variant {variant.target} names {variant.path}, which has no digest"
                )
        return bundle

    def _check_file(self, name: str, facts: FileFacts) -> None:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
            raise BundlePathError(f"{self.path}: the manifest names {name!r}, which lies outside the bundle")
        place = self.path
        try:
            for part in pure.parts:
                place = place / part
                if place.is_symlink():
                    raise BundlePathError(
                        f"{self.path}: {name} is reached through a link; bundles hold plain files only"
                    )
            found = place.stat()
            if not stat.S_ISREG(found.st_mode):
                raise BundleCorruptError(f"{self.path}: {name} is not a plain file")
            if found.st_size != facts.size_bytes or sha256_file(place) != facts.sha256:
                raise BundleCorruptError(
                    f"{self.path}: {name} is not the file that was exported: its SHA-256 differs; export it again"
                )
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BundleCorruptError(f"{self.path}: {name} is missing; copy or export the bundle again") from error
        except OSError as error:
            raise BundleCorruptError(f"{self.path}: {name} can't be read: {error.strerror}") from error

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> int:
        """The number that its folder is called by, 0 when it was moved to a folder of another name."""
        name = self.path.absolute().name  # of `.`, for one
        return int(name) if _VERSION.fullmatch(name) else 0

    @property
    def spec(self) -> ModelSpec:
        """Of the first size; the others differ from it in the canvas alone."""
        return self.manifest.specs[0]

    def golden(self, index: int = 0) -> GoldenSamples:
        """The golden samples of the size with that index. Raises BundleCorruptError."""
        spec = self.manifest.specs[index]
        return load_golden(self.file(sized_name(GOLDEN, index, spec)), spec)

    def file(self, name: str) -> Path:
        """Path of a file that the manifest lists. Raises BundleCorruptError for any other."""
        if name not in self.manifest.files:
            raise BundleCorruptError(f"{self.path} holds no {name}")
        return self.path / name

    @property
    def targets(self) -> tuple[Target, ...]:
        """Those that it has variants for, in the order of the manifest; the first is what runs by default."""
        return tuple({str(variant.target): variant.target for variant in self.manifest.variants}.values())

    def variants(self, target: str | None = None) -> tuple[VariantFacts, ...]:
        """A variant a size, in the order of `specs`, for a target, by default the first. Raises UsageError."""
        have = [str(one) for one in self.targets]
        target = target or have[0]
        if target not in have:
            raise UsageError(f"{self.path} has no variant {target}; it has {', '.join(have)}{propose(target, have)}")
        found = {variant.size: variant for variant in self.manifest.variants if str(variant.target) == target}
        return tuple(found[spec.preprocess.size] for spec in self.manifest.specs)

    def tolerance(self, target: Target) -> Tolerance:
        """How far a variant's answers may be from PyTorch's. Raises BundleSchemaError when the manifest doesn't say."""
        tolerance = self.manifest.tolerances.get(target.precision)
        if tolerance is None:
            raise BundleSchemaError(
                f"{self.path}: the manifest has no tolerance for {target.precision}; export it again"
            )
        return tolerance

    def size_bytes(self, variant: VariantFacts) -> int:
        """Of a variant's main file and of those with its weights, such as model.bin and model.onnx.data, beside it."""
        main = PurePosixPath(variant.path)
        stem = main.name.partition(".")[0]
        return sum(
            facts.size_bytes
            for name, facts in self.manifest.files.items()
            if (place := PurePosixPath(name)).parent == main.parent and place.name.partition(".")[0] == stem
        )


def is_bundle(path: Path) -> bool:
    """Whether `path` is, or was meant to be, what `Bundle.open` takes."""
    return os.path.lexists(path / FILE_NAME) or bool(list_versions(path))


def list_versions(folder: Path) -> list[int]:
    """Versions in a NAME folder, ascending; empty when there is no such folder that can be read."""
    try:
        names = os.listdir(folder)
    except OSError:  # such as lost+found, which only root may read
        return []
    return sorted(
        int(name) for name in names if _VERSION.fullmatch(name) and os.path.lexists(folder / name / FILE_NAME)
    )


def find_bundles(repository: Path) -> dict[str, list[int]]:
    """Names and ascending versions in a model repository. Raises BundleNotFoundError when it is no folder."""
    try:
        children = sorted(repository.iterdir())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleNotFoundError(f"there is no model repository at {repository}") from error
    except OSError as error:
        raise FileAccessError(f"can't read {repository}: {error.strerror}") from error
    found = {child.name: list_versions(child) for child in children if not child.name.startswith(".")}
    return {name: versions for name, versions in found.items() if versions}


@dataclass
class NewVersion:
    """folder: where the bundle is put together; path: where it is, once it is there."""

    folder: Path
    path: Path | None = None


@contextmanager
def new_version(repository: Path, name: str) -> Generator[NewVersion, None, None]:
    """Gives an empty temporary folder that becomes `repository/name/VERSION` when the block ends without an error.

    VERSION is one above the highest there is when the block ends; nothing is ever overwritten.
    """
    with temporary_folder(repository, name) as staging:
        new = NewVersion(staging / "bundle")
        new.folder.mkdir()
        yield new
        with undisturbed():
            new.path = _put(new.folder, repository / name)


def _put(folder: Path, final: Path) -> Path:
    """Moves a version's folder into the first place that is free."""
    final.mkdir(exist_ok=True)
    version = _highest_number(final) + 1
    while True:
        try:
            return folder.rename(final / str(version))
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            version += 1  # another export took the number first


def _highest_number(folder: Path) -> int:
    return max((int(name) for name in os.listdir(folder) if _VERSION.fullmatch(name)), default=0)


def seal(folder: Path, facts: Mapping[str, object]) -> Manifest:
    """Writes the manifest over all files in `folder` but certificates; `facts` holds the Manifest's other fields."""
    outside = {folder / FILE_NAME, folder / CERTIFICATES}
    files = {
        path.relative_to(folder).as_posix(): FileFacts(sha256=sha256_file(path), size_bytes=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and outside.isdisjoint((path, *path.parents))
    }
    manifest = Manifest.model_validate({**facts, "files": files})
    (folder / FILE_NAME).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest
