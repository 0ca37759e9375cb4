"""Which room may import what, read from the source, imports inside functions included."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"ferryman": "serve", "ferryman_models": "models", "ferryman_export": "export"}
LEARNING = {"torch", "torchvision", "timm", "transformers", "safetensors", "sklearn", "scipy"}
ONNX = {"onnx", "onnxscript", "onnx_ir"}


@dataclass(frozen=True)
class Room:
    """What a package may not import at all, and the extras whose packages it may."""

    forbidden: frozenset[str]
    extras: frozenset[str]


ROOMS = {
    "ferryman": Room(frozenset({"ferryman_models", "ferryman_export"} | LEARNING | ONNX), frozenset()),
    "ferryman_models": Room(
        frozenset({"ferryman_export", "onnxruntime"} | ONNX), frozenset({"export", "train", "transformers"})
    ),
    "ferryman_export": Room(frozenset(), frozenset({"bench", "export", "hub"})),
}
MODELS_MAY_USE = {"ferryman.specs", "ferryman.preprocess", "ferryman.errors", "ferryman.files"}
EXTRAS_OF_A_ROOM = {
    "bench",
    "export",
    "hub",
    "train",
    "transformers",
    "dev",
}  # any other extra adds a runtime or a tool for the device, and `ferryman` may import that


class Import(NamedTuple):
    module: str
    line: int
    lazy: bool


def _imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[Import]:
    """Every module named by an import of `module`: `from a.b import c` names `a.b` and, if it's one, `a.b.c`."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.Import():
                    for alias in child.names:
                        yield Import(alias.name, child.lineno, lazy)
                case ast.ImportFrom():
                    parents = module.split(".")
                    parents = parents[: len(parents) + is_package - child.level] if child.level else []
                    base = ".".join([*parents, *([child.module] if child.module else [])])
                    for alias in child.names:
                        inner = f"{base}.{alias.name}"
                        yield Import(inner if inner in _modules() else base, child.lineno, lazy)
                case ast.Call(
                    func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                    args=[ast.Constant(value=str(name)), *_],
                ):
                    yield Import(name, child.lineno, lazy)
                case _:
                    pass
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from visit(child, lazy or inside)

    return visit(tree, False)


@cache
def _modules() -> dict[str, Path]:
    """Every module of the three packages and its file."""
    found: dict[str, Path] = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT / folder).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def _is_command(module: str) -> bool:
    """Whether the module belongs to the command line, which may reach into the other rooms when asked to."""
    return re.match(r"ferryman\.(cli(_\w+)?|commands)(\.|$)", module) is not None


def _violations(module: str, imports: Iterator[Import]) -> list[str]:
    package = module.partition(".")[0]
    wrong: list[str] = []
    for target, line, lazy in imports:
        top = target.partition(".")[0]
        if top in ROOMS[package].forbidden:
            if not (_is_command(module) and lazy and top in FOLDERS):
                wrong.append(f"{module}:{line} imports {target}")
        elif package == "ferryman_models" and top == "ferryman" and target not in MODELS_MAY_USE:
            wrong.append(f"{module}:{line} imports {target}")
    return wrong


def _imports_of(module: str) -> Iterator[Import]:
    path = _modules()[module]
    return _imports(ast.parse(path.read_text(encoding="utf-8")), module, path.name == "__init__.py")


def test_no_room_imports_what_it_must_not() -> None:
    assert all(sum(name.split(".")[0] == package for name in _modules()) > 3 for package in FOLDERS)
    assert [line for module in _modules() for line in _violations(module, _imports_of(module))] == []


@cache
def _declared(package: str) -> frozenset[str]:
    """The distributions that a room may import: its dependencies, by normalized name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    wanted = ROOMS[package].extras | (set(extras) - EXTRAS_OF_A_ROOM)
    lines = [*project["dependencies"], *(line for extra in wanted for line in extras[extra])]
    return frozenset(_normalized(re.split(r"[^\w.-]", line)[0]) for line in lines)


def _normalized(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_every_import_is_declared() -> None:
    """A room imports the standard library, its own house and what pyproject.toml promises, nothing by luck."""
    known = packages_distributions()
    wrong: list[str] = []
    seen: set[str] = set()
    for module in _modules():
        package = module.partition(".")[0]
        for target, line, _ in _imports_of(module):
            top = target.partition(".")[0]
            if top in FOLDERS or top in sys.stdlib_module_names:
                continue
            seen.add(top)
            if not _declared(package) & {_normalized(name) for name in known.get(top, [top])}:
                wrong.append(f"{module}:{line} imports {target}")
    assert {"numpy", "torch", "grpc"} <= seen
    assert wrong == []


CASES = {
    "device code and torch": ("ferryman.parity", "import torch", True),
    "a submodule": ("ferryman.parity", "import numpy, torch.nn", True),
    "from": ("ferryman.parity", "from onnx import checker", True),
    "lazily": ("ferryman.parity", "def f():\n    import transformers", True),
    "for types only": ("ferryman.parity", "if TYPE_CHECKING:\n    from safetensors import safe_open", True),
    "by name": ("ferryman.parity", "importlib.import_module('torch')", True),
    "another room": ("ferryman.parity", "def f():\n    from ferryman_export import pipeline", True),
    "the command line at import": ("ferryman.cli", "from ferryman_export.pipeline import x", True),
    "the command line when asked": ("ferryman.cli", "def f():\n    from ferryman_export.pipeline import x", False),
    "a command when asked": ("ferryman.commands.export", "async def f():\n    import ferryman_models", False),
    "a command and torch": ("ferryman.commands.export", "def f():\n    import torch", True),
    "not a command": ("ferryman.client", "def f():\n    import ferryman_models", True),
    "a name that begins alike": ("ferryman.parity", "import torchless, onnxruntime", False),
    "relative": ("ferryman.parity", "from . import errors\nfrom .specs import Target", False),
    "models and specs": ("ferryman_models.vit", "from ferryman.specs import ModelSpec", False),
    "models and specs, as a module": ("ferryman_models.vit", "from ferryman import specs", False),
    "models and the public face": ("ferryman_models.vit", "from ferryman import Bundle", True),
    "models and bundle": ("ferryman_models.vit", "from ferryman import bundle", True),
    "models and onnx": ("ferryman_models.vit", "def f():\n    import onnx", True),
    "models and export": ("ferryman_models.vit", "import ferryman_export.onnx", True),
    "export and both": ("ferryman_export.onnx", "import onnx, torch, ferryman.bundle, ferryman_models.vit", False),
}


@pytest.mark.parametrize(("module", "source", "caught"), CASES.values(), ids=CASES.keys())
def test_the_rules_catch(module: str, source: str, caught: bool) -> None:
    assert bool(_violations(module, _imports(ast.parse(source), module, False))) is caught


def test_relative_imports_are_resolved() -> None:
    source = ast.parse("from . import errors\nfrom .specs import Target\nfrom .. import specs")
    assert [found.module for found in _imports(source, "ferryman.runtimes", True)] == [
        "ferryman.runtimes",
        "ferryman.runtimes.specs",
        "ferryman.specs",
    ]
