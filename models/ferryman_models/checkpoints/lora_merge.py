"""Puts a LoRA adapter into the weights of its base."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from ferryman.errors import CheckpointError
from ferryman_models.checkpoints.lora import Adapter, Factors, list_names
from ferryman_models.checkpoints.lora_targets import Rename, find_missing
from ferryman_models.checkpoints.tensors import read_json


def merge_adapter(tensors: Mapping[str, Tensor], adapter: Adapter, rename: Rename, head: str) -> dict[str, Tensor]:
    """The tensors with the adapter in them, fp32.

    rename: brings tensors under the names that `tensors` have, and drops or splits what the format drops or splits
    there; each tensor is given to it alone, and what it does to a weight's rows is done to the adapter's alike
    head: what the names of the classifier's tensors begin with: they alone may be new or have other shapes
    Raises CheckpointError that lists layers that the base does not have, those of other shapes, and those that the
    adapter's configuration names and its file lacks.
    """
    merged = dict(tensors)
    unknown: list[str] = []
    misshapen: list[str] = []
    done: set[tuple[str, bool]] = set()
    for origin, name, change in _changes(adapter, rename):
        base = merged.get(name)
        free = change.whole and name.startswith(head)
        if base is None and not free:
            unknown.append(origin)
        elif base is not None and base.shape != change.value.shape and not free:
            misshapen.append(f"{origin} {tuple(change.value.shape)}, the base has {tuple(base.shape)}")
        elif (name, change.whole) in done:
            raise CheckpointError(f"{adapter.folder}: {origin} is there under two names")
        else:
            done.add((name, change.whole))
            merged[name] = change.value if base is None else change.apply(base)
    if unknown:
        raise CheckpointError(f"{adapter.folder}: its base has no {list_names(unknown)}; is it of another model?")
    if misshapen:
        raise CheckpointError(f"{adapter.folder} does not fit its base: {list_names(misshapen)}")
    changed, replaced = ({name for name, exchanged in done if exchanged is whole} for whole in (False, True))
    if missing := find_missing(adapter, tensors, changed, replaced, rename):
        raise CheckpointError(
            f"{adapter.folder} is incomplete: by its configuration it has weights of {list_names(missing)} too; "
            "was it cut, or saved in parts?"
        )
    return merged


def labels_with_adapter(adapter: Adapter, base: tuple[str, ...], classes: int) -> tuple[str, ...]:
    """One label a class of an adapter's head: of the config.json beside it, else the base's if the number fits, else
    `LABEL_0` and so on.

    Raises CheckpointError when the adapter's own do not fit.
    """
    path = adapter.folder / "config.json"
    if path.exists():
        try:
            own = TypeAdapter(dict[int, str] | None).validate_python(read_json(path).get("id2label"))
        except ValidationError as error:
            raise CheckpointError(f"{path}: id2label must name classes by their numbers") from error
        if own is not None and sorted(own) != list(range(classes)):
            raise CheckpointError(f"{path}: id2label names {len(own)} classes, the head has {classes}")
        if own is not None:
            return tuple(own[index] for index in range(classes))
    return base if len(base) == classes else tuple(f"LABEL_{index}" for index in range(classes))


@dataclass(frozen=True)
class _Change:
    """Takes a tensor's place when `whole`; else is added to it, and rows are brought to the norms of `magnitude`."""

    value: Tensor
    whole: bool = False
    magnitude: Tensor | None = None

    def apply(self, base: Tensor) -> Tensor:
        if self.whole:
            return self.value
        weight = base + self.value
        if self.magnitude is None:
            return weight
        rows = self.magnitude / weight.flatten(1).norm(dim=1)
        return weight * rows.reshape(-1, *[1] * (weight.ndim - 1))


def _changes(adapter: Adapter, rename: Rename) -> Iterator[tuple[str, str, _Change]]:
    """The adapter's name of a tensor or layer, the base's name, and what happens to it: whole tensors first."""
    for name, tensor in adapter.saved.items():
        for renamed, part in rename({name: tensor}).items():
            yield name, renamed, _Change(part, whole=True)
    for module, factors in adapter.factors.items():
        for renamed, change in _additions(module, factors, rename):
            yield module, renamed, change


def _additions(module: str, factors: Factors, rename: Rename) -> Iterator[tuple[str, _Change]]:
    weight = f"{module}.weight"
    magnitudes = {} if factors.magnitude is None else rename({weight: factors.magnitude})
    for renamed, delta in rename({weight: factors.delta()}).items():
        yield renamed, _Change(delta, magnitude=magnitudes.get(renamed))
    if factors.bias is not None:
        for renamed, bias in rename({f"{module}.bias": factors.bias * factors.scale}).items():
            yield renamed, _Change(bias)
