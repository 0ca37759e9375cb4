"""Which bundles are served: right ones, each loaded once; wrong ones are refused with their reason."""

import asyncio
import json
import logging
import shutil
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from ferryman.bundle import Bundle
from ferryman.errors import (
    BundleCorruptError,
    BundleError,
    BundleNotFoundError,
    BundleSchemaError,
    FerrymanError,
    ModelNotFoundError,
    ParityError,
    UnavailableError,
    UsageError,
)
from ferryman.golden import GoldenSamples
from ferryman.runtimes.base import Settings
from ferryman.server.loading import LoadedModel, load_model
from ferryman.server.repository import ModelRepository

from ..toy import TARGET, add_toy_bundle, change_golden, flip_a_byte, recertify, reseal
from .gate import Gate
from .inside import until


class Loader:
    """load_model that remembers what it loaded."""

    def __init__(self, fails: Callable[[Path], None] = lambda folder: None) -> None:
        self.loaded: list[str] = []
        self._fails = fails

    def __call__(self, folder: Path) -> LoadedModel:
        self.loaded.append("/".join(folder.parts[-2:]))
        self._fails(folder)
        return load_model(folder, settings=Settings(threads=1))


class Holder:
    """What serves a model in these tests: nothing but the model."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.drained = self.closed = False
        self.ready = True

    async def drain(self) -> None:
        self.drained = True

    async def close(self) -> None:
        self.closed = True
        self.model.close()


@asynccontextmanager
async def opened(folder: Path, loader: Loader, *only: str) -> AsyncGenerator[ModelRepository[Holder]]:
    repository = ModelRepository(folder, only, loader, Holder)
    yield repository
    await repository.close()


@pytest.fixture
def copy(toy_repository: Path, tmp_path: Path) -> Path:
    """A repository of one's own."""
    return shutil.copytree(toy_repository, tmp_path / "copy")


def shift_golden(folder: Path) -> None:
    """Golden samples of a model that answers a little otherwise; the bundle itself is whole."""

    def shift(golden: GoldenSamples) -> GoldenSamples:
        outputs = {name: np.add(array, np.float32(0.01)) for name, array in golden.outputs.items()}
        return GoldenSamples(golden.names, golden.inputs, outputs)

    change_golden(folder, shift)
    recertify(folder)


def forget_tolerances(folder: Path) -> None:
    reseal(folder, tolerances={})
    recertify(folder)


async def test_versions(copy: Path) -> None:
    add_toy_bundle(copy, "toy-classifier", samples=3)
    loader = Loader()
    async with opened(copy, loader) as repository:
        assert repository.names == ["toy-classifier", "toy-detector", "toy-embedder"]
        newest = await repository.get("toy-classifier")
        assert newest.model.version == 2
        assert await repository.get("toy-classifier", 2) is newest
        assert loader.loaded == ["toy-classifier/2"]  # an older one is not loaded until it is asked for
        older = await asyncio.gather(*(repository.get("toy-classifier", 1) for _ in range(5)))
        assert {one.model.version for one in older} == {1}
        assert loader.loaded == ["toy-classifier/2", "toy-classifier/1"]
    assert newest.closed
    assert older[0].closed


async def test_a_model_says_what_it_is(toy_repository: Path) -> None:
    model = await asyncio.to_thread(load_model, toy_repository / "toy-detector" / "1", settings=Settings(threads=1))
    facts = model.facts
    assert (facts.name, facts.version, facts.task, facts.target) == ("toy-detector", 1, "detection", str(TARGET))
    assert facts.bundle_digest == Bundle.open(toy_repository / "toy-detector").digest
    assert facts.canvases == ((32, 32),)
    assert facts.certified == model.certificate.created
    parity = {one.output: one for one in facts.parity}
    assert list(parity) == ["logits", "boxes", "scores", "labels"]
    assert (parity["boxes"].limit, parity["logits"].limit) == (1e-4, None)
    assert 0 <= parity["boxes"].max_abs_error <= 1e-4
    assert parity["boxes"].min_cosine > 0.9999


async def test_a_model_without_a_report_has_no_figures(copy: Path) -> None:
    (copy / "toy-detector" / "1" / "parity.json").unlink()
    manifest = copy / "toy-detector" / "1" / "manifest.json"
    facts = json.loads(manifest.read_text(encoding="utf-8"))
    del facts["files"]["parity.json"]
    manifest.write_text(json.dumps(facts), encoding="utf-8")
    model = await asyncio.to_thread(load_model, copy / "toy-detector" / "1", certify=True)
    assert model.facts.parity == ()


WRONG_REQUESTS = {
    "no name": ("", 0, UsageError, "names no model; this server has toy-classifier, toy-detector, toy-embedder"),
    "unknown": ("vit", 0, ModelNotFoundError, "there is no model 'vit'; this server has toy-classifier, "),
    "a path": ("../secret", 0, ModelNotFoundError, "there is no model '../secret'"),
    "version 7": ("toy-detector", 7, ModelNotFoundError, "toy-detector has no version 7; it has 1"),
    "version -1": ("toy-detector", -1, UsageError, "version -1 is below 0; 0 is the one that answers"),
}


@pytest.mark.parametrize(("name", "version", "error", "message"), WRONG_REQUESTS.values(), ids=WRONG_REQUESTS)
async def test_requests_that_fit_nothing(
    toy_repository: Path, name: str, version: int, error: type[FerrymanError], message: str
) -> None:
    loader = Loader()
    async with opened(toy_repository, loader) as repository:
        with pytest.raises(error) as caught:
            await repository.get(name, version)
    assert message in str(caught.value)
    assert loader.loaded == []


BROKEN = {
    "a flipped byte": (lambda folder: flip_a_byte(folder / "model.onnx"), BundleCorruptError, "model.onnx is not the"),
    "a missing file": (lambda folder: (folder / "golden.npz").unlink(), BundleCorruptError, "golden.npz is missing"),
    "no manifest that can be read": (
        lambda folder: (folder / "manifest.json").write_text("{", encoding="utf-8"),
        BundleSchemaError,
        "is not a bundle's manifest",
    ),
    "answers that differ": (shift_golden, ParityError, "is out of tolerance"),
    "no tolerance": (forget_tolerances, BundleSchemaError, "no tolerance for fp32"),
}  # fmt: skip


@pytest.mark.parametrize(("harm", "error", "message"), BROKEN.values(), ids=BROKEN)
async def test_a_broken_bundle_is_refused_beside_a_good_one(
    copy: Path,
    caplog: pytest.LogCaptureFixture,
    harm: Callable[[Path], None],
    error: type[FerrymanError],
    message: str,
) -> None:
    folder = copy / "toy-classifier" / "1"
    harm(folder)
    with pytest.raises(error, match=message):
        await asyncio.to_thread(load_model, folder)
    with caplog.at_level(logging.INFO):
        async with opened(copy, Loader()) as repository:
            for _ in range(2):
                with pytest.raises(BundleError, match=message) as caught:
                    await repository.get("toy-classifier")
                assert str(caught.value).startswith("toy-classifier version 1 can't be served: ")
            assert (await repository.get("toy-detector")).model.version == 1
    lines = [record.getMessage() for record in caplog.records]
    events = ["model loading", "model failed", "model loading", "model loaded"]
    assert [line.split(":")[0] for line in lines] == events
    assert message in lines[1]


async def test_a_broken_newest_version_is_not_replaced_by_an_older_one(copy: Path) -> None:
    add_toy_bundle(copy, "toy-classifier", samples=3)
    flip_a_byte(copy / "toy-classifier" / "2" / "model.onnx")
    async with opened(copy, Loader()) as repository:
        with pytest.raises(BundleError, match="toy-classifier version 2 can't be served"):
            await repository.get("toy-classifier")
        assert (await repository.get("toy-classifier", 1)).model.version == 1


async def test_a_bug_while_loading_is_logged_and_hidden(toy_repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail(folder: Path) -> None:
        if folder.parent.name == "toy-detector":
            raise ZeroDivisionError("secret")

    async with opened(toy_repository, Loader(fail)) as repository:
        with pytest.raises(BundleError) as caught:
            await repository.get("toy-detector")
        assert str(caught.value) == (
            "toy-detector version 1 can't be served: an unexpected error, see the server's log"
        )
        assert (await repository.get("toy-classifier")).model.version == 1
    assert "ZeroDivisionError: secret" in caplog.text


async def test_a_target_that_is_not_there(toy_repository: Path) -> None:
    with pytest.raises(UsageError, match="has no variant onnxruntime-cpu-int8"):
        await asyncio.to_thread(load_model, toy_repository / "toy-detector" / "1", "onnxruntime-cpu-int8")


async def test_only_some_models(toy_repository: Path) -> None:
    async with opened(toy_repository, Loader(), "toy-detector") as repository:
        assert repository.names == ["toy-detector"]
        with pytest.raises(ModelNotFoundError):
            await repository.get("toy-classifier")
    with pytest.raises(BundleNotFoundError, match="holds no model vit; it holds toy-classifier"):
        ModelRepository(toy_repository, ["vit"], load_model, Holder)


async def test_nothing_to_serve(toy_repository: Path, tmp_path: Path) -> None:
    for folder, message in {
        tmp_path / "nowhere": "there is no model repository at",
        tmp_path: "holds no bundle as NAME/VERSION",
        toy_repository / "toy-detector": "is a model by itself, and a repository holds each as NAME/VERSION",
        toy_repository / "toy-detector" / "1": "is a model by itself",
    }.items():
        with pytest.raises(BundleNotFoundError, match=message):
            ModelRepository(folder, (), load_model, Holder)


async def test_closed(toy_repository: Path) -> None:
    async with opened(toy_repository, Loader()) as repository:
        pass
    with pytest.raises(UnavailableError):
        await repository.get("toy-detector")


async def test_what_is_unloaded_is_refused_until_it_is_loaded(copy: Path) -> None:
    add_toy_bundle(copy, "toy-classifier", samples=3)
    async with opened(copy, Loader()) as repository:
        served = await asyncio.gather(repository.get("toy-classifier"), repository.get("toy-classifier", 1))
        await repository.get("toy-detector")
        await repository.unload("toy-classifier")
        assert all(one.drained and one.closed for one in served)
        for version in (0, 1, 2):
            with pytest.raises(BundleError, match="is unloaded"):
                await repository.get("toy-classifier", version)
        assert not repository.is_ready("toy-classifier")
        assert [one.model.name for one in repository.loaded()] == ["toy-detector"]
        states = {(one.name, one.version): (one.state, one.reason) for one in repository.index()}
        assert states == {
            ("toy-classifier", 1): ("UNAVAILABLE", "unloaded"),
            ("toy-classifier", 2): ("UNAVAILABLE", "unloaded"),
            ("toy-detector", 1): ("READY", ""),
            ("toy-embedder", 1): ("UNAVAILABLE", "loaded when it is first asked for"),
        }
        await repository.load("toy-classifier")
        assert (await repository.get("toy-classifier")).model.version == 2
        assert repository.versions("toy-classifier") == (2,)
        await repository.load("toy-classifier", 1)
        assert (await repository.get("toy-classifier", 1)).model.version == 1


async def test_a_new_version_is_the_newest_once_it_is_loaded(copy: Path) -> None:
    async with opened(copy, Loader()) as repository:
        old = await repository.get("toy-classifier")
        add_toy_bundle(copy, "toy-classifier", samples=3)
        assert await repository.get("toy-classifier") is old
        graph = copy / "toy-classifier" / "2" / "model.onnx"
        right = graph.read_bytes()
        flip_a_byte(graph)
        with pytest.raises(BundleError, match="toy-classifier version 2 can't be served"):
            await repository.load("toy-classifier")
        # the old one goes on, and the bad one is seen
        assert not old.drained
        assert await repository.get("toy-classifier") is old
        [_, bad, *_] = repository.index()
        assert (bad.version, bad.state, "model.onnx is not the file" in bad.reason) == (2, "UNAVAILABLE", True)
        graph.write_bytes(right)
        await repository.load("toy-classifier")
        assert (await repository.get("toy-classifier")).model.version == 2
        await until(lambda: old.drained and old.closed)
        assert (await repository.get("toy-classifier", 1)).model.version == 1  # loaded again for who holds on to it


async def test_unloading_a_model_that_loads(copy: Path) -> None:
    gate = Gate()
    async with opened(copy, Loader(lambda folder: gate(1))) as repository:
        waiting = asyncio.create_task(repository.get("toy-classifier"))
        await gate.wait_for_batches(1)
        assert repository.index()[0].state == "LOADING"
        await repository.unload("toy-classifier")
        with pytest.raises(UnavailableError, match="is being unloaded"):
            await waiting
        gate.open()
        assert repository.index()[0].reason == "unloaded"


@pytest.mark.parametrize(("name", "version", "error", "message"), WRONG_REQUESTS.values(), ids=WRONG_REQUESTS)
async def test_loads_that_fit_nothing(
    toy_repository: Path, name: str, version: int, error: type[FerrymanError], message: str
) -> None:
    async with opened(toy_repository, Loader()) as repository:
        with pytest.raises(error, match=message):
            await repository.load(name, version)
        if version == 0:
            with pytest.raises(error, match=message):
                await repository.unload(name)
