"""Asks a Ferryman server what a camera sees: python examples/camera/watch.py SOURCE [--draw found.mp4].

SOURCE is a video file, which is played at its own pace, or what FFmpeg can open: rtsp://..., http://...
Prints a line of JSON for each frame that was answered. A frame that has waited longer than --max-age is dropped, so
that what is printed is what the camera sees now. While the server is away frames are dropped too, and asking goes on
when it is back. Needs PyAV: pip install av
"""

import argparse
import io
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from av.error import FFmpegError
from frames import Film, Newest, Shot, read_shots

from ferryman import Client
from ferryman.drawing import draw_detections
from ferryman.errors import DeadlineError, FerrymanError, OverloadedError, UnavailableError
from ferryman.results import Detections

_INSIDE = 2  # frames on their way: while one is in the model the next travels
_RENEW_S = 60.0  # a stream is ended and begun anew, so that a connection that died in silence is noticed
_PAUSE_S = 0.2  # before asking a server again that went away


class Asking:
    """Detections of the newest frames, over streams that are begun again whenever the server went away."""

    def __init__(self, client: Client, model: str, newest: Newest) -> None:
        self.lost = 0  # frames that were sent, and never answered
        self.streams = 0
        self._client, self._model, self._newest = client, model, newest

    def answers(self) -> Iterator[tuple[Shot, Detections]]:
        """Until the source ends. Raises FerrymanError for what asking again can't mend."""
        away = False
        while True:
            asked: deque[Shot] = deque()
            over = threading.Event()
            room = threading.Semaphore(_INSIDE)
            self.streams += 1
            try:
                pictures = self._pictures(asked, room, over)
                for answer in self._client.stream_detect(pictures, model=self._model, timeout=_RENEW_S + 10):
                    away = False
                    shot = asked.popleft()
                    room.release()
                    if isinstance(answer.error, UnavailableError | OverloadedError | DeadlineError):
                        self.lost += 1
                        continue
                    yield shot, answer.result
            except (UnavailableError, DeadlineError) as error:
                if not away:
                    sys.stderr.write(f"asking again until it answers: {error}\n")
                away = True
                time.sleep(_PAUSE_S)
            finally:
                over.set()
                self.lost += len(asked)
            if self._newest.ended and not asked:
                return

    def _pictures(self, asked: "deque[Shot]", room: threading.Semaphore, over: threading.Event) -> Iterator[bytes]:
        """What gRPC's thread sends. It ends by itself with the stream, the source, or its time."""
        end = time.monotonic() + _RENEW_S
        while time.monotonic() < end and not over.is_set():
            if not room.acquire(timeout=0.1):
                continue
            shot = self._newest.take(over)
            if shot is None:
                return
            asked.append(shot)
            file = io.BytesIO()
            shot.image.save(file, "JPEG", quality=90)
            yield file.getvalue()


def watch(source: str, client: Client, model: str, fps: float, max_age_s: float, draw: Path | None) -> None:
    """Prints, and draws, until the source ends. Raises what reading and asking raise."""
    newest = Newest(max_age_s)
    failures: list[FerrymanError] = []

    def read() -> None:
        try:
            for shot in read_shots(source, fps):
                newest.put(shot)
        except FerrymanError as error:
            failures.append(error)
        finally:
            newest.end()

    threading.Thread(target=read, daemon=True).start()
    asking = Asking(client, model, newest)
    answered = 0
    with Film(draw) if draw is not None else nullcontext() as film:
        for shot, found in asking.answers():
            answered += 1
            facts = {
                "frame": shot.number,
                "seconds": round(shot.seconds, 3),
                "age_ms": round((time.monotonic() - shot.taken) * 1e3, 1),
                "found": [
                    {"label": one.label, "score": round(one.score, 3), "box": [round(side, 1) for side in one.box_xyxy]}
                    for one in found.detections
                ],
            }
            sys.stdout.write(json.dumps(facts) + "\n")
            sys.stdout.flush()
            if film is not None:
                film.add(draw_detections(shot.image, found.detections), shot.seconds)
    sys.stderr.write(
        f"{answered} frames answered, {newest.dropped} dropped, {asking.lost} lost, {asking.streams} streams\n"
    )
    if failures:
        raise failures[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--address", default="127.0.0.1:8001", help="HOST:PORT of the server")
    parser.add_argument("--model", default="detr-digits", help="a detector")
    parser.add_argument("--fps", type=float, default=10.0, help="frames a second at most")
    parser.add_argument("--max-age", type=float, default=0.5, help="seconds after which a frame is not worth asking")
    parser.add_argument("--draw", type=Path, metavar="FILE.mp4", help="what was found, as a video")
    given = parser.parse_args()
    try:
        with Client(given.address) as client:
            client.wait_ready(given.model)
            watch(given.source, client, given.model, given.fps, given.max_age, given.draw)
    except (FerrymanError, FFmpegError) as error:  # the latter of the video that is drawn
        sys.stderr.write(f"watch.py: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
