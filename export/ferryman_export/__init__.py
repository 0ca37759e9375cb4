"""From a checkpoint to a proved bundle: ONNX export, parity with PyTorch, and the bundle's writing.

The public face; `export` is imported when it is first used, for it takes PyTorch with it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ferryman_export.api import export

__all__ = ["export"]


def __getattr__(name: str) -> object:
    if name != "export":
        raise AttributeError(f"module 'ferryman_export' has no attribute {name!r}")
    from ferryman_export.api import export

    return export
