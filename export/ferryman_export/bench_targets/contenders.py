"""What runs against each other: PyTorch, the stock recipe's models, and our variants."""

import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

from ferryman.bench.alone import Load
from ferryman.runtimes import why_not
from ferryman.specs import Target
from ferryman_export.bench_targets.profiles import Profile

PRECISIONS = ("fp32", "bf16", "int8")
EAGER, STOCK = "PyTorch eager", "stock"
BATCH = 8


@dataclass(frozen=True)
class Contender:
    """One way to answer a picture.

    variant: what the table calls it; precision: what it is compared in
    run: answers one of `inputs`, which are the same pictures for everyone, as this contender takes them
    note: what its reader must know, such as that it is out of tolerance
    batch: `BATCH` pictures in one input of its; load: how to load it in a process of its own; None where it is not ours
    profile: runs it on one of `inputs` with its runtime's counters on; None where there are none
    """

    variant: str
    precision: str
    run: Callable[[Any], object]
    inputs: list[Any]
    note: str = ""
    batch: Any = None
    load: Load | None = None
    profile: Callable[[Any], Profile] | None = None


def stock_name(precision: str) -> str:
    return f"{STOCK} {precision}"


def has_bf16() -> bool:
    """Whether OpenVINO has bf16 on this processor; elsewhere it would compute in fp32 without a word."""
    return why_not(Target.parse("openvino-cpu-bf16")) is None


@contextmanager
def quiet_library() -> Generator[None, None, None]:
    """What libraries print goes to stderr, and their deprecations nowhere."""
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
