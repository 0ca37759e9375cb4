"""A bundle is whole or absent, and what was changed is refused, each with its own clear error."""

import json
import multiprocessing
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ferryman.bundle import Bundle, find_bundles, list_versions, new_version, seal
from ferryman.errors import (
    BundleCorruptError,
    BundleError,
    BundleNotFoundError,
    BundlePathError,
    BundleSchemaError,
    FerrymanError,
    FileAccessError,
    UsageError,
)
from ferryman.files import replace_file, temporary_folder
from ferryman.golden import load_golden, save_golden
from ferryman.manifest import FILE_NAME

from .toy import TARGET

NAME = "toy-detector"
FILES = ("golden.npz", "manifest.json", "model.onnx", "parity.json")


@pytest.fixture
def folder(toy_repository: Path, tmp_path: Path) -> Path:
    """A bundle of one's own."""
    return shutil.copytree(toy_repository / NAME / "1", tmp_path / "models" / NAME / "1")


def test_opening(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(folder)
    assert (bundle.name, bundle.version, bundle.path) == (NAME, 1, folder)
    assert sorted(bundle.manifest.files) == sorted(set(FILES) - {FILE_NAME})
    assert bundle.variant() == bundle.variant(str(TARGET))
    assert bundle.file("model.onnx") == folder / "model.onnx"
    with pytest.raises(BundleCorruptError, match=r"holds no labels\.txt"):
        bundle.file("labels.txt")
    with pytest.raises(UsageError, match="has no variant tensorrt-gpu-fp16; it has onnxruntime-cpu-fp32"):
        bundle.variant("tensorrt-gpu-fp16")
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


def reseal(folder: Path, **changes: object) -> None:
    """Digests of what is in the folder now."""
    facts = json.loads((folder / FILE_NAME).read_bytes())
    del facts["files"]
    seal(folder, facts | changes)


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
    "a task that there is not": (lambda facts: facts["spec"].update(task="ocr"), "spec.task"),
    "outputs of another task": (lambda facts: facts["spec"]["outputs"].pop(), "spec"),
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
    for text in ("1", "2"):
        place = bundle.write_certificate("here", text)
        assert place == folder / "certificates" / "here.json"
        assert place.read_text(encoding="utf-8") == text
    assert stat.S_IMODE(place.stat().st_mode) & 0o044 == 0o044  # others may read what they are to believe
    assert Bundle.open(folder).digest == bundle.digest
    reseal(folder)
    assert not any("certificates" in name for name in Bundle.open(folder).manifest.files)
    assert os.listdir(folder / "certificates") == ["here.json"]


def test_sealing_covers_every_file(folder: Path) -> None:
    """A manifest.json further down is a file like any other."""
    (folder / "variants" / "x").mkdir(parents=True)
    (folder / "variants" / "x" / FILE_NAME).write_text("1", encoding="utf-8")
    reseal(folder)
    (folder / "variants" / "x" / FILE_NAME).write_text("2", encoding="utf-8")
    with pytest.raises(BundleCorruptError, match=r"variants/x/manifest.json is not the file"):
        Bundle.open(folder)


# --- golden samples --------------------------------------------------------------------------------------------------


def _npz(path: Path, **changes: object) -> None:
    import numpy as np

    with np.load(path) as file:
        arrays: dict[str, Any] = {name: file[name] for name in file.files} | changes
    np.savez(path, allow_pickle=False, **{name: array for name, array in arrays.items() if array is not None})


def _array(path: Path) -> None:
    import numpy as np

    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def _boxes(*shape: int, dtype: str = "float32") -> dict[str, Any]:
    import numpy as np

    return {"output.boxes": np.zeros(shape, dtype)}


WRONG_GOLDEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "does not hold this model's golden samples"),
    "text": (lambda path: path.write_bytes(b"hello"), "does not hold"),
    "half a zip": (lambda path: path.write_bytes(path.read_bytes()[:100]), "does not hold"),
    "a lone array": (_array, "does not hold"),
    "no output": (lambda path: _npz(path, **{"output.boxes": None}), "does not hold"),
    "no names": (lambda path: _npz(path, names=None), "does not hold"),
    "no sample": (lambda path: _npz(path, names=[]), "no sample"),
    "another shape": (lambda path: _npz(path, **_boxes(6, 3, 1)), r"output boxes is float32 \(6, 3, 1\), expected"),
    "another length": (lambda path: _npz(path, **_boxes(5, 3, 4)), "output boxes"),
    "another type": (lambda path: _npz(path, **_boxes(6, 3, 4, dtype="float64")), "output boxes is float64"),
    "a single number": (lambda path: _npz(path, **_boxes()), "output boxes"),
}


@pytest.mark.parametrize(("harm", "message"), WRONG_GOLDEN.values(), ids=WRONG_GOLDEN)
def test_wrong_golden_samples(folder: Path, harm: Callable[[Path], object], message: str) -> None:
    """Sealed with right digests all the same."""
    harm(folder / "golden.npz")
    reseal(folder)
    bundle = Bundle.open(folder)
    with pytest.raises(BundleCorruptError, match=message):
        load_golden(bundle.file("golden.npz"), bundle.spec)


def test_golden_samples_come_back(folder: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(folder)
    golden = load_golden(bundle.file("golden.npz"), bundle.spec)
    save_golden(tmp_path / "again.npz", golden)
    again = load_golden(tmp_path / "again.npz", bundle.spec)
    assert again.names == golden.names
    assert all((again.outputs[name] == array).all() for name, array in golden.outputs.items())
    assert all(array.shape[0] == 2 for array in golden.batch([3, 3]).values())


# --- new versions ----------------------------------------------------------------------------------------------------


def _listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_new_versions_count_up(tmp_path: Path) -> None:
    repository = tmp_path / "deep" / "repository"
    for _ in range(2):
        with new_version(repository, "vit") as folder:
            (folder / "file").write_text("x", encoding="utf-8")
    (repository / "vit" / "7").mkdir()
    with new_version(repository, "vit") as folder:
        assert folder.name != "8"
    assert _listing(repository) == ["vit", "vit/1", "vit/1/file", "vit/2", "vit/2/file", "vit/7", "vit/8"]


def _fail_half_way(repository: Path, error: type[BaseException]) -> None:
    with new_version(repository, "vit") as folder:
        (folder / "file").write_text("half", encoding="utf-8")
        (folder / "sub").mkdir()
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit], ids=lambda error: error.__name__)
def test_a_failed_version_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with new_version(tmp_path, "vit") as folder:
        (folder / "file").touch()
    before = _listing(tmp_path)
    with pytest.raises(error):
        _fail_half_way(tmp_path, error)
    assert _listing(tmp_path) == before


def test_a_failure_of_ours_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(BundleCorruptError), new_version(tmp_path, "vit"):
        raise BundleCorruptError("x")


def _add_versions(repository: Path, number: int) -> None:
    for turn in range(5):
        with new_version(repository, "vit") as folder:
            (folder / "who").write_text(f"{number}.{turn}", encoding="utf-8")


def test_exports_at_once_never_overwrite_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_versions, args=(tmp_path, number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 3
    versions = sorted(int(path.name) for path in (tmp_path / "vit").iterdir())
    assert versions == list(range(1, 16))
    assert len({(tmp_path / "vit" / str(v) / "who").read_text(encoding="utf-8") for v in versions}) == 15
    assert os.listdir(tmp_path) == ["vit"]


def test_a_taken_number_is_passed_over(tmp_path: Path) -> None:
    """Two exports saw the same highest number; the second one to end takes the next."""
    with new_version(tmp_path, "vit") as slow:
        (slow / "who").write_text("slow", encoding="utf-8")
        with new_version(tmp_path, "vit") as fast:
            (fast / "who").write_text("fast", encoding="utf-8")
    assert (tmp_path / "vit" / "1" / "who").read_text(encoding="utf-8") == "fast"
    assert (tmp_path / "vit" / "2" / "who").read_text(encoding="utf-8") == "slow"


@pytest.mark.parametrize("where", ["repository", "name"])
def test_a_file_where_a_folder_must_be(tmp_path: Path, where: str) -> None:
    repository = tmp_path / "repository"
    if where == "repository":
        repository.write_text("in the way", encoding="utf-8")
    else:
        repository.mkdir()
        (repository / "vit").write_text("in the way", encoding="utf-8")
    before = _listing(tmp_path)
    with pytest.raises(FileAccessError, match=r"can't write .*vit.*: .*; check"), new_version(repository, "vit"):
        pass
    assert _listing(tmp_path) == before


# --- repositories ----------------------------------------------------------------------------------------------------


def test_finding_bundles(folder: Path) -> None:
    repository = folder.parents[1]
    (repository / "a-file").touch()
    (repository / "empty").mkdir()
    (repository / ".hidden" / "1").mkdir(parents=True)
    (repository / ".hidden" / "1" / FILE_NAME).touch()
    shutil.copytree(folder, folder.parent / "3")
    shutil.copytree(folder, repository / "another" / "2")
    assert list(find_bundles(repository).items()) == [("another", [2]), (NAME, [1, 3])]
    assert list_versions(repository / "nowhere") == []


@pytest.mark.parametrize("place", ["nowhere", "file", "x" * 300], ids=["nowhere", "a file", "a name too long"])
def test_what_is_no_repository(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FerrymanError, match=re.escape(place[:10])):
        find_bundles(tmp_path / place)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt], ids=["fine", "error", "Ctrl-C"])
def test_a_file_is_whole_or_the_old_one(tmp_path: Path, error: type[BaseException] | None) -> None:
    place = tmp_path / "new" / "file.txt"
    place.parent.mkdir()
    place.write_text("old", encoding="utf-8")

    def write() -> None:
        with replace_file(place) as temporary:
            temporary.write_text("half", encoding="utf-8")
            if error is not None:
                raise error

    if error is None:
        write()
    else:
        with pytest.raises(error):
            write()
    assert place.read_text(encoding="utf-8") == ("half" if error is None else "old")
    assert os.listdir(place.parent) == ["file.txt"]


def _folder_there(place: Path) -> None:
    place.mkdir()


def _file_above(place: Path) -> None:
    place.parent.rmdir()
    place.parent.write_text("in the way", encoding="utf-8")


@pytest.mark.parametrize("obstacle", [_folder_there, os.mkfifo, _file_above], ids=["folder", "pipe", "file above"])
def test_what_can_not_be_replaced(tmp_path: Path, obstacle: Callable[[Path], object]) -> None:
    """A pipe or a device is not a file to be replaced: as root, /dev/null would be gone."""
    place = tmp_path / "above" / "file.txt"
    place.parent.mkdir()
    obstacle(place)
    before = _listing(tmp_path)
    with pytest.raises(FileAccessError, match=r"can't write .*file.txt: "), replace_file(place):
        pytest.fail("there is nothing to write to")
    assert _listing(tmp_path) == before


def test_a_temporary_folder_is_gone(tmp_path: Path) -> None:
    with temporary_folder(tmp_path / "a" / "b", "name") as folder:
        assert folder.parent == tmp_path / "a" / "b"
        assert folder.name.startswith(".name.")
        (folder / "x").touch()
    assert os.listdir(tmp_path / "a" / "b") == []
