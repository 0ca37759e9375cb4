"""Settings from a file, the environment and options; their schema."""

import re
from pathlib import Path
from typing import Any

import pytest

from ferryman.errors import FerrymanError, UsageError
from ferryman.server.app import ServerConfig
from ferryman.server.config import ModelSettings
from ferryman.server.settings import PREFIX, read_config, settings_from_environment, settings_schema


def test_the_last_one_wins(tmp_path: Path) -> None:
    file = tmp_path / "serving.toml"
    file.write_text("repository = 'a'\nmax_batch = 1\nstream_window = 1\nqueue_limit = 100\n", encoding="utf-8")
    environment = {"FERRYMAN_SERVE_MAX_BATCH": "2", "FERRYMAN_SERVE_STREAM_WINDOW": "2", "HOME": "/root"}
    options: dict[str, object] = {"stream_window": 3, "target": None}
    config = read_config(file, environment, options)
    assert (config.repository, config.queue_limit, config.max_batch, config.stream_window) == (Path("a"), 100, 2, 3)
    assert config.target is None
    assert read_config(None, {"FERRYMAN_SERVE_REPOSITORY": "b"}, {}).repository == Path("b")
    assert read_config(file, {}, {"repository": Path("c")}).repository == Path("c")


def test_every_kind_of_setting_from_the_environment() -> None:
    """As text, and what the same setting is in the end."""
    cases: dict[str, tuple[str, object]] = {
        "models": ("vit, detr,", ("vit", "detr")),
        "certify": ("true", True),
        "open_health": ("0", False),
        "threads": ("3", 3),
        "hint": ("throughput", "throughput"),
        "certificates": ("/srv/c", Path("/srv/c")),
        "grace_seconds": ("2.5", 2.5),
        "admin_address": ("[::1]:9", "[::1]:9"),
        "target": ("", None),
        "per_model": ('{"vit": {"concurrency": 2}}', {"vit": ModelSettings(concurrency=2)}),
    }
    given = {f"{PREFIX}{name.upper()}": text for name, (text, _) in cases.items()}
    config = read_config(None, given, {"repository": "models"})
    assert {name: getattr(config, name) for name in cases} == {name: value for name, (_, value) in cases.items()}


def test_what_is_otherwise_for_a_model() -> None:
    settings = {"repository": "models", "threads": 1, "queue_limit": 100, "per_model": {"vit": {"concurrency": 3}}}
    config = ServerConfig.from_settings(settings)
    vit, other = config.of("vit"), config.of("detr")
    assert (vit.concurrency, vit.threads, vit.queue_limit) == (3, 1, 100)
    assert (other.concurrency, config.busy_threads) == (1, 3)
    for own, message in (
        ({"queue_limit": 10}, "max_images_per_request 64 is above queue_limit 10 of vit"),
        ({"concurency": 2}, "per_model.vit: there is no setting concurency; did you mean concurrency?"),
        ({"target": "nope"}, "per_model.vit"),
        ({"queue_limit": True}, "per_model.vit.queue_limit: true is not what this setting takes"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            ServerConfig.from_settings({"repository": "models", "per_model": {"vit": own}})


WRONG: dict[str, tuple[dict[str, str], str]] = {
    "unknown": (
        {"MAX_BATCHES": "2"},
        "FERRYMAN_SERVE_MAX_BATCHES: there is no setting max_batches; did you mean max_b",
    ),
    "no number": ({"REPOSITORY": "m", "MAX_BATCH": "many"}, "max_batch: Input should be a valid integer"),
    "no truth": ({"REPOSITORY": "m", "CERTIFY": "perhaps"}, "certify: Input should be a valid boolean"),
    "no repository": ({}, "give the model repository: as argument, as FERRYMAN_SERVE_REPOSITORY, or as repository in"),
}


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG)
def test_wrong_variables(given: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        read_config(None, {f"{PREFIX}{name}": text for name, text in given.items()}, {})


def test_a_truth_is_no_number() -> None:
    for name in ("queue_limit", "grace_seconds", "client_images"):
        with pytest.raises(UsageError, match=f"^{name}: true is not what this setting takes"):
            ServerConfig.from_settings({"repository": "models", name: True})


def test_the_schema_tells_what_the_server_takes() -> None:
    """Of each setting: its default is in it, and so is every bound that the server keeps."""
    schema = settings_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(ServerConfig.model_fields)
    checked = 0
    for name, facts in schema["properties"].items():
        for kind in (facts, *facts.get("anyOf", ())):
            for bound, step in (("minimum", -1), ("maximum", 1)):
                if bound in kind:
                    with pytest.raises(FerrymanError, match=f"^{name}: "):
                        ServerConfig.from_settings({"repository": "models", name: kind[bound] + step})
                    checked += 1
        if name != "repository":
            default: Any = ServerConfig.model_fields[name].default
            assert facts["default"] == (list(default) if isinstance(default, tuple) else default)
    assert checked > 10


def test_every_setting_can_be_a_variable() -> None:
    """None is of a kind that the environment can't give."""
    for name, facts in settings_schema()["properties"].items():
        kinds = {kind.get("type") for kind in (facts, *facts.get("anyOf", ()))} - {None, "null"}
        assert kinds <= {"string", "integer", "number", "boolean", "array", "object"}, name
        assert kinds or "$ref" in facts, name
        assert settings_from_environment({f"{PREFIX}{name.upper()}": ""}) == {}
