"""Memory that this process has freed, and its C library keeps."""

import ctypes
import sys


def give_back() -> None:
    """Returns to the system what was freed; takes up to some ten milliseconds. glibc keeps it otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # of glibc alone
        trim(0)
