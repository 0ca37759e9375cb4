"""`ferryman serve`: the gRPC server in this process; and what is prepared for one."""

import asyncio
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from ferryman.commands.check import run_check
from ferryman.commands.console import err, out, print_json
from ferryman.server.app import serve
from ferryman.server.logs import configure_logs
from ferryman.server.repository import LOADING
from ferryman.server.security.tokens import make_secret, make_token
from ferryman.server.settings import read_config, settings_schema


def run_serve(file: Path | None, options: Mapping[str, object], check: bool, json_output: bool) -> None:
    """Returns when the server was told to stop and has answered what was in flight.

    file: TOML with settings of ServerConfig; options: settings that win over it, None for one that was not given
    check: look at everything, and serve nothing
    """
    config = read_config(file, os.environ, options)
    if check:
        run_check(config, json_output)
        return
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


def run_schema() -> None:
    """Prints the JSON schema of the TOML file."""
    print_json(settings_schema())


def run_token(name: str, options: Mapping[str, object], json_output: bool) -> None:
    """Prints a new token and its line for the file of tokens. options: fields of Token. Raises UsageError."""
    secret = make_secret()
    token = make_token(name, secret, **options)
    if json_output:
        print_json({"token": secret, "line": token.line})
        return
    out.print(secret)
    err.print("The token is shown this once; give it to its bearer. Its line for the file of tokens:")
    out.print(token.line)
