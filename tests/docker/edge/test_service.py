"""The service of an edge box: what of the system it could reach, its settings, its installing, and a real systemd."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ferryman.server.settings import read_config

from ...serve.toy import make_picture, make_toy_repository

ROOT = Path(__file__).parents[3]
EDGE = ROOT / "docker" / "edge"
HERE = Path(__file__).parent


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing: apt install systemd")
def test_exposure() -> None:
    """Of 10, as systemd counts it."""
    line = ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(EDGE / "ferryman.service")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level for ferryman.service" in done.stdout
    strict = subprocess.run([*line[:3], "--threshold=5", line[4]], capture_output=True, check=False)
    assert strict.returncode != 0, "the threshold decides nothing"


def test_settings_are_those_of_a_server() -> None:
    config = read_config(EDGE / "ferryman.toml", {}, {})
    assert (config.threads, config.decode_threads, config.max_batch, config.concurrency) == (1, 1, 1, 1)
    unit = (EDGE / "ferryman.service").read_text(encoding="utf-8")
    assert "StateDirectory=ferryman\n" in unit
    assert str(config.certificates) == "/var/lib/ferryman/certificates"
    (stop_s,) = [int(line.partition("=")[2]) for line in unit.splitlines() if line.startswith("TimeoutStopSec=")]
    assert stop_s > config.grace_seconds + 10


PYTHON = next((path for path in map(Path, ("/usr/bin/python3", "/usr/local/bin/python3")) if path.exists()), None)
images = pytest.mark.skipif("FERRYMAN_IMAGES" not in os.environ, reason="set FERRYMAN_IMAGES (minutes; needs PyPI)")


def _install(root: Path, *options: str) -> str:
    line = ["sh", str(EDGE / "install.sh"), "--root", str(root), "--python", str(PYTHON), *options]
    return subprocess.run(line, capture_output=True, text=True, check=True, timeout=500).stdout


@images
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_installed_booted_hung_upgraded_removed(tmp_path: Path) -> None:
    if PYTHON is None:
        pytest.skip("no Python that a service could use")
    root = tmp_path / "root"
    assert "Writing the settings" in _install(root)
    models = make_toy_repository(root / "srv" / "ferryman" / "models", ["toy-detector"])
    (root / "srv" / "picture.png").write_bytes(make_picture((240, 20, 10)))
    if shutil.which("systemd-nspawn") and os.geteuid() == 0:
        _check_booted(root, tmp_path)
    settings = root / "etc" / "ferryman" / "ferryman.toml"
    settings.write_text("# mine\n", encoding="utf-8")
    assert "Leaving" in _install(root)
    assert settings.read_text(encoding="utf-8") == "# mine\n"
    told = _install(root, "--uninstall")
    assert "Left alone" in told
    assert settings.exists()
    assert any(models.iterdir())
    assert not (root / "opt" / "ferryman").exists()
    assert not (root / "etc" / "systemd" / "system" / "ferryman.service").exists()
    _install(root, "--uninstall")  # nothing left to do


def _check_booted(root: Path, tmp_path: Path) -> None:
    units = root / "etc" / "systemd" / "system"
    # Sooner than an edge box would lose patience.
    (units / "ferryman.service.d").mkdir()
    (units / "ferryman.service.d" / "soon.conf").write_text("[Service]\nWatchdogSec=3\n", encoding="utf-8")
    (units / "asking.service").write_text(
        "[Unit]\nWants=ferryman.service\nAfter=ferryman.service\nSuccessAction=exit\nFailureAction=exit\n"
        "[Service]\nType=oneshot\nExecStart=/bin/sh /srv/ask.sh\nTimeoutStartSec=240\n",
        encoding="utf-8",
    )
    shutil.copy(HERE / "ask.sh", root / "srv" / "ask.sh")
    work = tmp_path / "work"
    work.mkdir()
    subprocess.run(["unshare", "-m", "sh", str(HERE / "boot.sh"), str(root), str(work)], check=True, timeout=400)
    out = root / "out"
    log = (out / "log").read_text(encoding="utf-8")
    assert (out / "second.json").exists(), log + (root / "console").read_text(encoding="utf-8", errors="replace")
    first, second = (json.loads((out / name).read_text(encoding="utf-8")) for name in ("first.json", "second.json"))
    assert first[0]["detections"] == second[0]["detections"] != []
    before, after = ((out / name).read_text(encoding="utf-8") for name in ("before", "after"))
    assert "StatusText=serving toy-detector on 127.0.0.1:8001" in before
    assert "NRestarts=0" in before
    assert "NRestarts=1" in after
    assert "Watchdog timeout" in log
    assert len((out / "certificates").read_text(encoding="utf-8").split()) == 1
    shutil.rmtree(out)
