"""NVIDIA's client, in a process of its own, asks a server in another: blocking, asyncio, streams, shared memory."""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ferryman.predictor import fit_images

from ...toy import LABELS, QUERIES, SIDE, SPECS, make_pictures, make_toy_repository, toy_reference
from ..process import ServerProcess, free_address

SCRIPT = Path(__file__).with_name("nvidia.py")
DETECTOR = "toy-detector"
IMAGES = np.random.default_rng(11).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
PICTURES = make_pictures(8)


def ask(address: str, scenario: str, *arguments: object) -> Any:
    """What a scenario of nvidia.py returns."""
    command = [sys.executable, "-W", "ignore", str(SCRIPT), address, scenario]
    done = subprocess.run(command, input=pickle.dumps(arguments), capture_output=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return pickle.loads(done.stdout)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An address at which a server allows its clients everything."""
    repository = make_toy_repository(tmp_path_factory.mktemp("models"))
    admin = free_address()
    settings = {"repository": str(repository), "threads": 1, "admin_address": admin, "shared_memory_bytes": 2**20}
    with ServerProcess(settings):
        yield admin


def detect(pictures: list[bytes]) -> dict[str, NDArray[Any]]:
    """The detector's outputs for pictures, in numpy."""
    fitted = fit_images(pictures, [SPECS[DETECTOR].preprocess])
    sizes = np.array([geometry.valid_size for geometry in fitted.geometries], np.int32)
    return dict(toy_reference(DETECTOR, {"image": np.stack(fitted.canvases), "valid_size": sizes}))


def detect_canvases(images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    return dict(
        toy_reference(DETECTOR, {"image": images, "valid_size": np.full((len(images), 2), SIDE, dtype=np.int32)})
    )


def assert_close(found: dict[str, Any], expected: dict[str, NDArray[Any]]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].shape == array.shape
        np.testing.assert_allclose(found[name], array, atol=1e-5)


def test_blocking(address: str) -> None:
    found = ask(address, "infer", DETECTOR, IMAGES, PICTURES)
    assert found["id"] == "7"
    assert_close(found["tensors"], detect_canvases(IMAGES))
    assert_close(found["pictures"], detect(PICTURES))
    probabilities = toy_reference("toy-classifier", {"image": IMAGES})["probabilities"]
    for row, expected in zip(found["classes"], probabilities, strict=True):
        best = np.argsort(-expected)[:2]
        values, indices, labels = zip(*(element.decode().split(":") for element in row), strict=True)
        assert (indices, labels) == (tuple(map(str, best)), tuple(LABELS[index] for index in best))
        assert list(map(float, values)) == pytest.approx(expected[best], abs=1e-5)
    (shape_status, shape_message), (picture_status, picture_message) = found["errors"]
    assert shape_status == picture_status == "StatusCode.INVALID_ARGUMENT"
    assert shape_message == "input image must be UINT8 [batch, 32, 32, 3], got UINT8 [3, 31, 32, 3]"
    assert "the 5 bytes are not a JPEG" in picture_message


def test_asyncio(address: str) -> None:
    found = ask(address, "asynchronous", DETECTOR, PICTURES)
    assert found["ready"]
    for picture, single, streamed in zip(PICTURES, found["single"], found["streamed"], strict=True):
        assert_close(single, detect([picture]))
        assert_close(streamed, detect([picture]))


def test_streaming(address: str) -> None:
    found = ask(address, "stream", DETECTOR, [*PICTURES, b"not a picture", *PICTURES])
    [error] = found["errors"]
    assert "the 13 bytes are not a JPEG" in error
    assert found["more"] == 0
    assert len(found["answers"]) == 2 * len(PICTURES)
    for index, picture in enumerate([*PICTURES, None, *PICTURES]):
        if picture is not None:
            arrays, final = found["answers"][str(index)]
            assert_close(arrays, detect([picture]))
            assert final


def test_shared_memory(address: str) -> None:
    key = f"/ferryman-{os.getpid()}"
    found = ask(address, "share", key, DETECTOR, IMAGES)
    expected = detect_canvases(IMAGES)
    assert found["boxes"].shape == (3, QUERIES, 4)
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=1e-5)
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-5)
    assert found["bytes"] == expected["boxes"].nbytes
    assert found["status"] == {
        "frames": {"name": "frames", "key": key, "byte_size": str(4096 + IMAGES.nbytes)},
    }
    assert found["left"] == {}


def test_descriptions(address: str) -> None:
    ask(address, "infer", DETECTOR, IMAGES, PICTURES)
    found = ask(address, "describe", "toy-detector")
    assert (found["ready"], found["not ready"]) == ([True] * 3, [False] * 2)
    assert found["server"]["name"] == "ferryman"
    assert "system_shared_memory" in found["server"]["extensions"]
    metadata, config = found["metadata"], found["config"]
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == (DETECTOR, ["1"], "onnxruntime_onnx")
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": ["-1", str(SIDE), str(SIDE), "3"]}]
    assert {one["name"]: (one["datatype"], one["shape"]) for one in metadata["outputs"]} == {
        "logits": ("FP32", ["-1", str(QUERIES), str(len(LABELS) + 1)]),
        "boxes": ("FP32", ["-1", str(QUERIES), "4"]),
        "scores": ("FP32", ["-1", str(QUERIES)]),
        "labels": ("INT64", ["-1", str(QUERIES)]),
    }
    assert (config["max_batch_size"], config["backend"], config["platform"]) == (32, "onnxruntime", "onnxruntime_onnx")
    assert "dynamic_batching" in config
    assert [(one["name"], one["data_type"], one["dims"]) for one in config["input"]] == [
        ("image", "TYPE_UINT8", [str(SIDE), str(SIDE), "3"])
    ]
    assert {one["name"]: one["data_type"] for one in config["output"]}["labels"] == "TYPE_INT64"
    optional = config["parameters"]["optional_inputs"]["string_value"]
    assert optional == "valid_size INT32 [-1, 2]; image_bytes BYTES [-1, 1]"
    [statistics] = found["statistics"]
    success = statistics["inference_stats"]["success"]
    assert int(success["count"]) >= 2
    assert int(statistics["inference_count"]) >= len(IMAGES) + len(PICTURES)
    assert abs(int(statistics["last_inference"]) / 1e3 - time.time()) < 240
    assert int(statistics["execution_count"]) == sum(
        int(batch["compute_infer"]["count"]) for batch in statistics["batch_stats"]
    )
    assert {(one["name"], one["version"], one["state"]) for one in found["index"]} == {
        (name, "1", "READY") for name in SPECS
    }


def test_control(address: str) -> None:
    ready, index, (status, message), ready_again, arrays = ask(address, "control", "toy-embedder", IMAGES)
    assert (ready, ready_again) == (False, True)
    states = {one["name"]: (one["state"], one.get("reason")) for one in index}
    assert states["toy-embedder"] == ("UNAVAILABLE", "unloaded")
    assert states["toy-detector"] == ("READY", None)
    assert (status, message) == ("StatusCode.FAILED_PRECONDITION", "toy-embedder version 1 is unloaded")
    assert_close(arrays, dict(toy_reference("toy-embedder", {"image": IMAGES})))
