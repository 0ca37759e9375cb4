"""`ferryman serve`: the gRPC server in this process."""

import asyncio
import logging
from pathlib import Path

from ferryman.commands.console import err, out, print_json
from ferryman.server.app import ServerConfig, serve


def run_serve(repository: Path, address: str, threads: int | None, json_output: bool) -> None:
    """Returns when the server was told to stop and has answered what was in flight."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = ServerConfig.from_settings({"repository": repository, "address": address, "threads": threads})

    def announce(bound: str, models: list[str]) -> None:
        if json_output:
            print_json({"address": bound, "models": models})
        else:
            out.print(f"serving {', '.join(models)} on {bound}; Ctrl-C stops", markup=False)

    asyncio.run(serve(config, announce))
    if not json_output:
        err.print("stopped")
