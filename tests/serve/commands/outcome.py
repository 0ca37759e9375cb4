"""A command, and what came of it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

FERRYMAN = [sys.executable, "-m", "ferryman"]
ENVIRONMENT = {"TERM": "xterm-256color", "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1", "COLUMNS": "40"}


@dataclass(frozen=True)
class Outcome:
    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.stdout)

    @property
    def complaint(self) -> str:
        """The one line of a failure; stages that were reported before it start with a dash."""
        lines = [line for line in self.stderr.splitlines() if not line.startswith("- ")]
        assert len(lines) == 1, self.stderr
        return lines[0]


Cli = Callable[..., Outcome]


def spawn(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    """`ferryman ...` in a process of its own."""
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*FERRYMAN, *map(str, arguments)], env=os.environ | ENVIRONMENT, **settings | options)


def finish(process: "subprocess.Popen[str]") -> Outcome:
    stdout, stderr = process.communicate(timeout=120)
    assert "Traceback" not in stderr, stderr
    return Outcome(process.returncode, stdout, stderr)
