"""A server with as little around it as a container may have."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ferryman.client import Client

from ..serve.server.process import free_address
from ..serve.toy import make_picture

# A home that nobody can write to, a /tmp of its own, and of devices four: no /dev/shm.
SURROUND = """
set -eu
mount -t tmpfs -o ro none "$HOME"
mkdir "$WORK/dev"
mount -t tmpfs none "$WORK/dev"
for device in null zero random urandom; do
  touch "$WORK/dev/$device"
  mount --bind "/dev/$device" "$WORK/dev/$device"
done
mount --move "$WORK/dev" /dev
if touch "$HOME/file" 2>/dev/null || [ -e /dev/shm ]; then echo "it is not as bare as it should be" >&2; exit 9; fi
exec "$@"
"""


def _can_mount() -> bool:
    line = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(line, capture_output=True, check=False).returncode == 0


def test_a_home_that_is_read_only_and_no_shared_memory(toy_repository: Path, tmp_path: Path) -> None:
    if not _can_mount():
        pytest.skip("mounts can't be made here: it takes root and unshare")
    home, address = tmp_path / "home", free_address()
    home.mkdir()
    line = ["unshare", "--mount", "sh", "-c", SURROUND, "sh", sys.executable, "-W", "error", "-m", "ferryman"]
    line += ["serve", str(toy_repository), "--address", address, "--threads", "1"]
    environment = os.environ | {"HOME": str(home), "WORK": str(tmp_path)}
    process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        with Client(address) as client:
            client.wait_ready(timeout=60)
            assert client.detect([make_picture((240, 20, 10))], model="toy-detector").results[0].detections
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, told
    assert "Traceback" not in told
    assert "WARN" not in told, told
