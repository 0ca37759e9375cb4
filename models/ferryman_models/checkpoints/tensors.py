"""Weights from files: safetensors or PyTorch's own, whole or in shards. Nothing in them is ever executed."""

import hashlib
import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ferryman.errors import CheckpointError
from ferryman.files import sha256_file

# What a training script may have put the weights under.
_WRAPPERS = ("state_dict", "model")
_GLOBAL = re.compile(r"GLOBAL (\S+)")


# In the order in which they are looked for.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class StateFile:
    """Tensors by name, floating point ones as fp32.

    sha256: of the file; of several, of the lines `DIGEST  NAME` in the order of their names
    size_bytes: of the files; dtypes: the types that the weights are stored in
    """

    tensors: dict[str, Tensor]
    sha256: str
    size_bytes: int
    dtypes: tuple[str, ...]


def read_state(paths: list[Path]) -> StateFile:
    """All tensors of these files together. Raises CheckpointError for files that are no weights or overlap."""
    tensors: dict[str, Tensor] = {}
    dtypes: set[str] = set()
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"there is no weights file {path}")
        found = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
        twice = tensors.keys() & found.keys()
        if twice:
            raise CheckpointError(f"{path} holds {min(twice)}, which another shard holds too")
        dtypes |= {str(tensor.dtype).removeprefix("torch.") for tensor in found.values()}
        tensors |= {name: t.float() if t.is_floating_point() else t for name, t in found.items()}
    return StateFile(tensors, digest_files(paths), sum(path.stat().st_size for path in paths), tuple(sorted(dtypes)))


def digest_files(paths: list[Path]) -> str:
    """SHA-256 of one file, or of the lines `DIGEST  NAME` of several; see StateFile."""
    digests = sorted((path.name, sha256_file(path)) for path in paths)
    if len(digests) == 1:
        return digests[0][1]
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in digests).encode()).hexdigest()


def find_weights(folder: Path) -> list[Path]:
    """The weights files of a folder in Hugging Face's or timm's layout. Raises CheckpointError when there are none."""
    for name in _WEIGHTS:
        path = folder / name
        if path.exists():
            return find_shards(path) if name.endswith(".index.json") else [path]
    raise CheckpointError(f"{folder} has no weights; looked for {', '.join(_WEIGHTS)}")


def find_shards(index: Path) -> list[Path]:
    """The files that a `*.index.json` names, all in its own folder. Raises CheckpointError."""
    names = shard_names(index)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index} names shards that are not there: {', '.join(missing)}")
    return [index.parent / name for name in names]


def shard_names(index: Path) -> list[str]:
    """What a `*.index.json` names, sorted, whether it is there or not. Raises CheckpointError for other folders."""
    document = read_json(index)
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    names = {str(name) for name in cast("dict[str, object]", weight_map).values()}
    for name in sorted(names):
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{index} names the shard {name!r}, which lies outside its folder")
    return sorted(names)


def read_json(path: Path) -> dict[str, object]:
    """A JSON file that holds one object. Raises CheckpointError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} must hold one JSON object, it holds a {type(document).__name__}")
    return cast("dict[str, object]", document)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Raises CheckpointError for a damaged or truncated file, or one whose header lies about sizes."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{path} can't be read as safetensors: {error}") from error


def read_torch(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.pt`, `.pth` or `.bin` file; also from under "state_dict" or "model".

    Only tensors and plain containers are loaded. Raises CheckpointError for a file that asks for anything else,
    with the name of what it asked for, and for a damaged one.
    """
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = _GLOBAL.search(str(error))
        what = f"it asks to run {asked[1]}" if asked else "it is no plain pickle of tensors"
        raise CheckpointError(
            f"{path} is refused, {what}: only tensors are loaded, never code. "
            "Save the model's state_dict, best as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, MemoryError) as error:
        # An empty file's error says nothing.
        reason = (str(error).splitlines() or ["it is empty or cut short"])[0]
        raise CheckpointError(f"{path} can't be read as PyTorch weights: {reason}") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = cast("dict[str, object]", content)[wrapper]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected tensors by name")
    tensors = cast("dict[object, object]", content)
    other = [name for name, tensor in tensors.items() if not (isinstance(name, str) and isinstance(tensor, Tensor))]
    if other or not tensors:
        raise CheckpointError(f"{path} holds {other[:3] or 'nothing'}, expected tensors by name")
    return cast("dict[str, Tensor]", content)
