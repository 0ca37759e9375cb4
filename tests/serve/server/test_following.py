"""What a repository does with what it finds at a further look."""

import json
import shutil
from pathlib import Path

import pytest

from ferryman.errors import BundleError, BundleNotFoundError, FerrymanError, ModelNotFoundError, UsageError
from ferryman.manifest import FILE_NAME, SCHEMA_VERSION

from ..toy import add_toy_bundle, flip_a_byte
from .inside import running, until
from .test_repository import Loader, opened

MODEL = "toy-classifier"


@pytest.fixture
def copy(toy_repository: Path, tmp_path: Path) -> Path:
    """A repository of one's own."""
    return shutil.copytree(toy_repository, tmp_path / "copy")


async def test_nothing_new_is_nothing_to_do(copy: Path) -> None:
    loader = Loader()
    async with opened(copy, loader) as repository:
        for name in repository.names:
            await repository.get(name)
        assert [await repository.refresh() for _ in range(3)] == [[], [], []]
        assert len(loader.loaded) == 3


async def test_a_version_is_kept_for_who_asks_for_it_by_its_number(copy: Path) -> None:
    loader = Loader()
    async with opened(copy, loader) as repository:
        for name in repository.names:
            await repository.get(name)
        held = await repository.get(MODEL, 1)
        add_toy_bundle(copy, MODEL, samples=3)
        assert await repository.refresh() == [MODEL]
        assert (await repository.get(MODEL)).model.version == 2
        assert await repository.get(MODEL, 1) is held
        assert not held.drained
        shutil.rmtree(copy / MODEL / "1")
        await repository.refresh()
        await until(lambda: held.closed)
        with pytest.raises(ModelNotFoundError, match="has no version 1; it has 2"):
            await repository.get(MODEL, 1)
    assert loader.loaded.count(f"{MODEL}/1") == 1


async def test_what_a_client_unloaded_stays_so(copy: Path) -> None:
    loader = Loader()
    async with opened(copy, loader) as repository:
        await repository.get(MODEL)
        await repository.unload(MODEL)
        add_toy_bundle(copy, MODEL, samples=3)
        await repository.refresh()
        for version in (0, 1, 2):
            with pytest.raises(BundleError, match="is unloaded"):
                await repository.get(MODEL, version)
        await repository.load(MODEL)
        assert (await repository.get(MODEL)).model.version == 2
        shutil.rmtree(copy / MODEL)
        await repository.refresh()
        add_toy_bundle(copy, MODEL)
        await repository.refresh()  # another model of that name, which nobody unloaded
        assert (await repository.get(MODEL)).model.version == 1


async def test_a_model_that_is_broken_from_the_start_is_known(copy: Path) -> None:
    loader = Loader()
    async with opened(copy, loader, MODEL, "toy-detector") as repository:
        await repository.get("toy-detector")
        add_toy_bundle(copy, "toy-embedder")
        flip_a_byte(add_toy_bundle(copy, MODEL, samples=3).path / "model.onnx")
        shutil.rmtree(copy / MODEL / "1")
        assert await repository.refresh() == [MODEL]
        assert repository.names == [MODEL, "toy-detector"]  # no others were asked for
        with pytest.raises(BundleError, match=f"{MODEL} version 2 can't be served"):
            await repository.get(MODEL)
        for _ in range(2):
            await repository.refresh()
        assert loader.loaded.count(f"{MODEL}/2") == 1
        add_toy_bundle(copy, MODEL)
        assert await repository.refresh() == [MODEL]
        assert (await repository.get(MODEL)).model.version == 3


async def test_a_version_waits_for_its_certificate(copy: Path) -> None:
    loader = Loader()
    async with opened(copy, loader) as repository:
        old = await repository.get(MODEL)
        new = add_toy_bundle(copy, MODEL, samples=3).path
        certificates = new / "certificates"
        certificates.rename(copy / ".certificates")
        await repository.refresh()
        [refused] = repository.refused()
        assert (refused.version, refused.state) == (2, "UNAVAILABLE")
        assert "certificate" in refused.reason
        assert await repository.get(MODEL) is old
        (copy / ".certificates").rename(certificates)  # as `ferryman verify` leaves them
        assert await repository.refresh() == [MODEL]
        assert (await repository.get(MODEL)).model.version == 2
        assert repository.refused() == []
    assert loader.loaded.count(f"{MODEL}/2") == 2


CHOICES: dict[str, tuple[str, type[FerrymanError], str]] = {
    "no TOML": ("[serve", UsageError, "is not TOML"),
    "a version that is not there": (f"[serve]\n{MODEL} = 7", BundleNotFoundError, "no version 7 to serve; it has 1"),
    "a model that is not there": ("[serve]\ntoy-clasifier = 1", BundleNotFoundError, "mean toy-classifier"),
    "no version": (f'[serve]\n{MODEL} = "latest"', UsageError, r"serve\.toy-classifier"),
    "an alias of nothing": ('[aliases]\na = "vit"', BundleNotFoundError, "a stands for vit, which is not there"),
    "of no version": (f'[aliases]\na = "{MODEL}/2"', BundleNotFoundError, "toy-classifier/2, which is not there"),
    "of a path": ('[aliases]\na = "../secret"', UsageError, r"aliases\.a: String should match"),
    "a model's name": (f'[aliases]\n{MODEL} = "toy-detector"', UsageError, "is a model's name"),
    "an unknown table": ("[server]", UsageError, "server: Extra inputs"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "error", "message"), CHOICES.values(), ids=CHOICES)
async def test_choices_that_fit_nothing(copy: Path, text: str, error: type[FerrymanError], message: str) -> None:
    async with opened(copy, Loader()) as repository:
        old = await repository.get(MODEL)
        add_toy_bundle(copy, "toy-detector", samples=3)
        (copy / "versions.toml").write_text(text, encoding="utf-8")
        for _ in range(2):
            with pytest.raises(error, match=message):
                await repository.refresh()
        assert await repository.get(MODEL) is old
        assert repository.versions("toy-detector") == (1,)
    with pytest.raises(error, match=message):  # and a server does not start on them
        async with opened(copy, Loader()):
            pass


async def test_an_alias_is_no_way_to_other_versions(copy: Path) -> None:
    add_toy_bundle(copy, MODEL, samples=3)
    (copy / "versions.toml").write_text(f'[aliases]\nold = "{MODEL}/1"\nnow = "{MODEL}"\n', encoding="utf-8")
    async with opened(copy, Loader()) as repository:
        assert [(await repository.get(name)).model.version for name in ("old", "now")] == [1, 2]
        # what may be asked for by an alias is what it stands for, and by number too
        assert (repository.versions("old"), repository.versions("now")) == ((1,), (2,))
        assert [(await repository.get(*asked)).model.version for asked in (("old", 1), ("now", 2))] == [1, 2]
        for name, version in (("old", 2), ("now", 1)):
            with pytest.raises(ModelNotFoundError, match=f"{name} is an alias of {MODEL}"):
                await repository.get(name, version)
        with pytest.raises(ModelNotFoundError):
            await repository.unload("old")


async def test_a_bundle_of_a_newer_ferryman_is_refused_with_what_to_do(copy: Path) -> None:
    """What came before it goes on; a server that starts with nothing else says the same and ends."""
    async with running(copy) as server:
        newer = shutil.copytree(copy / MODEL / "1", copy / MODEL / "2")
        facts = json.loads((newer / FILE_NAME).read_text(encoding="utf-8"))
        facts |= {"schema_version": SCHEMA_VERSION + 1, "proofs": {}}
        (newer / FILE_NAME).write_text(json.dumps(facts), encoding="utf-8")
        await server.models.refresh()
        assert (await server.models.get(MODEL)).model.version == 1
        (refused,) = server.models.refused()
        assert (refused.version, refused.reason) == (
            2,
            f"{MODEL}/2/manifest.json has schema 2, this version of Ferryman reads up to 1; upgrade Ferryman",
        )
    with pytest.raises(BundleError, match=r"has schema 2, this version of Ferryman reads up to 1; upgrade Ferryman"):
        async with running(copy, models=(MODEL,)):
            pass


async def test_a_repository_behind_a_link(toy_repository: Path, tmp_path: Path) -> None:
    """As engines mount models that come as an image; links inside of a bundle are refused."""
    (tmp_path / "models").symlink_to(toy_repository)
    async with running(tmp_path / "models", models=("toy-detector",)) as server:
        assert (await server.models.get("toy-detector")).model.version == 1
