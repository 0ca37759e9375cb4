"""A curve of batches that somebody else measured and published, as a TOML file: docs/published holds some.

For what can't be measured here. Whatever is made of one says so, and names its source.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from ferryman.errors import FileAccessError, UsageError
from ferryman.specs import Facts, Target

Text = Annotated[str, Field(min_length=1)]


class Published(Facts):
    """What one table of a publication says.

    model: with its size of picture; target: as ours are written, the nearest; device: the name of the processor or GPU
    batch_ms: of a run by its batch, milliseconds, one of a single picture among them
    source: the publication and the table in it; url: where, at the version that was read
    caveats: a line each, what the figures leave out or have other than here
    """

    model: Text
    target: Text
    device: Text
    batch_ms: dict[Annotated[int, Field(ge=1)], Annotated[float, Field(gt=0)]]
    source: Text
    url: Annotated[str, Field(pattern="^https://")]
    caveats: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        Target.parse(self.target)
        if 1 not in self.batch_ms:
            raise ValueError("batch_ms has no batch of 1, from which the others are judged")
        return self


def read_published(path: Path) -> Published:
    """Raises FileAccessError for a file that can't be read, UsageError for one that holds no such curve."""
    try:
        return Published.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise FileAccessError(f"can't read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} is no TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path} is no published curve: {f'{where}: ' if where else ''}{first['msg']}") from error
