"""Checkpoints and pictures that the export's tests share."""

from pathlib import Path

import pytest

from .tiny import save_detr, save_pictures, save_vit


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths of a tiny classifier's and a tiny detector's checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "vit": save_vit(folder / "tiny-vit.safetensors"),
        "detr": save_detr(folder / "tiny-detr.safetensors"),
    }


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures."""
    return save_pictures(tmp_path_factory.mktemp("samples") / "pictures")
