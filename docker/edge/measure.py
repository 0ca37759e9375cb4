"""A server's memory while it answers, and its time from start to ready: measure.py REPOSITORY MODEL [CONFIG].

MODEL: a detector's name; CONFIG: as of `ferryman serve --config`, by default the file beside this one
Prints one line of figures, of the second start: the first proves the model, which is not done again. Ready is when
the server says so to its supervisor, as systemd hears it.
"""

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ferryman import Client

_REQUESTS, _STREAMED = 200, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("model")
    parser.add_argument("config", type=Path, nargs="?", default=Path(__file__).with_name("ferryman.toml"))
    parser.add_argument("--picture", type=Path, help="by default a grey one of 640x480")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _measure(arguments, folder)  # proves the model, which is done once
        figures = _measure(arguments, folder)
    sys.stdout.write(f"{' '.join(f'{name}={round(value, 2)}' for name, value in figures.items())}\n")


def _measure(arguments: argparse.Namespace, folder: str) -> dict[str, float]:
    command = [sys.executable, "-m", "ferryman", "serve", str(arguments.repository), "--config",
               str(arguments.config), "--address", f"127.0.0.1:{_free_port()}"]  # fmt: skip
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        place = Path(folder) / "notify"
        place.unlink(missing_ok=True)
        supervisor.bind(str(place))
        supervisor.settimeout(120)
        own = {"NOTIFY_SOCKET": str(place), "FERRYMAN_SERVE_MODELS": arguments.model,
               "FERRYMAN_SERVE_CERTIFICATES": f"{folder}/certificates"}  # fmt: skip
        start = time.monotonic()
        process = subprocess.Popen(command, env=os.environ | own, stdout=subprocess.DEVNULL)
        try:
            message = supervisor.recv(4096).decode()
            figures = {"ready_s": time.monotonic() - start, "cpu_s": _processor_s(process.pid)}
            assert message.startswith("READY=1"), message
            _ask(command[-1], arguments.model, arguments.picture)
            sizes = {f"{name}_mb": _memory_mb(process.pid, name) for name in ("VmRSS", "RssAnon", "RssFile", "VmHWM")}
        finally:
            process.terminate()
            process.wait()
    return figures | sizes


def _ask(address: str, model: str, picture: Path | None) -> None:
    data = _grey() if picture is None else picture.read_bytes()
    with Client(address) as client:
        for _ in range(_REQUESTS):
            client.detect([data], model=model)
        for frame in client.stream_detect((data for _ in range(_STREAMED)), model=model):
            if frame.error is not None:
                raise frame.error


def _grey() -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (640, 480), "grey").save(file, "JPEG")
    return file.getvalue()


def _memory_mb(process: int, name: str) -> float:
    """A line of the kernel's account of a process, in units of 10^6 bytes."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def _processor_s(process: int) -> float:
    """Seconds of a processor that it has used: what it takes to start where nothing else runs."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
