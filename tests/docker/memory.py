"""Memory of a server as it is shipped: -m tests.docker.memory edge|cluster REPOSITORY DETECTOR.

edge: with the settings and the environment of docker/edge, by docker/edge/measure.py, a process a row
cluster: with those of docker/kubernetes/overlays/cpu, one process that more and more callers ask
Megabytes are of 10^6 bytes; "at its most" is of all the process's time up to then.
"""

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from ferryman.client import Client
from ferryman.commands.console import make_table, print_table, show_stages
from ferryman.errors import FerrymanError
from ferryman.status import code_from_error

from .kubernetes.settings import servers, variables_of
from .places import free_port

DOCKER = Path(__file__).parents[2] / "docker"
GREY, NOISE = "640x480, grey", "1920x1080, noise"
CALLERS, CALLS = (32, 64, 128), 6
PATIENCE_S = 120


def make_pictures() -> dict[str, bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
    return {GREY: encode(Image.new("RGB", (640, 480), "grey")), NOISE: encode(Image.fromarray(noise))}


def encode(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


def unit_environment() -> dict[str, str]:
    """What systemd gives the service, homes aside."""
    lines = re.findall(r"^Environment=(.+)$", (DOCKER / "edge" / "ferryman.service").read_text("utf-8"), re.MULTILINE)
    found = dict(pair.split("=", 1) for line in lines for pair in line.split())
    return {name: value for name, value in found.items() if name != "HOME"}


def measure_edge(repository: Path, model: str) -> None:
    rows = [(GREY, GREY, unit_environment()), (NOISE, NOISE, unit_environment())]
    rows.append((f"{NOISE}, without the unit's environment", NOISE, {}))
    table = make_table(
        "pictures", "resident MB", "of files", "at its most", "ready s", "CPU s", numbers=(1, 2, 3, 4, 5)
    )
    with tempfile.TemporaryDirectory() as folder, show_stages() as show:
        for number, (name, picture, environment) in enumerate(rows):
            show(name, number, len(rows))
            file = Path(folder) / "picture"
            file.write_bytes(make_pictures()[picture])
            script = str(DOCKER / "edge" / "measure.py")
            command = [sys.executable, script, str(repository), model, "--picture", str(file)]
            done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
            found = dict(word.split("=") for word in done.stdout.split())
            sizes = [f"{float(found[key]):.0f}" for key in ("VmRSS_mb", "RssFile_mb", "VmHWM_mb")]
            table.add_row(name, *sizes, found["ready_s"], found["cpu_s"])
    print_table(table)


def measure_cluster(repository: Path, model: str) -> None:
    table = make_table("", "resident MB", "at its most", "answered", "refused", numbers=(1, 2, 3, 4))
    pictures = make_pictures()
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        show = opened.enter_context(show_stages())
        show("start", 0, 1)
        shutil.copytree(repository / model / "1", folder / "models" / model / "1")
        address = f"127.0.0.1:{free_port('127.0.0.1')}"
        process = start(folder, address)
        opened.callback(process.wait)
        opened.callback(process.terminate)
        client = opened.enter_context(Client(address, timeout=60))
        wait_until(lambda: ask(client, model, pictures[GREY]) == "OK", process)

        def tell(name: str, codes: Sequence[str]) -> None:
            counts = Counter(codes)
            refused = counts["RESOURCE_EXHAUSTED"]
            assert counts["OK"] + refused == len(codes), counts
            sizes = [f"{memory_mb(process.pid, key):.0f}" for key in ("VmRSS", "VmHWM")]
            table.add_row(name, *sizes, str(counts["OK"]), str(refused))

        tell("ready", ["OK"])
        show("one caller", 0, 1)
        tell(f"1 caller, {GREY}", [ask(client, model, pictures[GREY]) for _ in range(200)])
        later = folder / "models" / ".new"
        shutil.copytree(folder / "models" / model / "1", later)
        later.rename(folder / "models" / model / "2")
        codes: list[str] = []
        wait_until(lambda: version_of(client, model, pictures[GREY], codes) == "2", process)
        tell("the same, while a new version takes over", codes)
        for callers in CALLERS:
            show(f"{callers} callers", 0, 1)
            with ThreadPoolExecutor(callers) as pool:
                found = [
                    pool.submit(lambda: [ask(client, model, pictures[NOISE]) for _ in range(CALLS)])
                    for _ in range(callers)
                ]
                tell(f"{callers} callers, {NOISE}", [code for one in found for code in one.result()])
    print_table(table)


def start(folder: Path, address: str) -> subprocess.Popen[bytes]:
    own = {
        "FERRYMAN_SERVE_REPOSITORY": str(folder / "models"),
        "FERRYMAN_SERVE_CERTIFICATES": str(folder / "certificates"),
        "FERRYMAN_SERVE_ADDRESS": address,
        "FERRYMAN_SERVE_METRICS_ADDRESS": f"127.0.0.1:{free_port('127.0.0.1')}",
        "FERRYMAN_SERVE_CERTIFY": "true",
    }
    shipped = variables_of(servers()["cpu"].container, "server-cpu.Dockerfile")
    del shipped["PYTHONPATH"]  # where its packages are in the image
    environment = os.environ | shipped | own
    command = [sys.executable, "-m", "ferryman", "serve"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_until(done: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not done():
        assert process.poll() is None, "the server has ended"
        assert time.monotonic() < end, "it takes too long"


def ask(client: Client, model: str, picture: bytes) -> str:
    """The status of one call."""
    try:
        client.detect([picture], model=model)
    except FerrymanError as error:
        return code_from_error(error).name
    return "OK"


def version_of(client: Client, model: str, picture: bytes, codes: list[str]) -> str:
    answer = client.detect([picture], model=model)
    codes.append("OK")
    return str(answer.answerer.version)


def memory_mb(process: int, name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{process}/status").read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", choices=("edge", "cluster"))
    parser.add_argument("repository", type=Path)
    parser.add_argument("model")
    arguments = parser.parse_args()
    {"edge": measure_edge, "cluster": measure_cluster}[arguments.place](arguments.repository, arguments.model)


if __name__ == "__main__":
    main()
