"""Device-bound engines: built on the device from a bundle's portable file, kept beside it with their facts.

They lie in `engines/` beside the ONNX file, outside the bundle's digests. The facts are a JSON file of their own: an
engine is exactly what the runtime wrote.
"""

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from ferryman.errors import EngineError
from ferryman.files import replace_file, sha256_file, write_text
from ferryman.manifest import Sha256
from ferryman.specs import Facts, ModelSpec, Target

FOLDER = "engines"
PORTABLE = "portable"  # the compute capability of an engine for many GPUs
Shape = tuple[int, ...]


class Host(Facts):
    """What an engine is built by and runs in: nothing else can load it.

    runtime: its name and version; capability: the GPU's compute capability, such as 8.9, or `PORTABLE`
    machine: of the processor, such as x86_64: GPUs of one capability come with others too
    """

    runtime: str
    capability: str
    machine: str


class EngineKey(Facts):
    """What an engine is made from and for; another key is another engine.

    sha256: see `digest_graph`; the types in the graph are the precision
    profiles: ranges of batches that it is tuned for, each the least, usual and largest shape of every input
    refittable: whether other weights can be put into it, which costs what is otherwise worked out from weights
    """

    sha256: Sha256
    target: str
    profiles: tuple[dict[str, tuple[Shape, Shape, Shape]], ...]
    host: Host
    refittable: bool = False

    @property
    def digest(self) -> str:
        """16 hexadecimal digits."""
        text = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def batches(self) -> tuple[tuple[int, int], ...]:
        """The least and the largest batch of each profile, ascending."""
        first = [next(iter(profile.values())) for profile in self.profiles]
        return tuple((least[0], largest[0]) for least, _, largest in first)

    @property
    def batch(self) -> int:
        """The largest that the engine takes in one run."""
        return self.batches[-1][1]


class EngineFacts(Facts):
    """An engine's key, its file, and how it was built.

    gpu: name of the one that it was built on, empty for none; seconds: that it took
    pace: of TensorRT's steps as it built, see `runtimes.pace`
    products: precision of each matrix product with weights in the typed network, by its name
    refitted: SHA-256 of the engine that it is, with other weights; None when it was built
    """

    key: EngineKey
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0)]
    gpu: str
    created: str
    seconds: Annotated[float, Field(ge=0)]
    pace: tuple[int, ...]
    products: dict[str, str]
    refitted: Sha256 | None = None


@dataclass(frozen=True)
class Engine:
    path: Path
    facts: EngineFacts


def digest_graph(onnx: Path) -> str:
    """SHA-256 of an ONNX file, and of its weights too where they lie in a file beside it."""
    weights = onnx.with_name(f"{onnx.name}.data")
    digests = [sha256_file(path) for path in (onnx, weights) if path.exists()]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def make_key(
    onnx: Path, target: Target, spec: ModelSpec, batch: int, host: Host, refittable: bool = False
) -> EngineKey:
    """The key of an engine for 1 to `batch` pictures of the spec's size: one profile for 1, one for more."""
    ranges = [(1, 1)] if batch == 1 else [(1, 1), (2, batch)]
    profiles = tuple(
        {
            tensor.name: (_shape(tensor.shape, least), _shape(tensor.shape, most), _shape(tensor.shape, most))
            for tensor in spec.inputs
        }
        for least, most in ranges
    )
    digest = digest_graph(onnx)
    return EngineKey(sha256=digest, target=str(target), profiles=profiles, host=host, refittable=refittable)


def _shape(shape: tuple[int | str, ...], batch: int) -> Shape:
    return tuple(size if isinstance(size, int) else batch for size in shape)


def engine_path(onnx: Path, key: EngineKey) -> Path:
    return onnx.parent / FOLDER / f"{onnx.stem}-{key.digest}.engine"


def find_engines(onnx: Path) -> tuple[Engine, ...]:
    """All engines of an ONNX file whose facts can be read, the newest first."""
    return tuple(one for one in find_neighbours(onnx) if engine_path(onnx, one.facts.key) == one.path)


def find_neighbours(onnx: Path) -> tuple[Engine, ...]:
    """Engines of an ONNX file and of those beside it, which are the same model at other sizes; the newest first."""
    found: list[Engine] = []
    for path in (onnx.parent / FOLDER).glob("*.engine"):
        try:
            facts = EngineFacts.model_validate_json(path.with_suffix(".json").read_bytes())
        except (OSError, ValidationError):
            continue  # half of a pair: a build that ended between the two files, and is built again
        found.append(Engine(path, facts))
    return tuple(sorted(found, key=lambda one: one.facts.created, reverse=True))


def read_engine(path: Path, facts: EngineFacts) -> bytes:
    """The engine's bytes. Raises EngineError when they are not those that were built."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path} can't be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != facts.sha256:
        raise EngineError(f"{path} is not the engine that was built: its SHA-256 differs; delete it and build again")
    return data


def write_engine(onnx: Path, data: bytes, facts: EngineFacts) -> Engine:
    """The engine, then its facts: one without facts is none. Raises FileAccessError."""
    path = engine_path(onnx, facts.key)
    with replace_file(path) as temporary:
        temporary.write_bytes(data)
    write_text(path.with_suffix(".json"), facts.model_dump_json(indent=1) + "\n")
    return Engine(path, facts)


def choose_engine(onnx: Path, target: Target, host: Host) -> Engine:
    """The newest engine that suits this machine, one that takes other weights only where there is no other.

    Raises EngineError that says what the others are for.
    """
    engines = [one for one in find_engines(onnx) if one.facts.key.target == str(target)]
    engines.sort(key=lambda one: one.facts.key.refittable)
    bundle = onnx.parents[2]  # BUNDLE/variants/TARGET/model.onnx
    rebuild = f"build it here with: ferryman build {shlex.quote(str(bundle))} --target {target}"
    if not engines:
        raise EngineError(f"can't load {onnx}: {target} runs an engine, and there is none; {rebuild}")
    digest = digest_graph(onnx)
    reasons = [mismatch(engine.facts, digest, host) for engine in engines]
    if None in reasons:
        return engines[reasons.index(None)]
    raise EngineError(f"can't load {onnx}: the engine {engines[0].path.name} is {reasons[0]}; {rebuild}")


def mismatch(facts: EngineFacts, sha256: str, host: Host) -> str | None:
    """What an engine was built for that this machine is not, or None when it suits. sha256: see `digest_graph`"""
    built = facts.key.host
    if facts.key.sha256 != sha256:
        return "of another ONNX file"
    if built.runtime != host.runtime:
        return f"of {built.runtime} and this is {host.runtime}"
    if built.machine != host.machine:
        return f"for {built.machine} and this machine is {host.machine}"
    if built.capability not in (host.capability, PORTABLE):
        on = f" ({facts.gpu})" if facts.gpu else ""
        return f"for GPUs of compute capability {built.capability}{on} and this one has {host.capability}"
    return None


def count_precisions(layers: Sequence[Mapping[str, object]], products: Iterable[str]) -> list[tuple[str, str, bool]]:
    """Kind and precision of an engine's layers as its inspector tells them, and the network's products among them.

    layers: of `EngineInspector.get_engine_information` in JSON with detailed verbosity, TensorRT 10's or 11's fields
    products: their names, see `EngineFacts`; one that no layer names was fused out of sight, and counts as `unknown`
    Returns one entry a layer, and one a product, for `attest.attestation`.
    """
    found = [(str(layer.get("LayerType", "unknown")), layer_precision(layer), False) for layer in layers]
    named: dict[str, set[str]] = {}
    for layer in layers:
        for name in layer_names(layer):
            named.setdefault(name, set()).add(layer_precision(layer))
    for name in products:
        # One that several layers compute, such as those of two profiles, runs in the widest of their precisions.
        told = named.get(name, ())
        found.append(("product", next((one for one in WIDEST if one in told), "unknown"), True))
    return found


# The inspector's words: `Half`, `FP16`, `Row major linear FP16 format`.
_WORDS = {
    "bf16": ("bf16", "bfloat16"),
    "fp16": ("fp16", "half"),
    "fp8": ("fp8",),
    "int8": ("int8",),
    "fp32": ("fp32", "float"),
}
WIDEST = ("fp32", "bf16", "fp16", "fp8", "int8")


def layer_precision(layer: Mapping[str, object]) -> str:
    """Of what a layer computes with: its weights where it tells, else its first input of a known type."""
    texts: list[str] = []
    weights = layer.get("Weights")
    if isinstance(weights, Mapping):
        texts.append(str(weights.get("Type", "")))
    for side in ("Inputs", "Outputs"):
        tensors = layer.get(side)
        for tensor in tensors if isinstance(tensors, list) else []:
            if isinstance(tensor, Mapping):
                texts.append(str(tensor.get("DataType") or tensor.get("Format/Datatype") or ""))
    for text in texts:
        for precision, words in _WORDS.items():
            if any(word in text.lower() for word in words):
                return precision
    return "none"


def layer_names(layer: Mapping[str, object]) -> set[str]:
    """Names of the network's layers that an engine's layer stands for."""
    noted = str(layer.get("Metadata", "")).replace("\x1f", "\x1e").split("\x1e")
    names = {one.partition("[ONNX Layer: ")[2].rstrip("]") for one in noted} - {""}
    return names | {part.strip() for part in str(layer.get("Name", "")).split(" + ")}
