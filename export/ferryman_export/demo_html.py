"""The demo's report: what was carried across, what the server answered, and how fast."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ferryman.bundle import Bundle
from ferryman.parity import ParityReport


@dataclass(frozen=True)
class DrawnPicture:
    """A picture with the server's answer drawn on it. words: the answer; path: of the drawing."""

    name: str
    words: str
    path: Path

    def data_uri(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.path.read_bytes()).decode()}"


@dataclass(frozen=True)
class ModelSection:
    """One model's part of the demo. latencies: rows of `demo.Latency`."""

    name: str
    task: str
    report: ParityReport
    pictures: list[DrawnPicture]
    latencies: list[dict[str, Any]]

    def worst_errors(self) -> dict[str, float]:
        """Largest absolute error of every limited output, over all samples and batches."""
        worst: dict[str, float] = {}
        for error in self.report.errors:
            if error.limit is not None:
                worst[error.output] = max(worst.get(error.output, 0.0), error.max_abs)
        return worst

    def to_json(self, bundle: Bundle) -> dict[str, object]:
        """For `--json`."""
        return {
            "name": self.name,
            "bundle": str(bundle.path),
            "digest": bundle.digest,
            "max_abs_errors": self.worst_errors(),
            "answers": [{"image": p.name, "answer": p.words, "drawn": str(p.path)} for p in self.pictures],
            "latency": self.latencies,
        }


def render_demo(sections: list[ModelSection]) -> str:
    """The page as HTML, self-contained."""
    environment = Environment(
        loader=PackageLoader("ferryman_export"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("demo.html").render(sections=sections)
