"""Files in which a user writes down what a model is for: JSON, checked as strictly as the facts themselves."""

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from ferryman.errors import FileAccessError, UsageError
from ferryman.specs import Facts

AnyFacts = TypeVar("AnyFacts", bound=Facts)


def read_spec_file(path: Path, kind: type[AnyFacts], example: str = "") -> AnyFacts:
    """The facts in `path`. Raises FileAccessError, and UsageError that says what is wrong in the file.

    example: what such a file looks like, for that error
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise FileAccessError(f"can't read {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        expected = f"; expected {example}" if example else ""
        raise UsageError(f"{path} is wrong at {where or 'its root'}: {first['msg']}{expected}") from error
