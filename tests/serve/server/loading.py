"""Load on a server from another process, whose answers are compared with a reference and counted."""

import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ferryman.preprocess import preprocess_image, stack_inputs

from ..toy import SPECS, make_picture, toy_reference

LOAD = Path(__file__).with_name("load.py")


@dataclass(frozen=True)
class Report:
    """answers: [model, version, count]; errors: their counts by code and text; wrong: answers unlike the reference's

    backwards: answers of a lower version than the same asker had before; gone: askers who found no server any more
    """

    answers: list[tuple[str, str, int]]
    errors: dict[str, int]
    wrong: int
    backwards: int
    gone: int

    def versions(self, model: str) -> list[str]:
        """The versions that answered for it."""
        return [version for name, version, _ in self.answers if name == model]


class LoadProcess:
    """Two askers a model, by both services, each with a picture of its own and always one request under way.

    models: classifiers' names and aliases
    """

    def __init__(self, address: str, models: Sequence[str], askers: int = 2) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(LOAD), address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(
            [ask for model in models for seed in range(askers) for ask in _questions(model, seed)], self._process.stdin
        )
        self._process.stdin.flush()
        assert self._process.stdout.readline() == b"asking\n"

    def stop(self) -> Report:
        """What came back, once all that was asked is answered."""
        out, _ = self._process.communicate(timeout=120)
        assert self._process.returncode == 0
        return Report(**json.loads(out))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate(timeout=60)


def _questions(model: str, seed: int) -> list[dict[str, Any]]:
    spec = SPECS["toy-classifier"]
    picture = make_picture((40 * seed, 255 - 30 * seed, 90), seed=seed)
    canvas, geometry = preprocess_image(picture, spec.preprocess)
    inputs = stack_inputs([canvas], [geometry], spec.input_names)
    right = np.asarray(toy_reference("toy-classifier", inputs)["probabilities"][0])
    return [
        {"kind": kind, "model": model, "data": data, "probabilities": right}
        for kind, data in (("tensor", canvas[None]), ("picture", picture))
    ]
