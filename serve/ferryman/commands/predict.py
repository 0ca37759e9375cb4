"""`ferryman classify`, `detect`, `embed` and `segment`: a few pictures, in this process or through a server."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
from PIL import Image

from ferryman.attention import Attention
from ferryman.commands.console import err, make_table, out, print_json, print_table, show_stages
from ferryman.commands.drawings import Drawing, choose_files
from ferryman.drawing import (
    draw_classification,
    draw_detections,
    draw_embedding,
    draw_looked_classification,
    draw_looked_detections,
    draw_looked_embedding,
    draw_segmentation,
)
from ferryman.errors import EngineError, FerrymanError, FileAccessError, ImageError, UsageError
from ferryman.files import replace_file
from ferryman.predictor import Predictor, Timings
from ferryman.preprocess import decode_image
from ferryman.results import Classification, Detections, Embedding, Segmentation
from ferryman.runtimes.base import DEFAULT, Settings

if TYPE_CHECKING:
    from ferryman.answers import ModelFacts
    from ferryman.client import AsyncClient, Client, Security

T = TypeVar("T", Classification, Detections, Embedding, Segmentation)


class Answers(Protocol):
    """What can answer: a Predictor here, or a model of a server."""

    name: str

    def classify(
        self, images: Sequence[bytes], top_k: int, *, explain: bool = False
    ) -> tuple[list[Classification], Timings]: ...

    def detect(
        self, images: Sequence[bytes], score_threshold: float, *, explain: bool = False
    ) -> tuple[list[Detections], Timings]: ...

    def embed(self, images: Sequence[bytes], *, explain: bool = False) -> tuple[list[Embedding], Timings]: ...

    def segment(self, images: Sequence[bytes], score_threshold: float | None) -> tuple[list[Segmentation], Timings]: ...


class Local:
    """A model in this process."""

    def __init__(self, predictor: Predictor) -> None:
        self.name = predictor.bundle.name
        self.classify = predictor.classify
        self.detect = predictor.detect
        self.embed = predictor.embed
        self.segment = predictor.segment


class Remote:
    """A model of a server. version: 0 for the newest"""

    def __init__(self, client: "Client", name: str, version: int) -> None:
        self.name, self.version = name, version
        self.client = client

    def classify(
        self, images: Sequence[bytes], top_k: int, *, explain: bool = False
    ) -> tuple[list[Classification], Timings]:
        answer = self.client.classify(images, model=self.name, version=self.version, top_k=top_k, explain=explain)
        return list(answer.results), answer.timings

    def detect(
        self, images: Sequence[bytes], score_threshold: float, *, explain: bool = False
    ) -> tuple[list[Detections], Timings]:
        answer = self.client.detect(
            images, model=self.name, version=self.version, score_threshold=score_threshold, explain=explain
        )
        return list(answer.results), answer.timings

    def embed(self, images: Sequence[bytes], *, explain: bool = False) -> tuple[list[Embedding], Timings]:
        answer = self.client.embed(images, model=self.name, version=self.version, explain=explain)
        return list(answer.results), answer.timings

    def segment(self, images: Sequence[bytes], score_threshold: float | None) -> tuple[list[Segmentation], Timings]:
        answer = self.client.segment(images, model=self.name, version=self.version, score_threshold=score_threshold)
        return list(answer.results), answer.timings

    def facts(self) -> "ModelFacts":
        return self.client.model_info(self.name, version=self.version)


@dataclass(frozen=True)
class Asker:
    """Whom to ask: a bundle, or a server's model; exactly one of the two. Raises UsageError otherwise.

    retries: of a server, as the client does by itself; without, each request is sent once
    """

    bundle: Path | None
    address: str | None
    model: str | None
    target: str | None
    settings: Settings = DEFAULT
    security: "Security | None" = None
    retries: bool = True

    def __post_init__(self) -> None:
        if (self.bundle is None) == (self.address is None):
            raise UsageError("give either a bundle (answers here) or --address HOST:PORT (asks a server)")
        if (self.address is None) != (self.model is None):
            raise UsageError("--address and --model NAME belong together")
        if self.address is not None and self.target is not None:
            raise UsageError("--target belongs to a bundle; a server answers with the variant that it loaded")
        if self.address is None and self.security is not None:
            raise UsageError("--tls, --ca, --certificate, --key and --token-file belong to --address")

    @contextmanager
    def open(self) -> Generator[Answers, None, None]:
        if self.bundle is not None:
            with Predictor.open(self.bundle, self.target, self.settings) as predictor:
                yield Local(predictor)
            return
        with self.connect() as remote:
            yield remote

    @contextmanager
    def connect(self) -> Generator[Remote, None, None]:
        """To the server's model. Raises UsageError for a model that is not NAME or NAME/VERSION."""
        from ferryman.client import Client

        assert self.model is not None
        name, _, version = self.model.partition("/")
        if version and not version.isdecimal():
            raise UsageError(f"--model must be NAME or NAME/VERSION, got {self.model!r}")
        with Client(**self._told()) as client:
            yield Remote(client, name, int(version or 0))

    def connect_async(self) -> "AsyncClient":
        """To its server; in the event loop that will use it."""
        from ferryman.client import AsyncClient

        return AsyncClient(**self._told())

    def _told(self) -> dict[str, Any]:
        from ferryman.client import RetryPolicy

        assert self.address is not None
        retry = None if self.retries else RetryPolicy(attempts=1)
        return {"address": self.address, "security": self.security, "retry": retry}


def read_image(path: Path) -> bytes:
    """Raises FileAccessError when the file can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileAccessError(f"can't read {path}: {error.strerror}") from error


def run_classify(
    asker: Asker, images: list[Path], top_k: int, draw: Path | None, explain: Path | None, json_output: bool
) -> None:
    """Prints the best classes of every picture; a picture that can't be answered does not stop the others."""

    def to_json(answer: Classification) -> dict[str, object]:
        predictions = [{"label": p.label, "score": round(p.score, 6)} for p in answer.predictions]
        return {"predictions": predictions, **_attention_json(answer.attention)}

    def to_rows(answer: Classification) -> list[tuple[str, ...]]:
        return [(p.label, f"{p.score:.3f}") for p in answer.predictions]

    with asker.open() as answers:

        def ask(data: bytes) -> Classification:
            return answers.classify([data], top_k, explain=explain is not None)[0][0]

        drawings = [Drawing(draw, draw_classification), Drawing(explain, draw_looked_classification, "--explain")]
        task = _Task(ask, drawings, to_json, to_rows)
        _run(task, answers.name, images, json_output, ("image", "label", "score"))


def run_detect(
    asker: Asker, images: list[Path], score: float, draw: Path | None, explain: Path | None, json_output: bool
) -> None:
    """Prints the objects in every picture; a picture that can't be answered does not stop the others."""

    def to_json(answer: Detections) -> dict[str, object]:
        return {
            "detections": [
                {
                    "label": d.label,
                    "score": round(d.score, 6),
                    "box": [round(side, 2) for side in d.box_xyxy],
                    **_attention_json(d.attention),
                }
                for d in answer.detections
            ]
        }

    def to_rows(answer: Detections) -> list[tuple[str, ...]]:
        rows = [(d.label, f"{d.score:.3f}", ", ".join(f"{side:.1f}" for side in d.box_xyxy)) for d in answer.detections]
        return rows or [("nothing", "", "")]

    def draw_answer(image: Image.Image, answer: Detections) -> Image.Image:
        return draw_detections(image, answer.detections)

    def draw_looked(image: Image.Image, answer: Detections) -> Image.Image:
        return draw_looked_detections(image, answer.detections)

    with asker.open() as answers:

        def ask(data: bytes) -> Detections:
            return answers.detect([data], score, explain=explain is not None)[0][0]

        task = _Task(ask, [Drawing(draw, draw_answer), Drawing(explain, draw_looked, "--explain")], to_json, to_rows)
        _run(task, answers.name, images, json_output, ("image", "label", "score", "box (x1, y1, x2, y2)"))


def _attention_json(attention: Attention | None) -> dict[str, object]:
    """Nothing where it was not asked for."""
    if attention is None:
        return {}
    rows = [[round(weight, 6) for weight in row] for row in attention.grid.tolist()]
    return {"attention": {"rows": rows, "covers": [round(side, 2) for side in attention.covers_xyxy]}}


def run_segment(asker: Asker, images: list[Path], score: float | None, draw: Path | None, json_output: bool) -> None:
    """Prints the segments of every picture; a picture that can't be answered does not stop the others."""

    def to_json(answer: Segmentation) -> dict[str, object]:
        return {
            "segments": [
                {
                    "label": s.label,
                    "score": round(s.score, 6),
                    "box": list(s.box_xyxy),
                    "area": s.mask.area,
                    "mask": {"size": list(s.mask.size), "counts": list(s.mask.counts)},
                }
                for s in answer.segments
            ]
        }

    def to_rows(answer: Segmentation) -> list[tuple[str, ...]]:
        pixels = answer.size[0] * answer.size[1]
        rows = [(s.label, f"{s.score:.3f}", f"{s.mask.area / pixels:.1%}") for s in answer.segments]
        return rows or [("nothing", "", "")]

    with asker.open() as answers:

        def ask(data: bytes) -> Segmentation:
            return answers.segment([data], score)[0][0]

        task = _Task(ask, [Drawing(draw, draw_segmentation)], to_json, to_rows)
        _run(task, answers.name, images, json_output, ("image", "label", "score", "share of the picture"))


def run_embed(
    asker: Asker, images: list[Path], output: Path | None, draw: Path | None, explain: Path | None, json_output: bool
) -> None:
    """Prints the class token of every picture, and writes the answers to all of them to one file: `_write_arrays`."""
    found: dict[str, Embedding] = {}

    def to_json(answer: Embedding) -> dict[str, object]:
        cls = [round(float(value), 6) for value in answer.cls]
        return {"cls": cls, "patches": list(answer.patches.shape), **_attention_json(answer.attention)}

    def to_rows(answer: Embedding) -> list[tuple[str, ...]]:
        first = ", ".join(f"{value:.3f}" for value in answer.cls[:4])
        return [("x".join(map(str, answer.patches.shape)), f"{np.linalg.norm(answer.cls):.3f}", f"{first}, …")]

    def draw_answer(image: Image.Image, answer: Embedding) -> Image.Image:
        return draw_embedding(image, answer.patches)

    with asker.open() as answers:

        def ask(data: bytes) -> Embedding:
            return answers.embed([data], explain=explain is not None)[0][0]

        drawings = [Drawing(draw, draw_answer), Drawing(explain, draw_looked_embedding, "--explain")]
        task = _Task(ask, drawings, to_json, to_rows, found)
        try:
            _run(task, answers.name, images, json_output, ("image", "patches", "norm", "class token"))
        finally:
            if output is not None and found:
                _write_arrays(output, found)


def _write_arrays(path: Path, found: dict[str, Embedding]) -> None:
    """A NumPy archive with `images` (count,) paths, `cls` (count, dim), `patches` (count, rows, columns, dim), and
    `attention` (count, rows, columns) where it was asked for.

    `patches.N` (rows, columns, dim) and `attention.N` for each when the model has several sizes and they differ.
    """
    arrays = {"images": np.array(list(found)), "cls": np.stack([answer.cls for answer in found.values()])}
    grids = {
        "patches": [answer.patches for answer in found.values()],
        "attention": [answer.attention.grid for answer in found.values() if answer.attention is not None],
    }
    for name, each in grids.items():
        match len({grid.shape for grid in each}):
            case 0:
                pass
            case 1:
                arrays[name] = np.stack(each)
            case _:
                arrays |= {f"{name}.{index}": grid for index, grid in enumerate(each)}
    with replace_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


@dataclass(frozen=True)
class _Task(Generic[T]):
    ask: Callable[[bytes], T]
    drawings: Sequence[Drawing[T]]
    to_json: Callable[[T], dict[str, object]]
    to_rows: Callable[[T], list[tuple[str, ...]]]
    found: dict[str, T] | None = None  # is given every answer, by its picture's path


def _run(
    task: _Task[T],
    model: str,
    images: list[Path],
    json_output: bool,
    columns: tuple[str, ...],
) -> None:
    drawings = [drawing for drawing in task.drawings if drawing.place is not None]
    targets = choose_files(drawings, images)
    documents: list[dict[str, object]] = []
    table = make_table(*columns, numbers=(2,))
    failed = 0
    # Elsewhere than on a terminal stderr is for what went wrong.
    with show_stages() if err.is_terminal else nullcontext(_silent) as show:
        for done, path in enumerate(images):
            show(f"ask {model}", done, len(images))
            document: dict[str, object] = {"image": str(path), "model": model}
            try:
                data = read_image(path)
                answer = task.ask(data)
                if task.found is not None:
                    task.found[str(path)] = answer
                document |= {"size": list(answer.size), "canvas": list(answer.canvas), **task.to_json(answer)}
                for number, row in enumerate(task.to_rows(answer)):
                    table.add_row(str(path) if number == 0 else "", *row)
                for drawing, places in zip(drawings, targets, strict=True):
                    with replace_file(places[done]) as temporary:
                        drawing.draw(decode_image(data), answer).save(temporary, format="PNG")
            except (ImageError, FileAccessError, EngineError) as error:
                failed += 1
                document["error"] = str(error)
                # A FileAccessError names its file itself.
                where = "" if isinstance(error, FileAccessError) else f"{path}: "
                err.print(f"ferryman: {where}{error}")
            documents.append(document)
    if json_output:
        print_json(documents)
    elif table.row_count:
        print_table(table)
    if failed:
        raise SystemExit(FerrymanError.exit_status)
    if not json_output:
        for drawing in drawings:
            out.print(f"drawn: {drawing.place}")


def _silent(_stage: str, _done: int, _total: int) -> None: ...
