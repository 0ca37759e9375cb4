"""Whether KServe has the fields that runtime.yaml and service.yaml beside this file set; `make lint-deploy` runs it.

By the models in KServe's Python package, which its generator makes of the same types as its CRDs. They are read and not
imported, since the package imports a web server. What is Kubernetes' own in them, tests/docker/kubernetes validates.
"""

import ast
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent


def main() -> int:
    package = find_spec("kserve")
    if package is None or package.submodule_search_locations is None:
        sys.exit("kserve is missing: pip install --no-deps kserve")
    models = Path(package.submodule_search_locations[0]) / "models"
    wrong: list[str] = []
    for file, kind in (("runtime.yaml", "V1alpha1ServingRuntime"), ("service.yaml", "V1beta1InferenceService")):
        document = yaml.safe_load((HERE / file).read_text(encoding="utf-8"))
        wrong += [f"{file}: {line}" for line in check(models, kind, document, "")]
    for line in wrong:
        sys.stderr.write(f"{line}\n")
    return bool(wrong)


def check(models: Path, kind: str, value: Any, where: str) -> list[str]:
    """What KServe doesn't know in `value`. kind: a class of its models, or list[...] of one"""
    of_list = re.fullmatch(r"list\[(.+)\]", kind)
    if of_list:
        if not isinstance(value, list):
            return [f"{where} is no list"]
        return [line for index, one in enumerate(value) for line in check(models, of_list[1], one, f"{where}[{index}]")]
    file = models / f"{re.sub(r'(?<!^)(?=[A-Z])', '_', kind).lower()}.py"
    if not file.exists():  # a plain type, or Kubernetes' own
        return []
    if not isinstance(value, dict):
        return [f"{where} is no {kind}"]
    types, names = facts(file)
    known = {name: types[field] for field, name in names.items()}
    wrong = [f"{where}.{name} is unknown to {kind}" for name in value if name not in known]
    return wrong + [
        line for name in value if name in known for line in check(models, known[name], value[name], f"{where}.{name}")
    ]


def facts(file: Path) -> tuple[dict[str, str], dict[str, str]]:
    """By a field's name in Python its type, and its name in YAML."""
    found = {
        target.id: ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in {"openapi_types", "attribute_map"}
    }
    return found["openapi_types"], found["attribute_map"]


if __name__ == "__main__":
    sys.exit(main())
