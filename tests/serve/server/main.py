"""Runs a server: main.py SETTINGS [GATE]. See ServerProcess."""

import asyncio
import json
import logging
import sys
import time
from functools import partial
from itertools import count
from pathlib import Path

from ferryman.errors import FerrymanError
from ferryman.server.app import ServerConfig, serve


class FileGate:
    """Gate, for another process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count()  # the sessions of two models may arrive at once

    def __call__(self, size: int) -> None:
        (self._folder / f"batch-{next(self._numbers)}").write_text(str(size), encoding="utf-8")
        while not (self._folder / "open").exists():
            time.sleep(0.01)


def _tell(address: str, models: list[str]) -> None:
    sys.stdout.write(json.dumps([address, models]) + "\n")
    sys.stdout.flush()


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    load = None
    if len(sys.argv) > 2:
        sys.path.insert(0, str(Path(__file__).parent))
        from gate import load_gated  # pyright: ignore[reportImplicitRelativeImport]

        load = partial(load_gated, gate=FileGate(Path(sys.argv[2])))
    try:
        asyncio.run(serve(ServerConfig.from_settings(json.loads(sys.argv[1])), _tell, load))
    except FerrymanError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
