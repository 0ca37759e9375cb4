"""One bundle of several canvas sizes: proved at each, and every picture answered at the one that it wastes least of."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferryman.bundle import Bundle
from ferryman.certificates import make_certificate
from ferryman.client import Client
from ferryman.errors import ImageError, UsageError
from ferryman.predictor import Predictor
from ferryman.preprocess import preprocess_image
from ferryman.proof import prove_target
from ferryman_export.pipeline import ExportRequest, export
from ferryman_export.sizes import picture_sizes, propose_sizes

from ..serve.server.process import ServerProcess

WIDE, TALL, SMALL = (64, 96), (96, 64), (32, 48)


@pytest.fixture(scope="module")
def repository(checkpoints: dict[str, Path], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sizes")
    export(ExportRequest(str(checkpoints["detr"]), folder, "sized", pictures, (WIDE, TALL, SMALL)))
    return folder


def encode(height: int, width: int, seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_size_has_its_files_and_its_proof(repository: Path) -> None:
    bundle = Bundle.open(repository / "sized")
    assert {"model.onnx", "model-96x64.onnx", "model-32x48.onnx", "golden-96x64.npz", "parity-32x48.html"} < set(
        bundle.manifest.files
    )
    assert [spec.preprocess.size for spec in bundle.manifest.specs] == [WIDE, TALL, SMALL]
    reports = json.loads((bundle.path / "parity.json").read_text())["reports"]
    assert [tuple(report["size"]) for report in reports] == [WIDE, TALL, SMALL]
    certificate = make_certificate(bundle, prove_target(bundle, bundle.targets[0]))
    assert [report.size for report in certificate.reports] == [WIDE, TALL, SMALL]
    assert certificate.passed
    assert len(set(certificate.variant_digests)) == 3


# (height, width) of a picture, and the canvas that it goes to
CHOICES = [((640, 960), WIDE), ((960, 640), TALL), ((32, 48), SMALL), ((30, 400), WIDE), ((64, 96), WIDE)]


def test_a_server_answers_each_picture_at_its_size(repository: Path) -> None:
    """In one request too, whose pictures are computed in batches of one size each."""
    data = [encode(*size, seed=index) for index, (size, _) in enumerate(CHOICES)]
    with (
        Predictor.open(repository / "sized") as predictor,
        ServerProcess({"repository": str(repository)}) as server,
        Client(server.address) as client,
    ):
        answer = client.detect(data, model="sized", score_threshold=0.0)
        facts = client.model_info("sized")
        local, _ = predictor.detect(data, 0.0)
        sessions = {session.spec.preprocess.size: session for session in predictor.sessions}
        for one, result, mine, (size, wanted) in zip(data, answer.results, local, CHOICES, strict=True):
            assert result.size == (size[1], size[0])
            assert result.canvas == mine.canvas == (wanted[1], wanted[0])
            session = sessions[wanted]
            canvas, geometry = preprocess_image(one, session.spec.preprocess)
            valid = np.array([geometry.valid_size], dtype=np.int32)
            alone = session.run({"image": canvas[None], "valid_size": valid})
            expected = np.sort(alone["scores"][0])[::-1]
            for found in (result, mine):
                scores = [detection.score for detection in found.detections]
                np.testing.assert_allclose(scores, expected, atol=1e-5)  # batches round otherwise
    assert facts.canvases == ((96, 64), (64, 96), (48, 32))


@pytest.mark.nightly
def test_sizes_on_the_command_line(checkpoints: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "ferryman", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    source = ("export", checkpoints["vit"], "-o", tmp_path / "r", "--samples", pictures)
    result = run(*source, "--size", "32x32", "--size", "16x48", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert [report["size"] for report in document["parity"]] == [[32, 32], [16, 48]]
    assert document["seconds"] > 0
    assert document["peak_memory_bytes"] > 1e8  # PyTorch alone is more
    shown = run("inspect", document["bundle"])
    assert "the middle 32x32 or 16x48" in shown.stdout
    for sizes, message in ((("32x32", "32x32"), "given twice"), (("auto", "32x32"), "or auto alone; got 'auto'")):
        result = run(*source, *(part for size in sizes for part in ("--size", size)))
        assert result.returncode == 2
        assert message in result.stderr
    result = run("export", checkpoints["vit"], "-o", tmp_path / "r", "--size", "auto")
    assert result.returncode == 2
    assert "name their folder with --samples" in result.stderr


def save(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    folder.mkdir()
    for index, (height, width) in enumerate(sizes):
        Image.new("RGB", (width, height)).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(1200, 1600)] * 5, ((768, 1024),)),
        ([(1200, 1600)] * 5 + [(1600, 1200)] * 5, ((768, 1024), (1024, 768))),
        ([(2000, 2000), (1000, 4000), (4000, 1000)] * 4, ((896, 896), (448, 1792), (1792, 448))),
    ],
    ids=["one shape", "both ways up", "three shapes"],
)
def test_proposed_sizes(sizes: list[tuple[int, int]], expected: tuple[tuple[int, int], ...], tmp_path: Path) -> None:
    found = propose_sizes(save(tmp_path / "p", sizes), (896, 896), 64)
    assert set(found) == set(expected)
    assert [h * w for h, w in found] == sorted((h * w for h, w in found), reverse=True)


def test_small_pictures_are_proposed_a_small_size(tmp_path: Path) -> None:
    found = propose_sizes(save(tmp_path / "p", [(2000, 2000)] * 3 + [(450, 450)] * 3), (896, 896), 32)
    assert found == ((896, 896), (448, 448))


def test_sizes_of_pictures(tmp_path: Path) -> None:
    """Upright, and from the files' heads alone."""
    folder = save(tmp_path / "p", [(30, 50)])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 30)).save(folder / "1.jpg", exif=exif)
    assert picture_sizes(folder) == [(30, 50), (50, 30)]
    (folder / "2.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"2\.png can't be read as a picture"):
        picture_sizes(folder)
    with pytest.raises(UsageError, match="holds no picture"):
        propose_sizes(save(tmp_path / "none", []), (32, 32), 8)
