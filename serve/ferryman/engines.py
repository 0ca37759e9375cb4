"""Device-bound engines: built on the device from a bundle's portable file, kept beside it with their facts.

They lie in `engines/` beside the ONNX file, outside the bundle's digests. The facts are a JSON file of their own: an
engine is exactly what the runtime wrote.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from ferryman.errors import EngineError
from ferryman.files import replace_file, sha256_file
from ferryman.manifest import Sha256
from ferryman.specs import Facts, ModelSpec, Target

FOLDER = "engines"
PORTABLE = "portable"  # the compute capability of an engine for many GPUs
Shape = tuple[int, ...]


class EngineKey(Facts):
    """What an engine is made from and for; another key is another engine.

    sha256: of the ONNX file, whose types are the precision; profiles: least, usual and largest shape of each input
    runtime: its name and version; capability: the GPU's compute capability, such as 8.9, or `PORTABLE`
    """

    sha256: Sha256
    target: str
    profiles: dict[str, tuple[Shape, Shape, Shape]]
    runtime: str
    capability: str

    @property
    def digest(self) -> str:
        """16 hexadecimal digits."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def batch(self) -> int:
        """The largest that the engine takes in one run."""
        return max(largest[0] for _, _, largest in self.profiles.values())


class EngineFacts(Facts):
    """An engine's key, its file, and how it was built.

    gpu: name of the one that it was built on, empty for none; seconds: that it took
    products: precision of each matrix product with weights in the typed network, by its name
    """

    key: EngineKey
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0)]
    gpu: str
    created: str
    seconds: Annotated[float, Field(ge=0)]
    products: dict[str, str]


@dataclass(frozen=True)
class Engine:
    path: Path
    facts: EngineFacts


def make_key(onnx: Path, target: Target, spec: ModelSpec, batch: int, runtime: str, capability: str) -> EngineKey:
    """The key of an engine for 1 to `batch` pictures of the spec's size."""
    profiles = {
        tensor.name: (_shape(tensor.shape, 1), _shape(tensor.shape, 1), _shape(tensor.shape, batch))
        for tensor in spec.inputs
    }
    return EngineKey(
        sha256=sha256_file(onnx), target=str(target), profiles=profiles, runtime=runtime, capability=capability
    )


def _shape(shape: tuple[int | str, ...], batch: int) -> Shape:
    return tuple(size if isinstance(size, int) else batch for size in shape)


def engine_path(onnx: Path, key: EngineKey) -> Path:
    return onnx.parent / FOLDER / f"{onnx.stem}-{key.digest}.engine"


def find_engines(onnx: Path) -> tuple[Engine, ...]:
    """All engines of an ONNX file whose facts can be read, the newest first."""
    found: list[Engine] = []
    for path in (onnx.parent / FOLDER).glob(f"{onnx.stem}-*.engine"):
        try:
            facts = EngineFacts.model_validate_json(path.with_suffix(".json").read_bytes())
        except (OSError, ValidationError):
            continue  # half of a pair: a build that ended between the two files, and is built again
        if engine_path(onnx, facts.key) == path:
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
    with replace_file(path.with_suffix(".json")) as temporary:
        temporary.write_text(facts.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Engine(path, facts)


def choose_engine(onnx: Path, target: Target, runtime: str, capability: str) -> Engine:
    """The newest engine that suits this machine. Raises EngineError that says what the others are for."""
    engines = [one for one in find_engines(onnx) if one.facts.key.target == str(target)]
    rebuild = f"build it here with: ferryman build BUNDLE --target {target}"
    if not engines:
        raise EngineError(f"can't load {onnx}: {target} runs an engine, and there is none; {rebuild}")
    digest = sha256_file(onnx)
    for engine in engines:
        if mismatch(engine.facts.key, digest, runtime, capability) is None:
            return engine
    why = mismatch(engines[0].facts.key, digest, runtime, capability)
    raise EngineError(f"can't load {onnx}: the engine {engines[0].path.name} is {why}; {rebuild}")


def mismatch(key: EngineKey, sha256: str, runtime: str, capability: str) -> str | None:
    """What an engine was built for that this machine is not, or None when it suits."""
    if key.sha256 != sha256:
        return "of another ONNX file"
    if key.runtime != runtime:
        return f"of {key.runtime} and this is {runtime}"
    if key.capability not in (capability, PORTABLE):
        return f"for GPUs of compute capability {key.capability} and this one has {capability}"
    return None


def count_precisions(layers: Sequence[Mapping[str, object]], products: Iterable[str]) -> list[tuple[str, str, bool]]:
    """Kind and precision of an engine's layers as its inspector tells them, and the network's products among them.

    layers: of `EngineInspector.get_engine_information` in JSON with detailed verbosity, TensorRT 10's or 11's fields
    products: their names, see `EngineFacts`; one that no layer names was fused out of sight, and counts as `unknown`
    Returns one entry a layer, and one a product, for `attest.attestation`.
    """
    found = [(str(layer.get("LayerType", "unknown")), layer_precision(layer), False) for layer in layers]
    named = {name: layer for layer in layers for name in layer_names(layer)}
    for name in products:
        layer = named.get(name)
        found.append(("product", layer_precision(layer) if layer is not None else "unknown", True))
    return found


# The inspector's words: `Half`, `FP16`, `Row major linear FP16 format`.
_WORDS = {
    "bf16": ("bf16", "bfloat16"),
    "fp16": ("fp16", "half"),
    "fp8": ("fp8",),
    "int8": ("int8",),
    "fp32": ("fp32", "float"),
}


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
