"""Measures again what the docs state: `python docs/figures.py [NAME...]`, or `make bench`.

A figure is what a command printed. It stands in a page between two comments, and the first says the command:

    <!-- figures NAME: COMMAND -->
    ...
    <!-- end of figures -->

What stands between is replaced by today's date, the machine, the versions and what the command prints, when it
succeeds. A command that fails, as `ferryman bench --strict` does on a machine that is not quiet, leaves the page as it
was. So does a machine that lacks what stands after the name: features of its processor that are there or are not, and
files.

    <!-- figures NAME needs amx_int8: COMMAND -->
    <!-- figures NAME needs avx512_vnni no-amx_int8 ../shared/data/pictures: COMMAND -->
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ferryman.device import read_device
from ferryman.files import write_text

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PACKAGES = (
    "ferryman",
    "numpy",
    "pillow",
    "grpcio",
    "onnxruntime",
    "openvino",
    "nncf",
    "tensorrt-rtx-cu13",
    "torch",
    "transformers",
)
_BLOCK = re.compile(
    r"(<!-- figures ([^\s:]+)(?: needs ([^:]+))?: (.+?) -->\n)(.*?)(<!-- end of figures -->)", re.DOTALL
)


@dataclass(frozen=True)
class Figures:
    page: Path
    name: str
    needs: tuple[str, ...]
    command: tuple[str, ...]


def find_figures(pages: Sequence[Path] = PAGES) -> list[Figures]:
    """Raises ValueError for a comment that has lost its other half, and for a name that stands twice."""
    found: list[Figures] = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        blocks = _BLOCK.findall(text)
        if len(blocks) != text.count("<!-- figures ") or len(blocks) != text.count("<!-- end of figures -->"):
            raise ValueError(f"{page.name}: a comment of figures has lost its other half")
        found += [
            Figures(page, name, tuple(needs.split()), tuple(shlex.split(command)))
            for _, name, needs, command, *_ in blocks
        ]
    names = [one.name for one in found]
    if len(set(names)) != len(names):
        raise ValueError(f"names of figures stand twice: {names}")
    return found


def find_lacks(figures: Figures) -> list[str]:
    """What of its needs this machine doesn't meet."""
    features = read_device().cpu_features

    def is_met(need: str) -> bool:
        if "/" in need:
            return (ROOT / need).exists()
        return (need.removeprefix("no-") in features) is not need.startswith("no-")

    return [need for need in figures.needs if not is_met(need)]


def describe_machine() -> str:
    device = read_device()
    found: list[str] = [f"Python {device.python}"]
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    processor = f"{device.cpu or device.machine}, {device.cores} processors ({', '.join(device.cpu_features)})"
    return f"{processor}; {', '.join(found)}"


def measure(figures: Figures) -> bool:
    """Whether the command succeeded; its words of progress and complaint go where this program's go."""
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "100"}
    done = subprocess.run(figures.command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.stderr.write(f"{done.stdout}\n{figures.name}: exit status {done.returncode}, left as it was\n")
        return False
    shown = done.stdout.strip("\n").rstrip()  # a table may begin with spaces
    if "\n| ---" not in shown:  # no table of Markdown
        shown = f"```text\n{shown}\n```"
    body = f"\n{datetime.now(UTC).date()}, `{shlex.join(figures.command)}`, on {describe_machine()}:\n\n{shown}\n\n"
    text = figures.page.read_text(encoding="utf-8")

    def change(block: re.Match[str]) -> str:
        return block[1] + body + block[6] if block[2] == figures.name else block[0]

    write_text(figures.page, _BLOCK.sub(change, text))
    return True


def main(names: Sequence[str]) -> int:
    figures = find_figures()
    unknown = sorted(set(names) - {one.name for one in figures})
    if unknown:
        sys.stderr.write(f"no figures {', '.join(unknown)}; there are {', '.join(one.name for one in figures)}\n")
        return 2
    failed = False
    for one in figures:
        if names and one.name not in names:
            continue
        if lacks := find_lacks(one):
            sys.stderr.write(f"==> {one.name}: left as it was, for it needs {', '.join(lacks)}\n")
            failed |= bool(names)
            continue
        sys.stderr.write(f"==> {one.name}: {shlex.join(one.command)}\n")
        failed |= not measure(one)
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was measured until now stands in the pages\n")
        sys.exit(130)
