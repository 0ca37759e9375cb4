"""Ferryman carries ViT and DETR checkpoints from PyTorch to where they run, and proves nothing was lost.

The public face; everything is imported when it is first used, so that `import ferryman` costs next to nothing.
"""

from typing import TYPE_CHECKING

from ferryman.errors import FerrymanError

if TYPE_CHECKING:
    from ferryman.bundle import Bundle
    from ferryman.client import AsyncClient, Client, Security
    from ferryman.predictor import Predictor

__all__ = ["AsyncClient", "Bundle", "Client", "FerrymanError", "Predictor", "Security"]
__version__ = "0.1.0"

_HOMES = {
    "AsyncClient": "ferryman.client",
    "Bundle": "ferryman.bundle",
    "Client": "ferryman.client",
    "Predictor": "ferryman.predictor",
    "Security": "ferryman.client",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'ferryman' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
