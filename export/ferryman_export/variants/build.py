"""Variants into a bundle: each built, proved, and kept on a shelf until the bundle is whole, so that work resumes."""

import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ferryman.errors import ParityError
from ferryman.files import sha256_file, temporary_folder
from ferryman.golden import GoldenSamples
from ferryman.manifest import FileFacts, Tolerance, VariantFacts, sized_name
from ferryman.parity import ParityReport, check_parity
from ferryman.runtimes.base import Session
from ferryman.specs import Facts, ModelSpec, Target
from ferryman_export.build_html import render_build
from ferryman_export.parity_html import render_parity
from ferryman_export.prove import prove_loaded
from ferryman_export.steps import count_steps
from ferryman_export.variants import RECIPES
from ferryman_export.variants.base import BuildReport, Workpiece
from ferryman_export.variants.judge import strict
from ferryman_export.variants.rehearsal import find_version, load_artefact

FOLDER = "variants"
_RECIPES_VERSION = 10  # counts up whenever a recipe gives another artefact for the same input


class Built(Facts):
    """A variant in its folder: facts for the manifest, the proof on this machine, how it came about, and its files."""

    variant: VariantFacts
    parity: ParityReport
    build: BuildReport
    files: dict[str, FileFacts]


@dataclass(frozen=True)
class Shelf:
    """Finished variants of an unfinished bundle: a hidden folder in the repository, by what they are made from."""

    folder: Path

    def take(self, key: str, place: Path) -> Built | None:
        """Links a finished variant's files into `place`; None when there is none that is whole."""
        kept = self.folder / key
        try:
            built = Built.model_validate_json((kept / "built.json").read_bytes())
            if any(sha256_file(kept / name) != facts.sha256 for name, facts in built.files.items()):
                return None
            for name in built.files:
                _link(kept / name, place / name)
        except (OSError, ValidationError):  # none, one of another version, or one that another export cleared away
            return None
        return built

    def put(self, key: str, built: Built, place: Path) -> None:
        """Keeps what was built in `place`; whole or absent."""
        with temporary_folder(self.folder, key) as staging:
            new = staging / "kept"
            new.mkdir()
            for name in built.files:
                _link(place / name, new / name)
            (new / "built.json").write_text(built.model_dump_json(), encoding="utf-8")
            self.drop(key)
            with suppress(OSError):  # another export has kept the same meanwhile
                new.rename(self.folder / key)

    def drop(self, key: str) -> None:
        """Forgets a variant, once its bundle is there; the shelf goes with the last."""
        shutil.rmtree(self.folder / key, ignore_errors=True)
        with suppress(OSError):  # others are on it, or there is none
            self.folder.rmdir()


def _link(source: Path, place: Path) -> None:
    try:
        os.link(source, place)
    except OSError:  # a file system without links
        shutil.copyfile(source, place)


def build_variant(
    piece: Workpiece,
    index: int,
    target: Target,
    tolerance: Tolerance,
    bundle: Path,
    name: str,
    tools: Mapping[str, str],
    shelf: Shelf,
) -> tuple[str, Built]:
    """Builds and proves one target for one size in `bundle`, or takes it from the shelf; its key there comes first.

    index: of the size in the manifest; name: of the model; tools: versions, of which a change builds anew
    Raises ParityError when it is out of tolerance or not what its name says, ExportError, UsageError, EngineError.
    """
    folder = bundle / FOLDER / str(target)
    folder.mkdir(parents=True, exist_ok=True)
    stem = sized_name("model", index, piece.spec)
    key = _key(piece, stem, target, tolerance, tools)
    found = shelf.take(key, folder)
    if found is not None:
        piece.progress(f"{target}: finished before", 1, 1)
        return key, found
    before = set(folder.iterdir())
    piece.progress(f"{target}: build", 0, 1)
    artefact = RECIPES[str(target)](piece, target, tolerance, folder / stem)
    with load_artefact(artefact, target, piece.spec) as session:
        version = find_version(target)
        report, answers = prove_loaded(session, target, version, piece.golden, tolerance, piece.progress)
        report.raise_for_failures()
        held_out = judge_held_out(session, target, version, piece, tolerance) if piece.calibration else None
    if held_out is not None and not held_out.passed:
        raise ParityError(f"{target} on the held-out pictures: {held_out.failures[0]}")
    build = artefact.report.model_copy(update={"held_out": held_out})
    page = render_parity(name, report, piece.golden, answers, piece.spec)
    (folder / sized_name("parity.html", index, piece.spec)).write_text(page, encoding="utf-8")
    (folder / sized_name("build.json", index, piece.spec)).write_text(build.model_dump_json(indent=1), encoding="utf-8")
    if build.islands is not None:  # else there is nothing to see
        page = render_build(name, build)
        (folder / sized_name("build.html", index, piece.spec)).write_text(page, encoding="utf-8")
    variant = VariantFacts(
        target=target,
        size=piece.spec.preprocess.size,
        path=artefact.path.relative_to(bundle).as_posix(),
        operators=artefact.operators,
        structure=artefact.structure,
        notes=build.notes,
    )
    files = {
        path.name: FileFacts(sha256=sha256_file(path), size_bytes=path.stat().st_size)
        for path in sorted(set(folder.iterdir()) - before)
    }
    built = Built(variant=variant, parity=report, build=build, files=files)
    shelf.put(key, built, folder)
    return key, built


def judge_held_out(
    session: Session, target: Target, version: str, piece: Workpiece, tolerance: Tolerance
) -> ParityReport:
    """Parity on the pictures that calibration did not see, each alone, near ties counted. version: of the runtime"""
    pictures, limits = piece.held_out, strict(tolerance, len(piece.held_out))
    advance = count_steps(piece.progress, f"{target}: answer the held-out pictures", len(pictures))
    report = check_parity(session.run, pictures, piece.spec, limits, str(target), version, (1,), advance=advance)
    return report.model_copy(update={"errors": ()})


def _key(piece: Workpiece, stem: str, target: Target, tolerance: Tolerance, tools: Mapping[str, str]) -> str:
    facts = [
        str(_RECIPES_VERSION),
        stem,
        sha256_file(piece.graph),
        _digest(piece.golden, piece.spec),
        piece.calibration.facts.sha256 if piece.calibration else "",
        f"{target} {find_version(target)}",
        tolerance.model_dump_json(),
        *(f"{name} {version}" for name, version in sorted(tools.items())),
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _digest(golden: GoldenSamples, spec: ModelSpec) -> str:
    digest = hashlib.sha256()
    for name in spec.input_names:
        digest.update(golden.inputs[name].tobytes())
    return digest.hexdigest()
