"""What `torch.export.load` would run, looked at before it is called.

It unpickles, imports and evaluates what an archive asks it to (`weights_only=False` for some of its tensors, modules by
name for containers and enumerations, any function of `torch` as an operator, sympy's evaluation of strings for sizes).
All that a plain model does not need is refused here: pickles other than of tensors, objects, compiled libraries,
operators that are not PyTorch's own, expressions that are more than arithmetic, containers other than tuples, lists and
dicts.
"""

import ast
import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch

from ferryman.errors import CheckpointError

_RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|\.format_version|\.data/(version|serialization_id)|models/model\.json|"
    r"data/(weights/(weight_\d+|model_weights_config\.json)|constants/(tensor_\d+|model_constants_config\.json)|"
    r"sample_inputs/model\.pt)|extra/.*"
)
_OPERATORS = re.compile(
    r"torch\.ops\.aten\.(?!from_file)\w+\.\w+|torch\._?sym_\w+|math\.\w+|"
    r"torch\.ops\.higher_order\.(cond|wrap_with_set_grad_enabled|wrap_with_autocast)|"
    r"_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
_FUNCTIONS = frozenset((
    "Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Max", "Min", "Abs", "Not", "And", "Or", "Eq",
    "Ne", "Equality", "Unequality", "Relational", "StrictLessThan", "StrictGreaterThan", "LessThan", "GreaterThan",
    "ceiling", "floor", "FloorDiv", "CleanDiv", "CeilDiv", "Mod", "PythonMod", "ModularIndexing", "Where",
    "IntTrueDiv", "FloatTrueDiv", "ToFloat", "TruncToInt", "TruncToFloat", "RoundToInt", "CeilToInt", "FloorToInt",
    "PowByNatural", "FloatPow", "Identity", "true", "false",
))  # fmt: skip
_ARITHMETIC = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.operator,
    ast.unaryop, ast.Compare, ast.cmpop,
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z_]\w*")
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")


def check_archive(data: bytes, path: Path) -> None:
    """Raises CheckpointError unless `torch.export.load` finds nothing in the archive to run, import or evaluate.

    data: of the file at `path`; it is read by the same reader that PyTorch loads it with
    """
    from torch.export.pt2_archive import PT2ArchiveReader  # brings the whole of torch._dynamo

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            outside = [name for name in archive.namelist() if "/" not in name]
        with PT2ArchiveReader(io.BytesIO(data)) as reader:
            records = list(reader.get_file_names())
            # Names at the top are those of PyTorch's format before 2.8, which is loaded by other, older ways.
            other = [*outside, *(name for name in records if not _RECORDS.fullmatch(name))]
            if other:
                raise _refuse(path, f"it holds {other[0]}, which no plain model has; PyTorch 2.8 or newer must save it")
            for kind, prefix in (("weights", "weight_"), ("constants", "tensor_")):
                config = json.loads(reader.read_string(f"data/{kind}/model_{kind}_config.json"))["config"]
                for name, payload in config.items():
                    if payload["use_pickle"] is not False or not str(payload["path_name"]).startswith(prefix):
                        raise _refuse(path, f"{name} is an object and not a tensor")
            samples = reader.read_bytes("data/sample_inputs/model.pt")
            document: object = json.loads(reader.read_string("models/model.json"))
        if samples:
            torch.load(io.BytesIO(samples), map_location="cpu", weights_only=True)
        for key, text in _strings(document):
            problem = _find_problem(key, text)
            if problem:
                raise _refuse(path, problem)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        raise _refuse(path, f"its sample inputs ask to run {asked[1] if asked else 'code'}") from error
    except (
        zipfile.BadZipFile,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        RecursionError,
    ) as error:
        raise CheckpointError(f"{path} is no exported program, or damaged: {str(error).splitlines()[0]}") from error


def _refuse(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is refused, {why}: only tensors and PyTorch's own operators are loaded, never code")


def _strings(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string in a JSON document with the key that it, or the list around it, stands under."""
    if isinstance(value, dict):
        for inner, part in cast("dict[str, object]", value).items():
            yield from _strings(part, inner)
    elif isinstance(value, list):
        for part in cast("list[object]", value):
            yield from _strings(part, key)
    elif isinstance(value, str):
        yield key, value


def _find_problem(key: str, text: str) -> str:
    """What is wrong with a string that PyTorch's loader resolves or evaluates; empty for any other and a good one."""
    if key in ("target", "as_operator") and not _OPERATORS.fullmatch(text):
        return f"it calls {text[:100]}"
    if key == "expr_str" and not _is_arithmetic(text):
        return f"a size in it is computed by {text[:100]}"
    if key in ("in_spec", "out_spec") and not _is_plain(text):
        return f"it takes or returns a container of another kind than tuple, list and dict ({text[:100]})"
    return ""


def _is_arithmetic(text: str) -> bool:
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    for node in nodes:
        if not isinstance(node, _ARITHMETIC):
            return False
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
            return False
        if isinstance(node, ast.Name) and node.id not in _FUNCTIONS and not re.fullmatch(r"[suz][a-z]*\d+", node.id):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not _NAME.fullmatch(node.value):
            return False
    # Sympy evaluates a string that a function other than Symbol is given.
    quoted = sum(isinstance(node, ast.Constant) and isinstance(node.value, str) for node in nodes)
    symbols = [node for node in nodes if isinstance(node, ast.Call) and cast("ast.Name", node.func).id == "Symbol"]
    return quoted == len(symbols) and all(
        len(node.args) == 1 and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
        for node in symbols
    )


def _is_plain(text: str) -> bool:
    """Whether a treespec is made of plain containers with plain keys."""
    if not text:
        return True
    if "__enum__" in text:
        return False
    kinds = [kind for key, kind in _types(json.loads(text)) if key == "type"]
    return all(kind in _CONTAINERS for kind in kinds)


def _types(value: object, key: str = "") -> Iterator[tuple[str, str | None]]:
    if isinstance(value, dict):
        for inner, part in cast("dict[str, object]", value).items():
            yield from _types(part, inner)
    elif isinstance(value, list):
        for part in cast("list[object]", value):
            yield from _types(part, key)
    elif value is None or isinstance(value, str):
        yield key, value
