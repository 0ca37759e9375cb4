"""The bundle's manifest: where it comes from, what it holds, and the digest of every file."""

import json
import stat
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from ferryman.errors import BundleCorruptError, BundleNotFoundError, BundlePathError, BundleSchemaError
from ferryman.specs import Facts, Fraction, ModelSpec, Side, Target

FILE_NAME = "manifest.json"
SCHEMA_VERSION = 1
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileFacts(Facts):
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0)]


# Of a source that was an ONNX file: its PyTorch source was not seen, its reference is that file in ONNX Runtime.
ONNX_ARCHITECTURE = "onnx"


class SourceFacts(Facts):
    """The checkpoint that was exported: as the user named it, its architecture, and the weights file's digest.

    format: which of the known ones it was in; notes: what was left out of it or assumed, for whoever uses the bundle
    """

    source: str
    architecture: str
    sha256: Sha256
    format: str = ""
    notes: tuple[str, ...] = ()


class VariantFacts(Facts):
    """One built artefact.

    size: (height, width) of its canvas; path: of its main file, relative to the bundle; operators: count per type
    structure: SHA-256 of a graph that engines are built of, without what its weights hold: where it is the same, an
    engine of the one can take the weights of the other; None of other graphs
    notes: on how it was built, for whoever uses it
    """

    target: Target
    size: tuple[Side, Side]
    path: str
    operators: dict[str, int]
    structure: Sha256 | None = None
    notes: tuple[str, ...] = ()


class Tolerance(Facts):
    """How far a variant's answers may be from the PyTorch reference's, and why so far.

    max_abs: limit per output name; max_rel: likewise, relative to the largest magnitude in the sample's reference, for
    outputs without a scale of their own; an output in neither is recorded and not limited
    min_cosine: per output name, between answer and reference, for outputs that are vectors
    score_threshold, min_iou: every reference detection above the score must be matched one to one by class and IoU
    top1_agreement, matched_detections: share of golden samples, of detections, that must agree; where that is not all,
    one detection may be missed even if there are so few that it is a larger share
    tie_margin: another class than the reference's counts as agreement when the reference itself gives it a probability
    that is lower by no more than this: there are few golden samples, and a near tie says nothing
    pixel_agreement, mask_iou: of segments, see `mask_parity`
    """

    max_abs: dict[str, Annotated[float, Field(ge=0)]]
    max_rel: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    min_cosine: dict[str, Fraction] = Field(default_factory=dict)
    top1_agreement: Fraction
    matched_detections: Fraction
    tie_margin: Fraction = 0.0
    score_threshold: Fraction
    min_iou: Fraction
    pixel_agreement: Fraction = 0.999
    mask_iou: Fraction = 0.99
    reason: str

    def limit(self, output: str, reference: NDArray[Any]) -> float | None:
        """The largest absolute error that this output of a sample may have; None when it is not limited."""
        if output in self.max_rel:
            return self.max_rel[output] * float(np.abs(reference).max(initial=0.0))
        return self.max_abs.get(output)


class Manifest(Facts):
    """specs: of each canvas size that the model was exported at; they differ in nothing else
    files: every file of the bundle but this manifest and `certificates/`, by its path inside the bundle
    """

    schema_version: int
    name: str
    created: str
    source: SourceFacts
    specs: Annotated[tuple[ModelSpec, ...], Field(min_length=1)]
    variants: Annotated[tuple[VariantFacts, ...], Field(min_length=1)]
    tolerances: dict[str, Tolerance]
    tools: dict[str, str]
    files: dict[str, FileFacts]

    @model_validator(mode="after")
    def _check(self) -> Self:
        sizes = [spec.preprocess.size for spec in self.specs]
        if len(set(sizes)) < len(sizes):
            raise ValueError(f"a size stands twice among {sizes}")
        if len({(spec.task, spec.labels) for spec in self.specs}) > 1:
            raise ValueError("the sizes differ in task or labels")
        for target in {str(variant.target) for variant in self.variants}:
            built = [variant.size for variant in self.variants if str(variant.target) == target]
            if sorted(built) != sorted(sizes):
                raise ValueError(f"{target} has variants of the sizes {built}, expected one of each of {sizes}")
        return self


def sized_name(name: str, index: int, spec: ModelSpec) -> str:
    """Name of a file that there is once a size, `model.onnx` for the first and then `model-800x1066.onnx`.

    index: of `spec` in the manifest's `specs`
    """
    if index == 0:
        return name
    stem, dot, suffix = name.partition(".")
    height, width = spec.preprocess.size
    return f"{stem}-{height}x{width}{dot}{suffix}"


def read_manifest(folder: Path) -> tuple[Manifest, bytes]:
    """The manifest in `folder` and its raw bytes. Raises a BundleError that says what is wrong with it."""
    path = folder / FILE_NAME
    try:
        if path.is_symlink():
            raise BundlePathError(f"{path} is a link; bundles hold plain files only")
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for ever
            raise BundleCorruptError(f"{path} is not a plain file")
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleNotFoundError(f"{folder} is not a bundle: it has no {FILE_NAME}") from error
    except OSError as error:
        raise BundleCorruptError(f"{path} can't be read: {error.strerror}") from error
    try:
        facts = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleSchemaError(f"{path} is not a bundle's manifest: it can't be read as JSON ({error})") from error
    version = facts.get("schema_version") if isinstance(facts, dict) else None
    if type(version) is not int or version < 1:
        raise BundleSchemaError(f"{path} is not a bundle's manifest: it has no schema_version of 1 or more")
    if version > SCHEMA_VERSION:
        raise BundleSchemaError(
            f"{path} has schema {version}, this version of Ferryman reads up to {SCHEMA_VERSION}; upgrade Ferryman"
        )
    try:
        return Manifest.model_validate_json(raw), raw
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleSchemaError(f"{path} is not valid at {where or 'its root'}: {first['msg']}") from error
