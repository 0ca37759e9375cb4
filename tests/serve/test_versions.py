"""Versions in a model repository: counted up, never overwritten, whole or absent."""

import multiprocessing
import os
import re
import shutil
from pathlib import Path

import pytest

from ferryman.bundle import find_bundles, list_versions, new_version
from ferryman.errors import (
    BundleCorruptError,
    FerrymanError,
    FileAccessError,
)
from ferryman.manifest import FILE_NAME

from .toy import list_tree

# --- new versions ----------------------------------------------------------------------------------------------------


def test_new_versions_count_up(tmp_path: Path) -> None:
    repository = tmp_path / "deep" / "repository"
    for _ in range(2):
        with new_version(repository, "vit") as new:
            (new.folder / "file").write_text("x", encoding="utf-8")
    (repository / "vit" / "7").mkdir()
    with new_version(repository, "vit") as new:
        assert new.path is None
    assert new.path == repository / "vit" / "8"
    assert list_tree(repository) == ["vit", "vit/1", "vit/1/file", "vit/2", "vit/2/file", "vit/7", "vit/8"]


def _fail_half_way(repository: Path, error: type[BaseException]) -> None:
    with new_version(repository, "vit") as new:
        (new.folder / "file").write_text("half", encoding="utf-8")
        (new.folder / "sub").mkdir()
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit], ids=lambda error: error.__name__)
def test_a_failed_version_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with new_version(tmp_path, "vit") as new:
        (new.folder / "file").touch()
    before = list_tree(tmp_path)
    for repository in (tmp_path, tmp_path / "new" / "models"):
        with pytest.raises(error):
            _fail_half_way(repository, error)
    assert list_tree(tmp_path) == before


def test_a_failure_of_ours_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(BundleCorruptError), new_version(tmp_path, "vit"):
        raise BundleCorruptError("x")


def _add_versions(repository: Path, number: int) -> None:
    for turn in range(5):
        with new_version(repository, "vit") as new:
            (new.folder / "who").write_text(f"{number}.{turn}", encoding="utf-8")


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
        (slow.folder / "who").write_text("slow", encoding="utf-8")
        with new_version(tmp_path, "vit") as fast:
            (fast.folder / "who").write_text("fast", encoding="utf-8")
    assert (slow.path, fast.path) == (tmp_path / "vit" / "2", tmp_path / "vit" / "1")
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
    before = list_tree(tmp_path)
    with pytest.raises(FileAccessError, match=r"can't write .*vit.*: .*; check"), new_version(repository, "vit"):
        pass
    assert list_tree(tmp_path) == before


# --- repositories ----------------------------------------------------------------------------------------------------


def test_finding_bundles(folder: Path) -> None:
    repository = folder.parents[1]
    (repository / "a-file").touch()
    (repository / "empty").mkdir()
    (repository / ".hidden" / "1").mkdir(parents=True)
    (repository / ".hidden" / "1" / FILE_NAME).touch()
    shutil.copytree(folder, folder.parent / "3")
    shutil.copytree(folder, repository / "another" / "2")
    assert list(find_bundles(repository).items()) == [("another", [2]), ("toy-detector", [1, 3])]
    assert list_versions(repository / "nowhere") == []


@pytest.mark.parametrize("place", ["nowhere", "file", "x" * 300], ids=["nowhere", "a file", "a name too long"])
def test_what_is_no_repository(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FerrymanError, match=re.escape(place[:10])):
        find_bundles(tmp_path / place)
