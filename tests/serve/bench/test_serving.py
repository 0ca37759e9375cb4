"""The benchmark of serving, on a toy: everything is measured and told, on the screen and in the file."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ferryman.bench.peers import check_answer
from ferryman.bench.preprocessing import CANVASES, make_jpeg
from ferryman.bench.serving_report import Block, summarise
from ferryman.errors import FerrymanError
from ferryman.inference import grpc_service_pb2 as pb


def bench(*options: object, module: str = "serving") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", f"ferryman.bench.{module}", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_all_is_measured(toy_repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    options = ["--model", "toy-classifier", "--clients", "1", "--clients", "3", "--seconds", "0.4", "--rounds", "2"]
    done = bench(toy_repository, *options, "--overload", "0.2", "--timeout", "0.2", "--json", str(file))
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text(encoding="utf-8"))
    assert (document["model"], document["target"], document["threads"]) == ("toy-classifier", "onnxruntime-cpu-fp32", 1)
    clients = ["1 clients", "3 clients"]
    assert [row["what"] for row in document["closed"]] == [
        *("bare loop", *clients),
        *(f"plain {kind}, {count}" for kind in ("handler", "threads") for count in clients),
    ]
    loop, *served = document["closed"]
    assert (loop["ratio"], loop["extra_cpu_ms"]) == (1, 0)
    for row in served:
        assert row["images_per_s"] > 0
        assert row["extra_cpu_ms"] > 0
        # Only of ours is it known what goes on in its session's runs.
        assert (row["outside_cpu_ms"] is None) == row["what"].startswith("plain")
        assert row["outside_cpu_ms"] is None or row["outside_cpu_ms"] > 0
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["what"] in done.stdout
    assert 0 <= document["idle_cpu"] < 1
    pressed = document["pressed"]
    assert pressed["clients"] >= 3
    assert sum(pressed["codes"].values()) >= pressed["clients"]  # whatever became of them, in twice next to nothing
    assert ("OK" in pressed["codes"]) == (pressed["p99_ms"] > 0)
    [flood] = document["overload"]
    assert [row["canvas"] for row in document["preprocessing"]] == list(CANVASES)
    assert all(0 < row["cpu_ms"] <= row["median_cpu_ms"] for row in document["preprocessing"])
    # all that were sent are told of, whatever became of them
    assert sum(flood["codes"].values()) == pytest.approx(3 * loop["images_per_s"] * 0.2, rel=0.01)


def test_pictures_of_one_s_own(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(make_jpeg(64, 48))
    done = bench(*sorted(tmp_path.iterdir()), "--rounds", 1, module="preprocessing")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 pictures, ")
    assert all(name in done.stdout for name in CANVASES)


def test_a_model_that_is_not_there(toy_repository: Path) -> None:
    done = bench(toy_repository, "--model", "vit")
    assert done.returncode == 1
    assert "holds no model vit" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_does_not_start_is_told(toy_repository: Path, tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    done = bench(toy_repository, "--model", "toy-classifier", "--mlserver", str(python))
    assert done.returncode == 2
    assert "variants of OpenVINO" in done.stderr


def test_another_server_that_answers_otherwise_is_not_compared() -> None:
    expected = {"logits": np.array([[1.0, 2.0]], np.float32)}
    answer = pb.ModelInferResponse()
    answer.outputs.add(name="logits", datatype="FP32", shape=(1, 2))
    answer.raw_output_contents.append(np.array([[1.0, 2.001]], np.float32).tobytes())
    check_answer("a peer", answer, expected)
    answer.raw_output_contents[0] = np.array([[1.0, 2.1]], np.float32).tobytes()
    with pytest.raises(FerrymanError, match="answers otherwise"):
        check_answer("a peer", answer, expected)
    answer.raw_output_contents[0] = np.array([[1.0]], np.float32).tobytes()
    with pytest.raises(FerrymanError, match="answers otherwise"):
        check_answer("a peer", answer, expected)


def test_figures_are_those_of_the_blocks() -> None:
    bare = [Block(images=100, seconds=1.0, cpu_s=1.0, latencies_ms=(10.0,) * 100)] * 2
    served = [
        Block(images=90, seconds=1.0, cpu_s=0.99, latencies_ms=(11.0,) * 90, run_cpu_s=0.91),
        Block(images=160, seconds=2.0, cpu_s=1.76, latencies_ms=(12.5,) * 160, run_cpu_s=1.64),
    ]
    row = summarise("4 clients", bare, served)
    assert row.ratio == pytest.approx((0.9 + 0.8) / 2)
    assert row.images_per_s == pytest.approx(85)
    assert row.extra_cpu_ms == pytest.approx(1.0)
    assert row.outside_cpu_ms == pytest.approx(0.8)
    assert row.least_outside_cpu_ms == pytest.approx(0.75)
    assert summarise("loop", bare, bare).outside_cpu_ms is None
    assert (row.p50_ms, row.p99_ms) == (12.5, 12.5)
