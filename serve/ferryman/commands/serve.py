"""`ferryman serve`: the gRPC server in this process."""

import asyncio
import os
import sys
import threading
import tomllib
from collections.abc import Mapping
from pathlib import Path

from ferryman.commands.console import err, out, print_json
from ferryman.errors import FileAccessError, UsageError
from ferryman.server.app import ServerConfig, serve
from ferryman.server.logs import configure_logs
from ferryman.server.repository import LOADING


def run_serve(repository: Path, file: Path | None, options: Mapping[str, object], json_output: bool) -> None:
    """Returns when the server was told to stop and has answered what was in flight.

    file: TOML with settings of ServerConfig; options: settings that win over it, None for one that was not given
    """
    settings = {} if file is None else read_settings(file)
    settings |= {name: value for name, value in options.items() if value is not None}
    config = ServerConfig.from_settings(settings | {"repository": repository})
    configure_logs(config.log_format)

    def announce(bound: str, models: list[str]) -> None:
        if json_output:
            print_json({"address": bound, "models": models})
        else:
            out.print(f"serving {', '.join(models)} on {bound}; Ctrl-C stops", markup=False)

    asyncio.run(serve(config, announce))
    if not json_output:
        err.print("stopped")
    if any(thread.name.startswith(LOADING) for thread in threading.enumerate()):
        # A model that still loads can't be interrupted, and Python would wait for it, deaf to Ctrl-C.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def read_settings(file: Path) -> dict[str, object]:
    """A TOML file's settings. Raises FileAccessError, and UsageError for a file that is no TOML."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileAccessError(f"can't read {file}: {error.strerror}") from error
    except ValueError as error:  # of the encoding or of TOML
        raise UsageError(f"{file} is not TOML: {error}") from error
