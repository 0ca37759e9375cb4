"""The `ferryman` command as a process: signals, exit status, and one line for whatever goes wrong.

Exit status: 0 fine, 1 failed, 2 bad usage, 3 parity out of tolerance, 130 on Ctrl-C, 143 on SIGTERM.
"""

import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

from ferryman.errors import FerrymanError, UsageError

if TYPE_CHECKING:
    import typer


class _Stopped(SystemExit):
    """Told to stop by a signal. Unwinds everything, so that temporary files and child processes are cleaned up."""

    told: int | None = None  # the exit status, as soon as a signal came


def _stop(number: int, _frame: FrameType | None) -> None:
    _Stopped.told = 128 + number
    raise _Stopped(128 + number)


def main(app: "typer.Typer | None" = None, name: str = "ferryman") -> None:
    """Runs a command line, by default Ferryman's own; always ends in SystemExit."""
    # Before anything that takes long to import. Typer would turn a KeyboardInterrupt into a silent exit.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    _Stopped.told = None
    try:
        _run(app, name)
    except _Stopped:
        _say_stopped()
        raise
    except Exception as error:
        if _Stopped.told is not None:  # a library swallowed it, as PyTorch's exporter does, and failed otherwise
            _say_stopped()
            raise SystemExit(_Stopped.told) from error
        if isinstance(error, FerrymanError):
            _complain(str(error), type(error).__name__, error.answered)
            raise SystemExit(error.exit_status) from error
        if isinstance(error, OSError):  # such as a full disk under stdout; files that are named raise FileAccessError
            _complain(f"the operating system refused: {error.strerror or error}", "FileAccessError")
            raise SystemExit(FerrymanError.exit_status) from error
        raise


def _say_stopped() -> None:
    sys.stderr.write(f"ferryman: {'interrupted' if _Stopped.told == 128 + signal.SIGINT else 'terminated'}\n")


def _run(app: "typer.Typer | None", name: str) -> None:
    import io

    import typer

    arguments = sys.argv[1:]
    if app is None:
        from ferryman.cli import app

        arguments = arguments or ["--help"]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    # Typer's own click stays private to it; what it shows is this one of click's usage errors.
    usage_error = cast("type[Exception]", typer.BadParameter.__mro__[1])
    try:
        app(arguments, prog_name=name, standalone_mode=False)
    except usage_error as error:
        problem = cast("Any", error)
        command = problem.ctx.command_path if problem.ctx else "ferryman"
        raise UsageError(f"{problem.format_message().rstrip('.')}; `{command} --help` says what it takes") from error
    sys.stdout.flush()
    raise SystemExit(0)


def _complain(text: str, kind: str, answered: bool = False) -> None:
    """One line on stderr and, where JSON was asked for and not `answered` yet, one document on stdout."""
    import json

    message = " ".join(text.split())
    sys.stderr.write(f"ferryman: {message}\n")
    try:
        if "--json" in sys.argv and not answered:
            sys.stdout.write(json.dumps({"error": {"type": kind, "message": message}}) + "\n")
        sys.stdout.flush()
    except OSError:  # the reader of our output went away: else Python fails once more when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
