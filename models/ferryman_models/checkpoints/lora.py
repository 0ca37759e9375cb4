"""LoRA adapters as `peft` saves them: adapter_config.json and adapter_model.safetensors or .bin.

An adapter adds a product of two thin matrices to some of its base's weights (arXiv:2106.09685), and may bring biases
and whole modules of its own, such as a new head. `lora_merge` puts it into the base.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from torch import Tensor

from ferryman.errors import CheckpointError
from ferryman.files import sha256_file
from ferryman_models.checkpoints.tensors import read_json, read_state

CONFIG_NAME = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
Positive = Annotated[int, Field(ge=1)]
Patterns = str | tuple[str, ...] | dict[str, float] | None

# Facts of training and of peft's own bookkeeping. `fan_in_fan_out` concerns the transposed layers of GPT-2: like peft
# we ignore it, all layers here being plain. VeLoRA changes the backward pass alone, a group size nothing by itself.
_BOOKKEEPING = {
    "task_type",
    "auto_mapping",
    "peft_version",
    "revision",
    "inference_mode",
    "runtime_config",
    "lora_dropout",
    "fan_in_fan_out",
    "megatron_core",
    "ensure_weight_tying",
    "eva_config",
    "loftq_config",
    "lora_ga_config",
    "corda_config",
    "velora_config",
    "qalora_group_size",
}
# Ways to begin training that leave the base's weights as they are; the others train on a base that is no longer ours.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
# peft adds both of these for a classifier, whatever its head is called.
_EITHER_HEAD = {"classifier", "score"}
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<side>[AB])\.(?P<kind>weight|bias)|lora_magnitude_vector(?:\.weight)?)"
)


class AdapterFacts(BaseModel):
    """adapter_config.json. Keys that are not named here, and not of training alone, must be off: see `read_adapter`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    peft_type: Literal["LORA"]
    r: Positive = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    rank_pattern: dict[str, Positive] | None = None
    alpha_pattern: dict[str, float] | None = None
    target_modules: str | tuple[str, ...] | None = None
    exclude_modules: str | tuple[str, ...] | None = None
    layers_to_transform: int | tuple[int, ...] | None = None
    layers_pattern: str | tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] | None = None
    init_lora_weights: bool | str | None = True
    base_model_name_or_path: str | None = None

    @field_validator("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")
    @classmethod
    def _check_patterns(cls, value: Patterns, facts: ValidationInfo) -> Patterns:
        """Of modules one text is an expression of the whole name, several are endings; all others go into a larger."""
        modules = facts.field_name in ("target_modules", "exclude_modules")
        for pattern in (value,) if isinstance(value, str) else () if modules else value or ():
            try:
                re.compile(pattern if modules else rf"x{pattern}(?P<number>)")
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return value


@dataclass(frozen=True)
class Factors:
    """What is added to one weight: `scale * up @ down`.

    down: (rank, in) or, for a convolution, (rank, in, rows, columns); up: (out, rank) or (out, rank, 1, 1)
    magnitude: (out,) norms that the rows of the sum are brought to, of a DoRA (arXiv:2402.09353)
    bias: (out,) added to the layer's bias, times the scale
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None
    bias: Tensor | None = None

    def delta(self) -> Tensor:
        """(out, in) or (out, in, rows, columns)."""
        product = self.up.flatten(1) @ self.down.flatten(1)
        return (product * self.scale).reshape(len(self.up), *self.down.shape[1:])


@dataclass(frozen=True)
class Adapter:
    """factors: by the layer's name; saved: whole tensors that take the base's place, by their names; both fp32.

    Names are those of the base's module when the adapter was trained, which need not be those of the base's file.
    sha256: of the lines `DIGEST  NAME` of its two files, the configuration too since it holds the scales
    """

    folder: Path
    facts: AdapterFacts
    factors: dict[str, Factors]
    saved: dict[str, Tensor]
    sha256: str

    def sha256_with(self, base: str) -> str:
        """The digest of a base with this adapter: of the lines `DIGEST  base` and `DIGEST  adapter`."""
        return hashlib.sha256(f"{base}  base\n{self.sha256}  adapter\n".encode()).hexdigest()

    def notes(self) -> tuple[str, ...]:
        """What the user should know."""
        base = self.facts.base_model_name_or_path
        merged = (
            f"the LoRA adapter {self.folder} is merged: {len(self.factors)} layers, {len(self.saved)} whole tensors"
        )
        return (merged, f"the adapter says that its base is {base}") if base else (merged,)


def read_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`. Raises CheckpointError for one that can't be followed to the letter, with the reason."""
    path = folder / CONFIG_NAME
    facts = _read_facts(path)
    weights = next((folder / name for name in _WEIGHTS if (folder / name).exists()), None)
    if weights is None:
        raise CheckpointError(f"{folder} has no adapter's weights; looked for {', '.join(_WEIGHTS)}")
    tensors = {name.removeprefix("base_model.model."): t for name, t in read_state([weights]).tensors.items()}
    parts: dict[str, dict[str, Tensor]] = {}
    saved: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in tensors.items():
        if match := _FACTOR.fullmatch(name):
            part = match["side"] + "." + match["kind"] if match["side"] else "magnitude"
            parts.setdefault(match["module"], {})[part] = tensor
        elif ".original_module." not in name:  # the base's own head, of which peft keeps a copy with bias "all"
            plain = name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
            if not _is_saved(plain, facts):
                unknown.append(name)
            saved[plain] = tensor
    if unknown:
        raise CheckpointError(f"{weights}: {list_names(unknown)} can't be followed: {path.name} does not announce them")
    _check_saved(saved, facts, weights)
    factors = {module: _factors(module, found, facts, weights) for module, found in parts.items()}
    if not factors and not saved:
        raise CheckpointError(f"{weights} is empty")
    lines = "".join(f"{sha256_file(file)}  {file.name}\n" for file in (path, weights))
    return Adapter(folder, facts, factors, saved, hashlib.sha256(lines.encode()).hexdigest())


def list_names(names: list[str], most: int = 8) -> str:
    """The names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _read_facts(path: Path) -> AdapterFacts:
    try:
        facts = AdapterFacts.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise CheckpointError(f"{path}: {where}: {message}, got {first['input']!r}") from error
    others = {key: value for key, value in (facts.model_extra or {}).items() if key not in _BOOKKEEPING and value}
    if others:
        raise CheckpointError(
            f"{path}: {', '.join(sorted(others))} can't be followed; merge the adapter with peft (merge_and_unload), "
            "save the model, and export that folder"
        )
    if facts.init_lora_weights not in _PLAIN_STARTS:
        raise CheckpointError(
            f"{path}: init_lora_weights {facts.init_lora_weights!r} changed the base's weights before training; save "
            "the adapter as a plain one (peft: save_pretrained with path_initial_model_for_weight_conversion)"
        )
    return facts


def _is_saved(name: str, facts: AdapterFacts) -> bool:
    modules = facts.modules_to_save or ()
    return any(f".{module}." in f".{name}" for module in modules) or (facts.bias != "none" and name.endswith(".bias"))


def _check_saved(saved: dict[str, Tensor], facts: AdapterFacts, weights: Path) -> None:
    modules = set(facts.modules_to_save or ())
    missing = {module for module in modules if not any(f".{module}." in f".{name}" for name in saved)}
    if modules.issuperset(_EITHER_HEAD) and not missing.issuperset(_EITHER_HEAD):
        missing -= _EITHER_HEAD
    if missing:
        raise CheckpointError(f"{weights} lacks modules_to_save of its configuration: {', '.join(sorted(missing))}")


def _factors(module: str, parts: dict[str, Tensor], facts: AdapterFacts, weights: Path) -> Factors:
    wanted = ["A.weight", "B.weight"]
    wanted += ["magnitude"] if facts.use_dora else []
    wanted += ["B.bias"] if facts.lora_bias else []
    if sorted(wanted) != sorted(parts):
        raise CheckpointError(
            f"{weights}: {module} has {', '.join(sorted(parts))} of its LoRA, expected {', '.join(sorted(wanted))}"
        )
    down, up = parts["A.weight"], parts["B.weight"]
    rank = _find(facts.rank_pattern, module, facts.r)
    alpha = _find(facts.alpha_pattern, module, facts.lora_alpha)
    fits = down.numel() and up.numel() and down.ndim == up.ndim and down.ndim in (2, 4)
    if not fits or not len(down) == rank == up.shape[1] == up[0].numel():
        raise CheckpointError(
            f"{weights}: {module} has lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)}, expected rank {rank}"
        )
    scale = alpha / math.sqrt(rank) if facts.use_rslora else alpha / rank
    magnitude = parts["magnitude"].flatten() if facts.use_dora else None
    for extra in (magnitude, parts.get("B.bias")):
        if extra is not None and extra.shape != up.shape[:1]:
            raise CheckpointError(f"{weights}: {module} has lora_B {tuple(up.shape)} beside {tuple(extra.shape)}")
    return Factors(down, up, scale, magnitude, parts.get("B.bias"))


def _find(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """What the first pattern says that the end of the module's name matches, as peft has it."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
            return value
    return default
