"""The table of a trained classifier: everyone answers the same pictures, and what is right is counted."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferryman_export.bench_targets.models import save_checkpoint

from .test_bench_targets import VIT

pytest.importorskip("nncf")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A ViT with a larger head, pictures, and some in the folders of its classes."""
    model = VIT.build()
    model.classifier.weight.data *= 20
    save_checkpoint(model, VIT.processor, tmp_path / "checkpoint")
    random = np.random.default_rng(0)
    for place, count in (("pictures", 40), ("labelled/LABEL_0", 3), ("labelled/LABEL_3", 4)):
        (tmp_path / place).mkdir(parents=True)
        for number in range(count):
            coarse = random.integers(0, 256, (4, 4, 3), np.uint8)
            Image.fromarray(coarse).resize((32, 32)).save(tmp_path / place / f"{number}.png")
    return tmp_path / "checkpoint", tmp_path / "pictures", tmp_path / "labelled"


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_everyone_is_counted(folders: tuple[Path, Path, Path]) -> None:
    command = [
        sys.executable,
        "-m",
        "ferryman_export.bench_targets.trained",
        *map(str, folders),
        "--seconds",
        "0.1",
        "--control",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(\S.*?) +([0-9.]+) +(\S+ \(.*?\)) +(\d+) +([0-9.]+)% +(\d+)$", done.stdout, re.MULTILINE)
    found = {name: (float(ms), int(right), float(agree)) for name, ms, _, right, agree, _ in rows}
    assert {"PyTorch eager", "stock fp32", "stock int8", "NNCF, accuracy control", "openvino-cpu-fp32"} <= set(found)
    assert all(ms > 0 for ms, _, _ in found.values())
    exact = found["PyTorch eager"]
    assert found["stock fp32"][1:] == found["openvino-cpu-fp32"][1:] == exact[1:]
    assert 0 <= exact[1] <= 7
    assert exact[2] == 100
    assert "7 labelled pictures" in done.stdout
