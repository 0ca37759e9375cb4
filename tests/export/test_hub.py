"""Models by `owner/name`, downloaded by huggingface_hub itself from a hub on a loopback port."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTForImageClassification

from ferryman.bundle import Bundle
from ferryman.errors import CheckpointError, HubError, MissingExtraError, UsageError
from ferryman_export.hub import is_hub_id
from ferryman_export.sources import SourceOptions, open_source

from .hub_server import COMMIT, Hub, serve_hub
from .tiny import save_hf_vit

ID = "someone/tiny-vit.v1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hf_vit(tmp_path_factory.mktemp("hub") / "files")


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Hub, None, None]:
    """A hub, and an empty cache for what comes from it."""
    with serve_hub(Hub(folder)) as hub:
        point_at(hub.url, tmp_path / "cache", monkeypatch)
        yield hub


def point_at(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_ENDPOINT and HF_HUB_CACHE do, which the library reads when it is first imported."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))


def leftovers(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file() and "incomplete" in path.name]


def test_download_and_cache(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages: dict[str, tuple[int, int]] = {}
    first = open_source(ID, progress=lambda stage, done, total: stages.update({stage: (done, total)}))
    assert (first.source, first.name) == (f"{ID}@{COMMIT}", "tiny-vit.v1")
    assert first.sha256 == open_source(str(folder)).sha256
    size = (folder / "model.safetensors").stat().st_size
    assert stages[f"download model.safetensors of {ID}"] == (size, size)
    assert not any("pytorch_model" in request or "notes.txt" in request for request in hub.requests)

    hub.requests.clear()
    assert open_source(ID, SourceOptions(revision="v2")).source == first.source
    assert not any(request.startswith("GET") and "resolve" in request for request in hub.requests)

    point_at("http://127.0.0.1:1", Path(huggingface_hub.constants.HF_HUB_CACHE), monkeypatch)  # where nobody listens
    for revision in (None, "v2", COMMIT):
        assert open_source(ID, SourceOptions(revision=revision)).source == first.source
    with pytest.raises(HubError, match=r"can't be downloaded .*hf download .* --revision v3 --local-dir DIR"):
        open_source(ID, SourceOptions(revision="v3"))


def test_shards_and_pickles(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """Shards as their index names them; a pickle only where there is nothing else."""
    tensors = load_file(folder / "model.safetensors")
    names = list(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    hub.folder = tmp_path / "sharded"
    hub.folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (hub.folder / name).write_bytes((folder / name).read_bytes())
    for part, kept in parts.items():
        save_file({name: tensors[name] for name in kept}, hub.folder / part)
    weight_map = {name: part for part, kept in parts.items() for name in kept}
    index = hub.folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    torch.save(tensors, hub.folder / "pytorch_model.bin")
    expected = open_source(str(folder)).module.state_dict()

    def found() -> bool:
        state = open_source(ID).module.state_dict()
        return all(tensor.equal(state[name]) for name, tensor in expected.items())

    assert found()
    assert not any("pytorch_model" in request for request in hub.requests)
    huggingface_hub.constants.HF_HUB_CACHE += "2"
    for name in (*parts, index.name):
        (hub.folder / name).unlink()
    assert found()
    huggingface_hub.constants.HF_HUB_CACHE += "3"
    (hub.folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        open_source(ID)


def test_cut_download(hub: Hub, tmp_path: Path) -> None:
    hub.cut = {"model.safetensors"}
    with pytest.raises(HubError, match="answers 503"):
        open_source(ID)
    assert not leftovers(tmp_path)
    assert not list((tmp_path / "cache").rglob("snapshots/*/model.safetensors"))
    hub.cut, hub.broken = set(), set()
    assert open_source(ID).source == f"{ID}@{COMMIT}"


@pytest.mark.parametrize(
    ("source", "revision", "refusal", "message"),
    [
        (ID, "v9", (0, ""), "has no revision 'v9'; give a branch, a tag or a whole commit"),
        ("some/other", None, (401, ""), "no folder some/other here and no model some/other on http.* that you may see"),
        ("some/other", None, (404, "RepoNotFound"), "no model some/other on .*hf auth login"),
        ("some/other", None, (403, "GatedRepo"), "is gated: ask for access at http.*/some/other, then log in"),
        ("some/other", None, (401, "GatedRepo"), "is gated"),
        ("some/other", None, (403, ""), r"refuses some/other \(403\); log in"),
        ("some/other", None, (500, ""), "answers 500 for some/other, .*try later"),
        ("some/o--ther", None, (0, ""), "no folder some/o--ther here, and it can't be a model's name on a hub"),
    ],
    ids=["revision", "unknown", "not found", "gated 403", "gated 401", "forbidden", "broken", "no id"],
)
def test_refusals(source: str, revision: str | None, refusal: tuple[int, str], message: str, hub: Hub) -> None:
    hub.refusals = {source: refusal}
    with pytest.raises(HubError, match=message):
        open_source(source, SourceOptions(revision=revision))


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:1", tmp_path, monkeypatch)
    with pytest.raises(
        HubError,
        match=r"^google/vit can't be downloaded from http://127\.0\.0\.1:1 \(.*refused.*\), and the cache of "
        r".*hf download google/vit --local-dir DIR; then here: ferryman export DIR\..*HF_HUB_OFFLINE=1",
    ):
        open_source("google/vit")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE forbids to download it; .*hf download google/vit"):
        open_source("google/vit")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"google/vit is no path here.*pip install 'ferryman\[hub\]'"):
        open_source("google/vit")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("google/vit-base-patch16-224", True),
        ("timm/vit_small_patch14_dinov2.lvd142m", True),
        ("vit-digits", False),
        ("./some/folder", False),
        ("../folder", False),
        ("/some/folder", False),
        ("a/b/c", False),
        ("runs/model.safetensors", False),
        ("runs/", False),
    ],
)
def test_what_is_a_hub_id(source: str, expected: bool) -> None:
    assert is_hub_id(source) is expected


def test_options_that_do_not_belong(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--revision belongs to a model on a hub"):
        open_source(str(folder), SourceOptions(revision="main"))
    with pytest.raises(UsageError, match="--adapter belongs to a folder, or a model on a hub"):
        open_source("vit-digits", SourceOptions(adapter=tmp_path))
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "google/vit"}')
    with pytest.raises(UsageError, match=r"is an adapter \(of google/vit\).*ferryman export BASE --adapter"):
        open_source(str(tmp_path))


def make_environment(hub: Hub, cache: Path) -> dict[str, str]:
    return os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}


# peft 0.21 asks transformers 5.23 for an attribute by its old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_command_line(folder: Path, pictures: Path, tmp_path: Path) -> None:
    """From a hub, with an adapter: the bundle's answers are those of peft's model."""
    adapted = peft.get_peft_model(
        ViTForImageClassification.from_pretrained(folder),
        peft.LoraConfig(target_modules=["q_proj", "fc2"], modules_to_save=["classifier"], init_lora_weights=False),
    ).eval()
    adapted.save_pretrained(str(tmp_path / "digits.lora"))
    command = [sys.executable, "-m", "ferryman", "export", ID, "--revision", "v2", "-o", str(tmp_path / "r")]
    command += ["--adapter", str(tmp_path / "digits.lora"), "--samples", str(pictures), "--json"]
    with serve_hub(Hub(folder)) as hub:
        environment = make_environment(hub, tmp_path / "cache")
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"- download model.safetensors of {ID}\n" in result.stderr
    bundle = Bundle.open(Path(json.loads(result.stdout)["bundle"]))
    assert bundle.name == "tiny-vit.v1-digits.lora"
    assert bundle.manifest.source.source == f"{ID}@{COMMIT} with the adapter {tmp_path / 'digits.lora'}"
    golden = np.load(bundle.path / "golden.npz")
    image = torch.from_numpy(golden["input.image"]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        expected = adapted(pixel_values=image).logits.numpy()
    np.testing.assert_allclose(golden["output.logits"], expected, rtol=0, atol=1e-5)


def test_interrupted_download_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ferryman", "export", ID, "-o", str(tmp_path / "r")]
    with serve_hub(Hub(folder, slow=0.05)) as hub:
        process = subprocess.Popen(
            command,
            env=make_environment(hub, tmp_path / "cache"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stderr is not None
            for line in process.stderr:
                if "download model.safetensors" in line:
                    process.send_signal(signal.SIGINT)
                    break
            rest = process.stderr.read()
        assert process.returncode == 130
    assert "Traceback" not in rest
    assert not leftovers(tmp_path)
    assert not (tmp_path / "r").exists()
