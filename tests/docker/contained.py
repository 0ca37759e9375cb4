"""A root of `docker/root.sh`, run as an engine runs an image: in namespaces, with nothing to write but scratch."""

import os
import shutil
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ferryman.client import Client

from ..serve.server.process import free_address
from .dockerfiles import environment_of

PYTHON = Path("/usr/bin/python3.11")
images = pytest.mark.skipif(
    "FERRYMAN_IMAGES" not in os.environ or os.geteuid() != 0 or not PYTHON.exists() or shutil.which("apt-get") is None,
    reason="set FERRYMAN_IMAGES, as root on Debian 12 (minutes; needs its packages and PyPI)",
)


def contained(root: Path, models: Path, *command: str, under: str | None = None) -> list[str]:
    """A command of ferryman's there. under: a program in the root that runs its Python, an emulator"""
    contain = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", str(Path(__file__).parent / "contain.sh")]
    python = [*([under] if under else ()), "/usr/bin/python3.11", "-P", "-m", "ferryman"]
    return [*contain, str(root), str(models), *python, *command]


@contextmanager
def serving(
    root: Path, models: Path, address: str, under: str | None = None, patience_s: float = 120
) -> Generator[None]:
    """A server there, once it is ready; afterwards it is ended as engines end one."""
    line = contained(root, models, "serve", "--address", address, "--json", under=under)
    environment = environment_of("server-cpu.Dockerfile") | {
        "PATH": os.environ["PATH"],
        "FERRYMAN_SERVE_METRICS_ADDRESS": free_address(),
    }
    process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        with Client(address) as client:
            client.wait_ready(timeout=patience_s)
        yield
        # What engines send to the first process of a container, which ignores a signal that it has no handler for.
        os.kill(_first_process(process.pid), signal.SIGTERM)
        assert process.wait(timeout=120) == 0
    finally:
        if process.poll() is None:
            os.kill(_first_process(process.pid), signal.SIGKILL)
        process.communicate()


def _first_process(outside: int) -> int:
    """Of the namespace that `outside` made."""
    return int(Path(f"/proc/{outside}/task/{outside}/children").read_text(encoding="utf-8"))
