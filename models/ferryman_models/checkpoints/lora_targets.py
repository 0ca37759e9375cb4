"""Which layers of its base a LoRA adapter must have weights for, by its configuration.

peft trains every layer that `target_modules` names, and says nothing when a file that was cut or saved in parts lacks
some of them: the base's weights would stay there as they were.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from ferryman_models.checkpoints.lora import Adapter, AdapterFacts

Rename = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]

# What the layers of a block are called by transformers 5, by transformers 4, and by timm: an adapter that lacks every
# layer of one kind shows nowhere how it would have spelled it.
_IN_BLOCKS = (
    *(f"attention.{part}_proj" for part in "qkvo"),
    *(f"attention.attention.{part}" for part in ("query", "key", "value")),
    *("attention.output.dense", "intermediate.dense", "output.dense"),
    *("mlp.fc1", "mlp.fc2", "fc1", "fc2"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.weights_in", "mlp.weights_out"),
    *(f"{kind}.{part}_proj" for kind in ("self_attn", "encoder_attn") for part in ("q", "k", "v", "o", "out")),
    *("attn.qkv", "attn.proj"),
)
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def find_missing(
    adapter: Adapter, base: Mapping[str, Tensor], changed: set[str], replaced: set[str], rename: Rename
) -> list[str]:
    """What the adapter lacks of the layers, biases and whole modules that its configuration names, by its own names.

    base: all tensors; changed: the names of those that factors are added to; replaced: of those that are exchanged
    rename: from the adapter's names to the base's
    """
    facts = adapter.facts
    layers = [name for name in _candidates(adapter.factors, base) if is_target(name, facts)]
    whole = [_partner(name) for name in adapter.saved if _in_saved_module(name, facts)]
    biases = [f"{name}.bias" for name in adapter.factors] if facts.bias == "lora_only" else []
    wanted = [(name, f"{name}.weight", changed) for name in layers]
    wanted += [(name, name, replaced) for name in (*whole, *biases)]
    missing: dict[frozenset[str], str] = {}
    for name, tensor, there in wanted:
        own = frozenset(rename({tensor: torch.empty(2, 1)}).keys() & base.keys())  # empty where there is no such layer
        if not own <= there:
            missing.setdefault(own, name)  # the same layer may have two spellings, the adapter's own comes first
    biases = [name for name in base if name.endswith(".bias") and name not in replaced] if facts.bias == "all" else []
    return [*missing.values(), *biases]


def is_target(name: str, facts: AdapterFacts) -> bool:
    """Whether peft gives factors to the layer of this name, following its `check_target_module_exists`."""
    excluded, targets = facts.exclude_modules, facts.target_modules
    if targets is None or (excluded and _is_named(name, excluded)) or _in_saved_module(name, facts):
        return False
    if isinstance(targets, str) or facts.layers_to_transform in (None, ()):
        return _is_named(name, targets)
    patterns = facts.layers_pattern or r"[^.]*"
    # The first number behind a pattern; without one, the first that has two names before it.
    start = r"(?:^|.*?\.)" if facts.layers_pattern else r".*?\."
    found = [
        match
        for pattern in ((patterns,) if isinstance(patterns, str) else patterns)
        if (match := re.match(rf"{start}{pattern}\.(?P<number>\d+)\.", name))
    ]
    indices = facts.layers_to_transform
    chosen = (indices,) if isinstance(indices, int) else indices
    return bool(found) and int(found[0]["number"]) in (chosen or ()) and _is_named(name, targets)


def _is_named(name: str, names: str | tuple[str, ...]) -> bool:
    """By a regular expression of the whole name, or by one of the endings."""
    if isinstance(names, str):
        return re.fullmatch(names, name) is not None
    return any(f".{name}".endswith(f".{ending}") for ending in names)


def _in_saved_module(name: str, facts: AdapterFacts) -> bool:
    return any(f".{module}." in f".{name}." for module in facts.modules_to_save or ())


def _candidates(modules: Iterable[str], base: Mapping[str, Tensor]) -> Iterator[str]:
    """Names of layers like those of `modules`: of other numbers, and other layers in the same blocks; not all exist."""
    count = 1 + max((int(number) for name in base for number in _NUMBER.findall(name)), default=0)
    pairs: dict[tuple[str, str], None] = {}
    for module in modules:
        for match in _NUMBER.finditer(module):
            pairs[module[: match.start()], module[match.end() + 1 :]] = None
    for stem in dict.fromkeys(stem for stem, _ in pairs if not _NUMBER.search(stem)):
        # An encoder's blocks and a decoder's have the same names.
        for other in (stem, stem.replace("encoder.", "decoder."), stem.replace("decoder.", "encoder.")):
            pairs |= dict.fromkeys((other, tail) for tail in _IN_BLOCKS)
    names = (f"{stem}{number}.{tail}" for stem, tail in pairs for number in range(count))
    yield from dict.fromkeys((*modules, *names))


def _partner(name: str) -> str:
    """The bias of a weight, the weight of a bias."""
    module, _, kind = name.rpartition(".")
    return f"{module}.{'weight' if kind == 'bias' else 'bias'}"
