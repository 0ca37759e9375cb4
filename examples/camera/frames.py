"""A camera's side: frames as they come, and the place where the newest waits."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
from PIL import Image

from ferryman.errors import FileAccessError

_REOPEN_S = 1.0  # after a camera hung up
_PATIENCE_S = 10.0  # with a camera that connects or says nothing


@dataclass(frozen=True)
class Shot:
    """One frame. number: among those of the source; seconds: since its first; taken: when, by `time.monotonic`"""

    number: int
    seconds: float
    taken: float
    image: Image.Image


def read_shots(source: str, fps: float) -> Iterator[Shot]:
    """At most `fps` a second. A file is played at its own pace and ends; a URL is opened again whenever it breaks off.

    Raises FileAccessError for a file that can't be read, and for what holds no video.
    """
    live = "://" in source
    count = 0
    while True:
        try:
            for shot in _play(source, fps, live, count):
                yield shot
                count = shot.number + 1
        except av.error.FFmpegError as error:
            if not live:
                raise FileAccessError(f"can't read {source}: {error.strerror}") from error
        if not live:
            return
        time.sleep(_REOPEN_S)


def _play(source: str, fps: float, live: bool, count: int) -> Iterator[Shot]:
    options = {"rtsp_transport": "tcp"} if source.startswith("rtsp://") else {}
    with av.open(source, options=options, timeout=_PATIENCE_S) as container:
        if not container.streams.video:
            raise FileAccessError(f"{source} holds no video")
        stream = container.streams.video[0]
        stream.thread_type = "SLICE" if live else "AUTO"  # frame threads hold frames back
        start, first, due = time.monotonic(), None, 0.0
        for frame in container.decode(stream):
            first = frame.time or 0.0 if first is None else first
            seconds = (frame.time or 0.0) - first
            if not live:  # a camera would not have it earlier
                time.sleep(max(0.0, start + seconds - time.monotonic()))
            if seconds >= due:
                due = max(due + 1 / fps, seconds)
                yield Shot(count, seconds, time.monotonic(), frame.to_image())
            count += 1


class Newest:
    """Between a camera that waits for nobody and a model that takes its time: one frame, which a newer one replaces.

    max_age_s: a frame older than this is worth nothing to anybody, and is dropped
    """

    def __init__(self, max_age_s: float) -> None:
        self.dropped = 0
        self.ended = False
        self._max_age_s = max_age_s
        self._shot: Shot | None = None
        self._changed = threading.Condition()

    def put(self, shot: Shot) -> None:
        with self._changed:
            self.dropped += self._shot is not None
            self._shot = shot
            self._changed.notify_all()

    def end(self) -> None:
        """No more will come."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def take(self, given_up: threading.Event) -> Shot | None:
        """The newest frame, once there is one that is young enough. None after the last, or when the taker gave up."""
        with self._changed:
            while not given_up.is_set():
                shot, self._shot = self._shot, None
                if shot is not None and time.monotonic() - shot.taken <= self._max_age_s:
                    return shot
                self.dropped += shot is not None
                if self.ended:
                    return None
                self._changed.wait(0.1)
        return None


class Film:
    """Writes pictures as a video, each at its second. Use it in a `with` block."""

    def __init__(self, path: Path) -> None:
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream("mpeg4", rate=30)
        self._stream.pix_fmt = "yuv420p"
        self._stream.bit_rate = 4_000_000
        self._stream.codec_context.time_base = Fraction(1, 1000)
        self._size = (0, 0)
        self._last = -1

    def add(self, image: Image.Image, seconds: float) -> None:
        if not any(self._size):
            # codecs want even sides; what is drawn on a later picture may have made it larger
            self._size = (image.width // 2 * 2, image.height // 2 * 2)
            self._stream.width, self._stream.height = self._size
        frame = av.VideoFrame.from_image(image.crop((0, 0, *self._size)))
        self._last = max(self._last + 1, round(seconds * 1000))
        frame.pts, frame.time_base = self._last, Fraction(1, 1000)
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> "Film":
        return self

    def __exit__(self, *_: object) -> None:
        if any(self._size):
            self._container.mux(self._stream.encode())
        self._container.close()
