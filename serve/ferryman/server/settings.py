"""Where a server's settings come from: a TOML file, then the environment, then the command line; the last one wins."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ferryman.errors import FileAccessError, UsageError, propose
from ferryman.server.config import ServerConfig

PREFIX = "FERRYMAN_SERVE_"


def read_config(file: Path | None, environment: Mapping[str, str], options: Mapping[str, object]) -> ServerConfig:
    """options: None for one that was not given. Raises FileAccessError and UsageError, for the first thing wrong."""
    settings = {} if file is None else read_settings(file)
    settings |= settings_from_environment(environment)
    settings |= {name: value for name, value in options.items() if value is not None}
    if "repository" not in settings:
        raise UsageError(f"give the model repository: as argument, as {PREFIX}REPOSITORY, or as repository in the file")
    return ServerConfig.from_settings(settings)


def read_settings(file: Path) -> dict[str, object]:
    """A TOML file's settings. Raises FileAccessError, and UsageError for a file that is no TOML."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileAccessError(f"can't read {file}: {error.strerror}") from error
    except ValueError as error:  # of the encoding or of TOML
        raise UsageError(f"{file} is not TOML: {error}") from error


def settings_from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    """FERRYMAN_SERVE_<SETTING>: lists with commas, tables as JSON; an empty one is none. Raises UsageError."""
    properties = settings_schema()["properties"]
    settings: dict[str, object] = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or not text:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in properties:
            raise UsageError(f"{variable}: there is no setting {name}{propose(name, properties)}")
        settings[name] = _value(variable, text, properties[name])
    return settings


def settings_schema() -> dict[str, Any]:
    """JSON schema of the TOML file, for editors and other tools."""
    schema = ServerConfig.model_json_schema()
    del schema["required"]  # the repository, which may be given otherwise
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "ferryman serve"}


def _value(variable: str, text: str, schema: Mapping[str, Any]) -> object:
    kinds = {one.get("type") for one in (schema, *schema.get("anyOf", ()))}
    if "array" in kinds:
        return [part.strip() for part in text.split(",") if part.strip()]
    if "object" in kinds:
        try:
            return json.loads(text)
        except ValueError as error:
            raise UsageError(f"{variable} is not JSON: {error}") from error
    return text
