"""Exported programs: a .pt2 crosses like a module, and one that asks for more than tensors and operators is refused."""

import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ferryman.errors import CheckpointError, FerrymanError, FileAccessError, UsageError
from ferryman.files import sha256_file
from ferryman_export.pipeline import ExportRequest, export
from ferryman_export.sources import SourceOptions, open_source, resize_spec

from .test_own import Detector, Encoder, make

LABELS = {"classification": list("abc"), "detection": list("abcd"), "embedding": []}
BATCH = {0: torch.export.Dim("batch")}


class Cells(nn.Module):
    """A classifier whose graph computes with sizes, and turns gradients off in its own code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 8, stride=8), nn.Linear(8, 3)
        self.register_buffer("shift", torch.ones(3), persistent=False)
        self.shift: Tensor

    def forward(self, image: Tensor) -> Tensor:
        """image: (batch, 3, height, width). Returns (batch, 3)."""
        with torch.no_grad():
            cells = self.conv(image).flatten(2).transpose(1, 2)
            cells = cells.reshape(image.shape[0] * cells.shape[1], 8).relu()
        return self.head(cells).reshape(image.shape[0], -1, 3).mean(dim=1) + self.shift


def save_program(folder: Path, task: str, build: Callable[[], nn.Module], dynamic: bool = True) -> tuple[Path, Path]:
    """The program and its spec file."""
    image, valid = torch.randn(2, 3, 32, 48), torch.ones(2, 32, 48, dtype=torch.bool)
    example = (image, valid) if task == "detection" else (image,)
    shapes = tuple(BATCH for _ in example) if dynamic else None
    path, spec = folder / f"{task}.pt2", folder / f"{task}.json"
    torch.export.save(torch.export.export(make(build), example, dynamic_shapes=shapes), path)
    fit = "pad" if task == "detection" else "stretch"
    spec.write_text(json.dumps({"task": task, "labels": LABELS[task], "preprocess": {"size": [32, 48], "fit": fit}}))
    return path, spec


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("programs")
    builds = {"classification": Cells, "detection": Detector, "embedding": Encoder}
    return {task: save_program(folder, task, build) for task, build in builds.items()}


@pytest.mark.parametrize("task", ["classification", "embedding"])
def test_exports(task: str, programs: dict[str, tuple[Path, Path]], pictures: Path, tmp_path: Path) -> None:
    path, spec = programs[task]
    bundle = export(ExportRequest(str(path), tmp_path / "r", samples=pictures, options=SourceOptions(spec=spec)))
    source = bundle.manifest.source
    assert (source.architecture, source.sha256) == ("exported program", sha256_file(path))
    assert (bundle.name, bundle.spec.task) == (task, task)


def rewrite(good: Path, bad: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of an archive whose records, by their names in the archive's folder, were changed."""
    with zipfile.ZipFile(good) as archive:
        folder = archive.namelist()[0].partition("/")[0]
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(bad, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(name.removeprefix("//") if name.startswith("//") else f"{folder}/{name}", content)
    return bad


class Runs:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def torch_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def in_config(kind: str, marker: Path) -> Callable[[dict[str, bytes]], None]:
    """The first tensor becomes a pickle."""

    def change(records: dict[str, bytes]) -> None:
        name = f"data/{kind}/model_{kind}_config.json"
        document = json.loads(records[name])
        first = next(iter(document["config"].values()))
        first["use_pickle"] = True
        if kind == "constants":
            first["path_name"] = "opaque_obj_0"
            records["data/constants/opaque_obj_0"] = pickle.dumps(Runs(marker))
        else:
            records[f"data/{kind}/{first['path_name']}"] = torch_bytes(Runs(marker))
        records[name] = json.dumps(document).encode()

    return change


def in_model(old: str, new: str) -> Callable[[dict[str, bytes]], None]:
    """A part of the strings in the model's JSON is another one; old: a regular expression."""

    def change(records: dict[str, bytes]) -> None:
        text, count = re.subn(old, lambda _: json.dumps(new)[1:-1], records["models/model.json"].decode())
        assert count
        records["models/model.json"] = text.encode()

    return change


def with_record(name: str, content: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda records: records.update({name: content})


def evil(marker: Path) -> dict[str, tuple[Callable[[dict[str, bytes]], None], str]]:
    code = f"__import__('pathlib').Path('{marker}').touch()"
    expression = r"Symbol\('s\d+', positive=True, integer=True\)"
    return {
        "weight": (in_config("weights", marker), "conv.bias|conv.weight.* is an object and not a tensor"),
        "constant": (in_config("constants", marker), "it holds data/constants/opaque_obj_0"),
        "sample inputs": (
            with_record("data/sample_inputs/model.pt", torch_bytes(Runs(marker))),
            "its sample inputs ask to run (getattr|pathlib)",
        ),
        "library": (with_record("data/aotinductor/model/a.so", b"x"), "it holds data/aotinductor/model/a.so"),
        "older format": (
            with_record("//serialized_exported_program.json", b"{}"),
            "is no exported program, or damaged",
        ),
        "operator": (in_model("torch.ops.aten.relu.default", "torch.hub.load"), "it calls torch.hub.load"),
        "file operator": (in_model("torch.ops.aten.relu.default", "torch.ops.aten.from_file.default"), "it calls"),
        "size": (in_model(expression, code), "a size in it is computed by __import__"),
        "size in quotes": (in_model(expression, f"Max('{code}', 1)"), "a size in it is computed by Max"),
        "size by name": (in_model(expression, "Symbol('s77').__class__"), "a size in it is computed by Symbol"),
        "container": (
            in_model(r'\\"type\\": null', '"type": "collections.defaultdict"'),
            "a container of another kind",
        ),
    }


@pytest.mark.parametrize("case", evil(Path()))
def test_nothing_in_an_archive_is_run(case: str, programs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    change, message = evil(tmp_path / "ran")[case]
    good, spec = programs["classification"]
    bad = rewrite(good, tmp_path / "bad.pt2", change)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_source(str(bad), SourceOptions(spec=spec))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_the_changed_archives_are_archives(programs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """So what refuses them is the check, not that they can't be read."""
    good, spec = programs["classification"]
    same = rewrite(good, tmp_path / "same.pt2", lambda records: None)
    assert open_source(str(same), SourceOptions(spec=spec)).spec.labels == ("a", "b", "c")


def test_guards_are_not_run(programs: dict[str, tuple[Path, Path]], pictures: Path, tmp_path: Path) -> None:
    """They are source code that a program carries with it."""
    good, spec = programs["detection"]
    code = f"[__import__('pathlib').Path('{tmp_path / 'ran'}').touch()]"
    bad = rewrite(good, tmp_path / "guarded.pt2", in_model(r"L\['image'\]\.size\(\)\[0\] == [^\"]*", code))
    export(ExportRequest(str(bad), tmp_path / "r", samples=pictures, options=SourceOptions(spec=spec)))
    assert not (tmp_path / "ran").exists()


def test_bad_requests(programs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    path, spec = programs["classification"]
    fixed, _ = save_program(tmp_path, "classification", Cells, dynamic=False)
    (tmp_path / "cut.pt2").write_bytes(path.read_bytes()[:-3000])
    (tmp_path / "text.pt2").write_text("no archive")
    (tmp_path / "spec.json").write_text('{"task": "classification", "label": []}')
    detection = tmp_path / "detection.json"
    detection.write_text(spec.read_text().replace("classification", "detection").replace("stretch", "pad"))
    cases: list[tuple[Path | str, Path | None, type[FerrymanError], str]] = [
        (path, None, UsageError, r'add --spec FILE with \{"task"'),
        ("vit-digits", spec, UsageError, "--spec belongs to an exported program"),
        (fixed, spec, UsageError, r"batches of 2 alone.*dynamic_shapes=\(\{0: torch.export.Dim\(.batch.\)\},\)"),
        (programs["detection"][0], spec, UsageError, "takes image, valid; for classification it must take image"),
        (path, detection, UsageError, "returns a tensor float32 .* for detection it must return"),
        (path, tmp_path / "none.json", FileAccessError, "can't read .*none.json"),
        (path, tmp_path / "spec.json", UsageError, "spec.json is wrong at preprocess: Field required"),
        (tmp_path / "cut.pt2", spec, CheckpointError, "is no exported program, or damaged"),
        (tmp_path / "text.pt2", spec, CheckpointError, "is no exported program, or damaged"),
        (tmp_path / "none.pt2", spec, CheckpointError, "there is no checkpoint .*none.pt2"),
    ]
    for source, spec_file, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            open_source(str(source), SourceOptions(spec=spec_file))
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="has the one canvas of its spec"):
        resize_spec(open_source(str(path), SourceOptions(spec=spec)), (64, 64))
