"""A server's memory while it answers, and its time from start to ready: measure.py REPOSITORY MODEL [CONFIG].

MODEL: a detector's name; CONFIG: as of `ferryman serve --config`, by default the file beside this one
Prints one line of figures. Ready is when the server says so to its supervisor, as systemd hears it.
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
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(f"{folder}/notify")
        supervisor.settimeout(120)
        command = [sys.executable, "-m", "ferryman", "serve", str(arguments.repository), "--config",
                   str(arguments.config), "--address", f"127.0.0.1:{_free_port()}"]  # fmt: skip
        start = time.monotonic()
        process = subprocess.Popen(command, env=os.environ | {"NOTIFY_SOCKET": f"{folder}/notify"},
                                   stdout=subprocess.DEVNULL)  # fmt: skip
        try:
            message = supervisor.recv(4096).decode()
            seconds, processor = time.monotonic() - start, _processor_s(process.pid)
            assert message.startswith("READY=1"), message
            _ask(command[-1], arguments.model, arguments.picture)
            figures = {f"{name}_mb": _memory_mb(process.pid, name) for name in ("VmRSS", "RssAnon", "RssFile", "VmHWM")}
        finally:
            process.terminate()
            process.wait()
    rounded = {name: round(value, 2) for name, value in {"ready_s": seconds, "cpu_s": processor, **figures}.items()}
    sys.stdout.write(f"{' '.join(f'{name}={value}' for name, value in rounded.items())}\n")


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
