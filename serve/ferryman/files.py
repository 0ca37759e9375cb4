"""Files that are whole or absent, and their digests."""

import glob
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from ferryman.errors import FileAccessError

if sys.platform != "win32":
    import fcntl

# Younger folders are not swept: one just made is not held yet, and a shared disk may not tell of what others hold.
_LEAST_AGE_S = 24 * 3600


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_access(path: Path, error: OSError) -> FileAccessError:
    return FileAccessError(f"can't write {path}: {error.strerror or error}; check the folder's permissions and space")


@contextmanager
def undisturbed() -> Generator[None, None, None]:
    """Ctrl-C and SIGTERM of this block are heard at its end: what makes or clears a place isn't cut in two."""
    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield
        return
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        with ExitStack() as restored:  # all of them, even if a signal is heard as soon as one of them is
            for number, handler in before.items():
                restored.callback(signal.signal, number, signal.SIG_DFL if handler is None else handler)
        for number in came:
            signal.raise_signal(number)


@contextmanager
def replace_file(path: Path) -> Generator[Path, None, None]:
    """Gives a temporary path beside `path`; on success it takes `path`'s place, on any error it is gone.

    Raises FileAccessError when the folder can't be written, or `path` is there and no plain file.
    """
    temporary: Path | None = None
    try:
        if path.exists() and not path.is_file():  # a rename would put a file in the place of /dev/null
            raise FileAccessError(f"can't write {path}: it is there and is not a plain file; choose another name")
        with undisturbed():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            os.close(handle)
            temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes files that only their owner can read
        temporary.replace(path)
    except OSError as error:
        raise _no_access(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A whole new file in the place of `path`, or what was there. Raises FileAccessError, see `replace_file`."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def temporary_folder(parent: Path, name: str) -> Generator[Path, None, None]:
    """Gives an empty hidden folder in `parent`; it is gone when the block ends, or swept by the next of this name.

    `parent` is made when absent, and goes again when the block left nothing in it.
    Raises FileAccessError when the place can't be written.
    """
    made: list[Path] = []
    temporary: Path | None = None
    held: int | None = None
    try:
        _sweep(parent, name)
        with undisturbed():
            made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
            parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{name}.new-", dir=parent))
            held = _hold(temporary)
        yield temporary
    except OSError as error:
        raise _no_access(parent / name, error) from error
    finally:
        with undisturbed():
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            if held is not None:
                os.close(held)
            with suppress(OSError):  # the first that is not empty ends it
                for folder in made:
                    folder.rmdir()


def _sweep(parent: Path, name: str) -> None:
    """Clears away what a process that was killed left of `temporary_folder`."""
    for folder in parent.glob(f".{glob.escape(name)}.new-????????"):
        with suppress(OSError):  # another process sweeps it too
            if time.time() - folder.stat().st_mtime > _LEAST_AGE_S and (held := _hold(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(held)


def _hold(folder: Path) -> int | None:
    """A descriptor that holds the folder until it is closed; None when another does, or nothing can be held here."""
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
