"""Whether a model has room in the memory that this process may have: said at its start, before it is killed for it."""

import logging
import re
from pathlib import Path

from ferryman.errors import EngineError

log = logging.getLogger(__name__)
# Weights are copied, and most are laid out anew beside that; a graph of 8 MB was measured to take 21. The runtime and
# pictures come on top.
_LEAST, _USUAL, _RUNTIME = 1.0, 2.6, 20 * 10**6


def check_room(what: str, weights: int, root: Path = Path("/")) -> None:
    """what: is to be loaded, from files of so many bytes. Warns where it is likely not to fit.

    root: of the file system, where the kernel tells of it
    Raises EngineError where it can't fit: the weights alone, beside what the process has taken, pass its limit.
    """
    limit, taken = read_limit(root), _read_taken(root)
    if limit is None:
        return
    least, usual = taken + _LEAST * weights, taken + _RUNTIME + _USUAL * weights
    allowed = f"this process may have {limit / 1e6:.0f} MB (its cgroup's limit)"
    if limit < least:
        raise EngineError(
            f"with {what} the server takes {least / 1e6:.0f} MB at the least, {usual / 1e6:.0f} as a rule, and "
            f"{allowed}: raise the limit"
        )
    if limit < usual:
        log.warning("with %s the server takes about %.0f MB, and %s: it may be killed; raise the limit",
                    what, usual / 1e6, allowed)  # fmt: skip


def read_limit(root: Path = Path("/")) -> int | None:
    """Bytes that the cgroups of this process allow it, None where they don't say."""
    found: list[int] = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            folder, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            folder, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # The limits of all groups around it hold too. A container may see its own group as the root.
        inside = Path(name.strip("/"))
        for group in (inside, *inside.parents):
            found += [int(text) for text in _lines(folder / group / file) if text.isdecimal()]
    # The first version writes a number beyond all memory where there is no limit.
    return min((limit for limit in found if limit < 2**60), default=None)


def _read_taken(root: Path) -> int:
    """Bytes that can't be given back: without what is mapped from files."""
    (kilobytes,) = re.findall(r"^RssAnon:\s+(\d+) kB$", "\n".join(_lines(root / "proc/self/status")), re.MULTILINE) or [
        0
    ]
    return int(kilobytes) * 1024


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
