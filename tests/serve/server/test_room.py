"""A model and the memory that a container or service may have."""

import logging
from pathlib import Path

import pytest

from ferryman.errors import EngineError
from ferryman.server.memory import check_room, read_limit

MB = 10**6


def _system(root: Path, groups: str, limits: dict[str, str]) -> Path:
    """What the kernel tells of a process that has taken 50 MB."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups, encoding="utf-8")
    (root / "proc/self/status").write_text(f"VmRSS:\t 1 kB\nRssAnon:\t   {50 * MB // 1024} kB\n", encoding="utf-8")
    for file, limit in limits.items():
        (root / "sys/fs/cgroup" / file).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / file).write_text(f"{limit}\n", encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": "200000000"}, 200 * MB),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "200000000"}, 200 * MB),
        ("0::/host/only\n", {"memory.max": "200000000"}, 200 * MB),
        ("0::/\n", {"memory.max": "max"}, None),
        ("5:cpu:/\n4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "200000000"}, 200 * MB),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("", {}, None),
    ],
    ids=["v2", "v2 of a parent", "v2 in a container", "v2 none", "v1", "v1 none", "no cgroups"],
)
def test_limits(tmp_path: Path, groups: str, limits: dict[str, str], expected: int | None) -> None:
    assert read_limit(_system(tmp_path, groups, limits)) == expected


def test_what_fits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = _system(tmp_path, "0::/\n", {"memory.max": "200000000"})
    check_room("small/1", 40 * MB, root)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        check_room("middling/1", 100 * MB, root)
    assert "with middling/1 the server takes about 330 MB, and this process may have 200 MB" in caplog.text
    with pytest.raises(
        EngineError, match=r"with large/1 the server takes 210 MB at the least, 486 as a rule, and .* 200 MB"
    ):
        check_room("large/1", 160 * MB, root)
