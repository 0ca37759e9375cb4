"""Variants into a bundle: each built, proved, and kept on a shelf until the bundle is whole, so that work resumes."""

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ferryman.errors import ParityError
from ferryman.files import sha256_file
from ferryman.golden import GoldenSamples, Tensors
from ferryman.manifest import Tolerance, VariantFacts, sized_name
from ferryman.parity import ParityReport, check_parity, count_runs
from ferryman.proof import prove_session
from ferryman.specs import Facts, ModelSpec, Target
from ferryman_export.parity_html import render_parity
from ferryman_export.steps import count_steps
from ferryman_export.variants import RECIPES
from ferryman_export.variants.base import Artefact, BuildReport, Workpiece
from ferryman_export.variants.judge import strict
from ferryman_export.variants.rehearsal import find_version, load_artefact

FOLDER = "variants"
_RECIPES_VERSION = 1  # counts up whenever a recipe gives another artefact for the same input


class Built(Facts):
    """A variant in its folder: facts for the manifest, the proof on this machine, and how it came about.

    held_out: parity on the pictures that calibration did not see, None where there was none
    """

    variant: VariantFacts
    parity: ParityReport
    held_out: ParityReport | None
    build: BuildReport


@dataclass(frozen=True)
class Shelf:
    """Finished variants of an unfinished bundle: a hidden folder in the repository, by what they are made from."""

    folder: Path

    def take(self, key: str, place: Path) -> Built | None:
        """Links a finished variant's files into `place`; None when there is none."""
        kept = self.folder / key
        if not (kept / "built.json").exists():
            return None
        built = Built.model_validate_json((kept / "built.json").read_bytes())
        for path in (kept / "files").iterdir():
            _link(path, place / path.name)
        return built

    def put(self, key: str, built: Built, files: list[Path]) -> None:
        """Whole or absent: the record is written last."""
        kept = self.folder / key
        shutil.rmtree(kept, ignore_errors=True)
        (kept / "files").mkdir(parents=True)
        for path in files:
            _link(path, kept / "files" / path.name)
        (kept / "built.json").write_text(built.model_dump_json(), encoding="utf-8")

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


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
) -> Built:
    """Builds and proves one target for one size in `bundle`, or takes it from the shelf.

    index: of the size in the manifest; name: of the model; tools: versions, of which a change builds anew
    Raises ParityError when it is out of tolerance or not what its name says, ExportError, UsageError, EngineError.
    """
    folder = bundle / FOLDER / str(target)
    folder.mkdir(parents=True, exist_ok=True)
    key = _key(piece, target, tolerance, tools)
    found = shelf.take(key, folder)
    if found is not None:
        piece.progress(f"{target}: finished before", 1, 1)
        return found
    before = set(folder.iterdir())
    stem = sized_name("model", index, piece.spec)
    piece.progress(f"{target}: build", 0, 1)
    artefact = RECIPES[str(target)](piece, target, tolerance, folder / stem)
    report, answers, held_out = prove_artefact(artefact, target, piece, tolerance)
    report.raise_for_failures()
    if held_out is not None and not held_out.passed:
        raise ParityError(f"{target} on the held-out pictures: {held_out.failures[0]}")
    page = render_parity(name, report, piece.golden, answers, piece.spec)
    (folder / sized_name("parity.html", index, piece.spec)).write_text(page, encoding="utf-8")
    (folder / sized_name("build.json", index, piece.spec)).write_text(
        artefact.report.model_dump_json(indent=1), encoding="utf-8"
    )
    variant = VariantFacts(
        target=target,
        size=piece.spec.preprocess.size,
        path=artefact.path.relative_to(bundle).as_posix(),
        operators=artefact.operators,
    )
    built = Built(variant=variant, parity=report, held_out=held_out, build=artefact.report)
    shelf.put(key, built, sorted(set(folder.iterdir()) - before))
    return built


def prove_artefact(
    artefact: Artefact, target: Target, piece: Workpiece, tolerance: Tolerance
) -> tuple[ParityReport, Tensors, ParityReport | None]:
    """The proof on the golden samples, the answers to each of them alone, and parity on the held-out pictures."""
    golden, spec = piece.golden, piece.spec
    version = find_version(target)
    held_out = piece.held_out if piece.calibration is not None else None
    total = count_runs(len(golden)) + (len(held_out) if held_out else 0)
    advance = count_steps(piece.progress, f"compare {target} with PyTorch", total)
    judged = None
    with load_artefact(artefact, target, spec) as session:
        report = prove_session(session, golden, target, tolerance, version, advance=advance)
        answers = [session.run(golden.batch([index])) for index in range(len(golden))]
        if held_out is not None:
            judged = check_parity(
                session.run, held_out, spec, strict(tolerance), str(target), version, (1,), advance=advance
            ).model_copy(update={"errors": ()})
    return report, {name: np.concatenate([answer[name] for answer in answers]) for name in spec.output_names}, judged


def _key(piece: Workpiece, target: Target, tolerance: Tolerance, tools: Mapping[str, str]) -> str:
    facts = [
        str(_RECIPES_VERSION),
        sha256_file(piece.graph),
        _digest(piece.golden, piece.spec),
        piece.calibration.facts.sha256 if piece.calibration else "",
        str(target),
        tolerance.model_dump_json(),
        *(f"{name} {version}" for name, version in sorted(tools.items())),
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _digest(golden: GoldenSamples, spec: ModelSpec) -> str:
    digest = hashlib.sha256()
    for name in spec.input_names:
        digest.update(golden.inputs[name].tobytes())
    return digest.hexdigest()
