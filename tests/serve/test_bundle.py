"""A bundle is whole or absent, and what was changed is refused, each with its own clear error."""

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ferryman.bundle import Bundle, list_versions
from ferryman.certificates import certify
from ferryman.errors import (
    BundleCorruptError,
    BundleError,
    BundleNotFoundError,
    BundlePathError,
    BundleSchemaError,
    UsageError,
)
from ferryman.manifest import FILE_NAME
from ferryman.proof import read_reports

from .toy import TARGET, reseal

NAME = "toy-detector"
FILES = ("golden.npz", "manifest.json", "model.onnx", "parity.json")


def test_opening(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(folder)
    assert (bundle.name, bundle.version, bundle.path) == (NAME, 1, folder)
    assert sorted(bundle.manifest.files) == sorted(set(FILES) - {FILE_NAME})
    assert bundle.variants() == bundle.variants(str(TARGET)) == bundle.manifest.variants
    assert bundle.file("model.onnx") == folder / "model.onnx"
    with pytest.raises(BundleCorruptError, match=r"holds no labels\.txt"):
        bundle.file("labels.txt")
    with pytest.raises(UsageError, match="has no variant tensorrt-gpu-fp16; it has onnxruntime-cpu-fp32"):
        bundle.variants("tensorrt-gpu-fp16")
    assert Bundle.open(str(folder.parent)).digest == bundle.digest
    monkeypatch.chdir(folder)
    assert Bundle.open(".").version == 1
    monkeypatch.undo()
    assert Bundle.open(folder.rename(folder.parent / "moved")).version == 0


def test_the_newest_version_is_by_number(folder: Path) -> None:
    for other in ("2", "10", "0", "007", "x", "11"):
        shutil.copytree(folder, folder.parent / other)
    (folder.parent / "11" / FILE_NAME).unlink()
    (folder.parent / "12").touch()
    assert list_versions(folder.parent) == [1, 2, 10]
    assert Bundle.open(folder.parent).version == 10


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_flipped_byte_is_found(folder: Path, name: str, place: str) -> None:
    data = bytearray((folder / name).read_bytes())
    index = {"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[place]
    data[index] ^= 1
    (folder / name).write_bytes(data)
    if name == FILE_NAME:
        # The manifest has no digest of its own, but its bytes are the bundle's.
        try:
            opened = Bundle.open(folder)
        except BundleError:
            return
        assert opened.digest != Bundle.open(_original(folder)).digest
        return
    with pytest.raises(BundleCorruptError, match=rf"{name} is not the file that was exported.*export it again"):
        Bundle.open(folder)


def _original(folder: Path) -> Path:
    data = bytearray((folder / FILE_NAME).read_bytes())
    data[-1] = ord("\n")
    (folder / FILE_NAME).write_bytes(data)
    return folder


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _link(path: Path) -> None:
    """A link to the same bytes, outside."""
    outside = path.parents[2] / path.name
    path.rename(outside)
    path.symlink_to(outside)


def _put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _put_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


HARM: dict[str, tuple[Callable[[Path], object], type[BundleError], str]] = {
    "missing": (Path.unlink, BundleCorruptError, "is missing; copy or export the bundle again"),
    "truncated": (_truncate, BundleCorruptError, "is not the file that was exported"),
    "longer": (_append, BundleCorruptError, "is not the file that was exported"),
    "emptied": (lambda path: path.write_bytes(b""), BundleCorruptError, "is not the file that was exported"),
    "a link": (_link, BundlePathError, "is reached through a link"),
    "a folder": (_put_folder, BundleCorruptError, "is not a plain file"),
    "a pipe": (_put_pipe, BundleCorruptError, "is not a plain file"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("harm", "error", "message"), HARM.values(), ids=HARM)
def test_harmed_files(folder: Path, harm: Callable[[Path], object], error: type[BundleError], message: str) -> None:
    harm(folder / "model.onnx")
    with pytest.raises(error, match=f"model.onnx {message}") as caught:
        Bundle.open(folder)
    assert type(caught.value) is error


MANIFEST_HARM: dict[str, tuple[Callable[[Path], object], type[BundleError], str]] = {
    "missing": (Path.unlink, BundleNotFoundError, "is not a bundle: it has no manifest.json"),
    "a link": (_link, BundlePathError, "is a link"),
    "a link to nowhere": (
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
        BundlePathError,
        "is a link",
    ),
    "a folder": (_put_folder, BundleCorruptError, "is not a plain file"),
    "a pipe": (_put_pipe, BundleCorruptError, "is not a plain file"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("harm", "error", "message"), MANIFEST_HARM.values(), ids=MANIFEST_HARM)
def test_a_harmed_manifest(
    folder: Path, harm: Callable[[Path], object], error: type[BundleError], message: str
) -> None:
    harm(folder / FILE_NAME)
    with pytest.raises(error, match=message):
        Bundle.open(folder)


def test_a_linked_parent(folder: Path, tmp_path: Path) -> None:
    """variants/x/model.onnx is plain, and variants/x is a link."""
    (folder / "variants" / "x").mkdir(parents=True)
    shutil.copy(folder / "model.onnx", folder / "variants" / "x")
    reseal(folder)
    assert "variants/x/model.onnx" in Bundle.open(folder).manifest.files
    (folder / "variants" / "x").rename(tmp_path / "outside")
    (folder / "variants" / "x").symlink_to(tmp_path / "outside")
    with pytest.raises(BundlePathError, match=r"variants/x/model.onnx is reached through a link"):
        Bundle.open(folder)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The manifest changed by hand."""
    facts = json.loads((folder / FILE_NAME).read_bytes())
    change(facts)
    (folder / FILE_NAME).write_text(json.dumps(facts), encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    ["../1/model.onnx", "/etc/hostname", "a/../../1/model.onnx", "..\\model.onnx", "a\\b", "model.onnx\0"],
    ids=repr,
)
def test_names_that_lead_outside(folder: Path, name: str) -> None:
    def rename(facts: dict[str, Any]) -> None:
        facts["files"][name] = facts["files"].pop("model.onnx")
        facts["variants"][0]["path"] = name

    edit(folder, rename)
    with pytest.raises(BundlePathError, match="which lies outside the bundle"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["", ".", "x" * 300, "model.onnx/x", "nowhere", "é\ud800"], ids=ascii)
def test_names_of_no_file(folder: Path, name: str) -> None:
    edit(folder, lambda facts: facts["files"].update({name: facts["files"]["model.onnx"]}))
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    assert str(folder) in str(caught.value)


def test_a_variant_without_digest(folder: Path) -> None:
    edit(folder, lambda facts: facts["variants"][0].update(path="../../evil.onnx"))
    with pytest.raises(BundleCorruptError, match=r"names ../../evil.onnx, which has no digest"):
        Bundle.open(folder)


def test_a_target_can_not_name_a_place(folder: Path) -> None:
    """`verify` writes certificates/TARGET.json."""
    edit(folder, lambda facts: facts["variants"][0]["target"].update(precision="fp32/../../../../evil"))
    with pytest.raises(BundleSchemaError, match=r"not valid at variants.0.target.precision"):
        Bundle.open(folder)


GARBAGE = {
    "empty": b"",
    "not JSON": b"hello",
    "binary": bytes(range(256)),
    "half": b'{"schema_version": 1, "na',
    "a list": b"[1]",
    "a string": b'"schema_version"',
    "null": b"null",
    "a number": b"1",
    "deep": b"[" * 200_000,
    "no version": b"{}",
    "version as text": b'{"schema_version": "1"}',
    "version true": b'{"schema_version": true}',
    "version 1.0": b'{"schema_version": 1.0}',
    "version 0": b'{"schema_version": 0}',
    "version -1": b'{"schema_version": -1}',
    "endless version": b'{"schema_version": ' + b"9" * 5000 + b"}",
    "nothing else": b'{"schema_version": 1}',
}


@pytest.mark.parametrize("raw", GARBAGE.values(), ids=GARBAGE)
def test_garbage_for_a_manifest(folder: Path, raw: bytes) -> None:
    (folder / FILE_NAME).write_bytes(raw)
    with pytest.raises(BundleSchemaError, match=r"manifest.json is not (a bundle's manifest|valid at)") as caught:
        Bundle.open(folder)
    assert len(str(caught.value)) < len(str(folder)) + 300


def test_a_newer_schema(folder: Path) -> None:
    """Whatever else it says: its other fields are of that schema."""
    (folder / FILE_NAME).write_text('{"schema_version": 2, "new": []}', encoding="utf-8")
    with pytest.raises(BundleSchemaError, match=r"has schema 2, this version .* reads up to 1; upgrade Ferryman"):
        Bundle.open(folder)


WRONG_FACTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no variants": (lambda facts: facts.update(variants=[]), "variants"),
    "another field": (lambda facts: facts.update(more=1), "more"),
    "a digest of another kind": (lambda facts: facts["files"]["model.onnx"].update(sha256="AB" * 32), "files"),
    "a size below 0": (lambda facts: facts["files"]["model.onnx"].update(size_bytes=-1), "files"),
    "NaN": (lambda facts: facts["tolerances"]["fp32"]["max_abs"].update(boxes=float("nan")), "tolerances"),
    "a limit below 0": (lambda facts: facts["tolerances"]["fp32"]["max_abs"].update(boxes=-1), "tolerances"),
    "a share above 1": (lambda facts: facts["tolerances"]["fp32"].update(min_iou=1.1), "tolerances"),
    "a task that there is not": (lambda facts: facts["specs"][0].update(task="ocr"), "specs.0.task"),
    "outputs of another task": (lambda facts: facts["specs"][0]["outputs"].pop(), "specs.0"),
    "no sizes": (lambda facts: facts.update(specs=[]), "specs"),
    "a size twice": (lambda facts: facts["specs"].append(facts["specs"][0]), "its root: .* stands twice"),
    "a variant of no size": (
        lambda facts: facts["variants"][0].update(size=[8, 8]),
        r"its root: .* variants of the sizes \[\(8, 8\)\], expected one of each of \[\(32, 32\)\]",
    ),
}


@pytest.mark.parametrize(("change", "where"), WRONG_FACTS.values(), ids=WRONG_FACTS)
def test_wrong_facts(folder: Path, change: Callable[[dict[str, Any]], object], where: str) -> None:
    edit(folder, change)
    with pytest.raises(BundleSchemaError, match=f"manifest.json is not valid at {where}"):
        Bundle.open(folder)


PLACES: dict[str, Callable[[Path], Path]] = {
    "nowhere": lambda folder: folder / "nowhere",
    "below a file": lambda folder: folder / "model.onnx" / "1",
    "a file": lambda folder: folder / "model.onnx",
    "an empty folder": lambda folder: folder.parents[1] / "empty",
    "a repository": lambda folder: folder.parents[1],
    "a name too long": lambda folder: folder / ("x" * 300),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_what_is_no_bundle(folder: Path, place: Callable[[Path], Path]) -> None:
    (folder.parents[1] / "empty").mkdir()
    with pytest.raises(BundleError) as caught:
        Bundle.open(place(folder))
    assert str(place(folder)) in str(caught.value)


def test_a_certificate_changes_nothing(folder: Path) -> None:
    bundle = Bundle.open(folder)
    place = folder / "certificates" / "onnxruntime-cpu-fp32.json"
    (report,) = read_reports(bundle)
    for before in ("", "an older one"):
        place.write_text(before, encoding="utf-8")
        assert certify(bundle, [report]) == place
        assert json.loads(place.read_text(encoding="utf-8"))["bundle_digest"] == bundle.digest
    assert stat.S_IMODE(place.stat().st_mode) & 0o044 == 0o044  # others may read what they are to believe
    assert Bundle.open(folder).digest == bundle.digest
    reseal(folder)
    assert not any("certificates" in name for name in Bundle.open(folder).manifest.files)
    assert os.listdir(folder / "certificates") == [place.name]


def test_sealing_covers_every_file(folder: Path) -> None:
    """A manifest.json further down is a file like any other."""
    (folder / "variants" / "x").mkdir(parents=True)
    (folder / "variants" / "x" / FILE_NAME).write_text("1", encoding="utf-8")
    reseal(folder)
    (folder / "variants" / "x" / FILE_NAME).write_text("2", encoding="utf-8")
    with pytest.raises(BundleCorruptError, match=r"variants/x/manifest.json is not the file"):
        Bundle.open(folder)
