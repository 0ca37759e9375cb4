"""Files that are whole or absent, and their digests."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from ferryman.errors import FileAccessError


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_access(path: Path, error: OSError) -> FileAccessError:
    return FileAccessError(f"can't write {path}: {error.strerror or error}; check the folder's permissions and space")


@contextmanager
def replace_file(path: Path) -> Generator[Path, None, None]:
    """Gives a temporary path beside `path`; on success it takes `path`'s place, on any error it is gone.

    Raises FileAccessError when the folder can't be written, or `path` is there and no plain file.
    """
    try:
        if path.exists() and not path.is_file():  # a rename would put a file in the place of /dev/null
            raise FileAccessError(f"can't write {path}: it is there and is not a plain file; choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise _no_access(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes files that only their owner can read
        temporary.replace(path)
    except OSError as error:
        raise _no_access(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def temporary_folder(parent: Path, name: str) -> Generator[Path, None, None]:
    """Gives an empty hidden folder in `parent`; it is gone when the block ends.

    `parent` is made when absent, and goes again when the block left nothing in it.
    Raises FileAccessError when the place can't be written.
    """
    try:
        made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=parent))
    except OSError as error:
        raise _no_access(parent / name, error) from error
    try:
        yield temporary
    except OSError as error:
        raise _no_access(parent / name, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):  # the first that is not empty ends it
            for folder in made:
                folder.rmdir()
