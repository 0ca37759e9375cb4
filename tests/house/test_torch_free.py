"""Ferryman imports and answers where the packages of the other rooms are not installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ferryman.client import Client

from ..serve.toy import make_picture, make_toy_repository

ROOT = Path(__file__).parents[2]
LEARNING = ["torch", "torchvision", "timm", "transformers", "safetensors", "onnx", "onnxscript", "onnx_ir"]
TRAINING = ["sklearn", "scipy", "pycocotools"]
# Runtimes that come with extras of their own: a module that needs one at import may fail where it is missing.
OPTIONAL = ["openvino", "tensorrt", "tensorrt_rtx", "nncf"]

IMPORT_ALL = """
import importlib, json, sys

absent, optional, modules = json.loads(sys.argv[1])


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
imported, skipped = [], []
for module in modules:
    try:
        importlib.import_module(module)
        imported.append(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in optional:
            raise
        skipped.append(module)
leaked = sorted({name.partition(".")[0] for name in sys.modules} & set(absent))
print(json.dumps({"imported": imported, "skipped": skipped, "leaked": leaked}))
"""

HELP = """
import json, sys

absent = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(absent))  # None: importing it raises ModuleNotFoundError
sys.argv = ["ferryman", "--help"]
from ferryman.__main__ import main

sys.exit(main())
"""


def _modules(package: str) -> list[str]:
    """Every module below ROOT/`package` (`serve/ferryman`), `__main__` aside: importing that one runs it."""
    folder = ROOT / package
    names = [
        ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(folder.rglob("*.py"))
        if path.name != "__main__.py"
    ]
    assert len(names) > 3, f"hardly anything to import in {folder}"
    return names


def _run(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *(json.dumps(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _import_all(modules: list[str], absent: list[str]) -> None:
    result = json.loads(_run(IMPORT_ALL, [absent, OPTIONAL, modules]))
    assert result["leaked"] == []
    assert sorted(result["imported"] + result["skipped"]) == sorted(modules)
    assert all(any(runtime in module for runtime in OPTIONAL) for module in result["skipped"])


def test_the_device_room_imports_without_torch() -> None:
    _import_all(_modules("serve/ferryman"), [*LEARNING, *TRAINING, "ferryman_models", "ferryman_export"])


def test_the_command_line_answers_without_torch() -> None:
    assert "verify" in _run(HELP, [*LEARNING, *TRAINING, "ferryman_models", "ferryman_export"])


RUN_COMMAND = """
import json, sys

absent, arguments = (json.loads(argument) for argument in sys.argv[1:])
sys.modules.update(dict.fromkeys(absent))
sys.argv = ["ferryman", *arguments]
from ferryman.__main__ import main

main()
"""


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_repository(tmp_path_factory.mktemp("toys"), ["toy-classifier", "toy-detector"])


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (["verify", "toy-detector", "--json"], '"passed": true'),
        (["verify", "toy-classifier", "--accuracy", "labelled", "--json"], '"top1"'),
        (["inspect", "toy-detector", "--json"], '"digest"'),
        (["classify", "picture.png", "--bundle", "toy-classifier", "--json"], '"predictions"'),
        (["detect", "picture.png", "--bundle", "toy-detector", "--json"], '"detections"'),
        (["bench", "toy-classifier", "--seconds", "0.1", "--json"], '"percentiles_ms"'),
        (["doctor", "--json"], '"missing"'),
        (["advise", "toy-detector", "--seconds", "0.1"], "Use onnxruntime-cpu-fp32"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_commands_of_the_device_work_without_torch(command: list[str], found: str, toys: Path) -> None:
    (toys / "labelled" / "red").mkdir(parents=True, exist_ok=True)
    for name in ("picture.png", "labelled/red/1.png"):
        (toys / name).write_bytes(make_picture((200, 30, 30)))
    places = [str(toys / argument) if (toys / argument).exists() else argument for argument in command]
    answer = _run(RUN_COMMAND, [*LEARNING, *TRAINING, "ferryman_models", "ferryman_export"], places)
    assert found in answer


def test_serving_works_without_torch(toys: Path) -> None:
    arguments = ["serve", str(toys), "--address", "127.0.0.1:0", "--json"]
    code = [
        json.dumps(argument) for argument in ([*LEARNING, *TRAINING, "ferryman_models", "ferryman_export"], arguments)
    ]
    process = subprocess.Popen([sys.executable, "-c", RUN_COMMAND, *code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        head = ""
        while not head.endswith("}\n"):
            line = process.stdout.readline()
            assert line, "the server ended"
            head += line
        with Client(json.loads(head)["address"]) as client:
            answer = client.classify([make_picture((200, 30, 30))], model="toy-classifier")
        assert answer.results[0].predictions[0].label == "red"
        process.terminate()
        assert process.wait(timeout=240) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("command", [["demo"], ["export", "vit-digits", "-o", "models"]], ids=["demo", "export"])
def test_what_needs_torch_names_the_command_that_installs_it(command: list[str], tmp_path: Path) -> None:
    line = [sys.executable, "-c", RUN_COMMAND, json.dumps([*LEARNING, *TRAINING]), json.dumps(command)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("install it with: pip install 'ferryman[export]'")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_exporting_needs_nothing_of_the_training() -> None:
    """`ferryman[export]` has no scikit-learn, scipy or pycocotools; only the embedded models' training scripts do."""
    models = [name for name in _modules("models/ferryman_models") if ".zoo." not in name]
    _import_all([*models, *_modules("export/ferryman_export")], [*TRAINING, "transformers", "timm", "torchvision"])


@pytest.mark.parametrize("absent", ["json", "numpy"])
def test_the_check_notices_an_import(absent: str) -> None:
    with pytest.raises(AssertionError, match=absent):
        _import_all(["ferryman.preprocess", "json"], [absent])
