"""examples/camera: a video, a real server that is killed in the middle of it, and what is drawn."""

import importlib
import itertools
import json
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ..serve.server.process import ServerProcess, free_address
from ..serve.toy import make_toy_repository

av = pytest.importorskip("av", reason="PyAV is missing: pip install av")
WATCH = Path(__file__).parents[2] / "examples" / "camera" / "watch.py"
SECONDS, RATE, SIZE = 20, 15, (320, 240)


def _make_video(path: Path) -> None:
    """A red square that wanders over grey."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(SECONDS * RATE):
            pixels = np.full((SIZE[1], SIZE[0], 3), 128, np.uint8)
            left = 10 + number
            pixels[60:160, left : left + 100] = (240, 20, 10)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def test_a_server_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    video, drawn, address = tmp_path / "street.mp4", tmp_path / "found.mp4", free_address()
    _make_video(video)
    make_toy_repository(tmp_path / "models", ["toy-detector"])
    settings = {"repository": str(tmp_path / "models"), "threads": 1, "address": address}
    line = [sys.executable, str(WATCH), str(video), "--address", address, "--model", "toy-detector"]
    with ServerProcess(settings) as server:
        watching = subprocess.Popen(
            [*line, "--draw", str(drawn)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert watching.stdout is not None
        before = [json.loads(watching.stdout.readline()) for _ in range(5)]
        server.kill()
    with ServerProcess(settings):
        rest, told = watching.communicate(timeout=120)
    assert watching.returncode == 0, told
    assert "Traceback" not in told
    answered = before + [json.loads(text) for text in rest.splitlines()]
    numbers = [one["frame"] for one in answered]
    assert numbers == sorted(set(numbers)), "an answer twice, or out of order"
    # Nothing from the time without a server is made up for: every answer is of what the camera had just seen.
    gap = max(later - earlier for earlier, later in itertools.pairwise(numbers))
    assert gap >= 5
    assert len(answered) > len(before)
    assert all(one["found"] for one in answered)
    frames, dropped, lost, streams = (int(part.split()[0]) for part in told.splitlines()[-1].split(", "))
    assert frames == len(answered)
    assert dropped > 0
    assert lost <= 2 * (streams - 1)
    assert streams > 1
    with av.open(str(drawn)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == len(answered)
    assert pictures[0].shape == (480, 640, 3)  # small ones are enlarged to be written on
    green = (pictures[0] @ [-1, 2, -1]) > 100  # nothing in the video is; of a palette's box and tag
    assert green.sum() > 500


def test_old_frames_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(WATCH.parent)
    frames = importlib.import_module("frames")
    newest, never, now = frames.Newest(max_age_s=60), threading.Event(), time.monotonic()
    first, second, old = (frames.Shot(number, 0.0, now - age, None) for number, age in enumerate((2, 1, 3600)))
    newest.put(first)
    newest.put(second)
    assert newest.take(never) is second  # the newer took the place of the older
    newest.put(old)
    newest.end()
    assert newest.take(never) is None
    assert newest.dropped == 2


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models = make_toy_repository(tmp_path_factory.mktemp("models"), ["toy-detector"])
    with ServerProcess({"repository": str(models), "threads": 1}) as server:
        yield server.address


def _write_sound(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.write_bytes(b""), "can't read"),
        (lambda path: path.write_text("no video"), "Invalid data"),
        (_write_sound, "holds no video"),
    ],
    ids=["none", "empty", "text", "sound"],
)
def test_a_source_that_is_no_video(make: Callable[[Path], object], why: str, address: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make(source)
    line = [sys.executable, str(WATCH), str(source), "--model", "toy-detector", "--address", address]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("watch.py: ")
    assert why in done.stderr
    assert "Traceback" not in done.stderr


def test_a_drawing_that_can_not_be_written(address: str, tmp_path: Path) -> None:
    _make_video(tmp_path / "street.mp4")
    line = [sys.executable, str(WATCH), str(tmp_path / "street.mp4"), "--model", "toy-detector", "--address", address]
    line += ["--draw", str(tmp_path / "nowhere" / "found.mp4")]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("watch.py: ")
    assert "Traceback" not in done.stderr
