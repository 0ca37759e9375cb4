"""What a server is told."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from ferryman.addresses import split_address
from ferryman.errors import UsageError, propose
from ferryman.preprocess import MAX_PIXELS
from ferryman.runtimes import parse_target
from ferryman.runtimes.base import MAX_PARALLEL, Hint
from ferryman.server.admission import EngineLimits
from ferryman.server.clients import ClientLimits
from ferryman.server.observing import ObservingSettings
from ferryman.server.placement import parse_placement
from ferryman.server.security.exposure import check_security
from ferryman.server.transport import TransportLimits
from ferryman.specs import Facts

Positive = Annotated[int, Field(ge=1)]
Parallel = Annotated[int, Field(ge=1, le=MAX_PARALLEL)]


class ModelSettings(Facts):
    """Of one model: as the settings of the same names, None for what holds for all."""

    target: str | None = None
    threads: Parallel | None = None
    streams: Parallel | None = None
    hint: Hint | None = None
    max_batch: Annotated[int, Field(ge=1)] | None = None
    concurrency: Annotated[int, Field(ge=1, le=64)] | None = None
    queue_limit: Annotated[int, Field(ge=1)] | None = None
    queue_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.target is not None:
            parse_target(self.target)
        return self


class ServerConfig(TransportLimits, ClientLimits, EngineLimits, ObservingSettings):
    """All that a server is told.

    repository: folder of NAME/VERSION bundles; models: the names to serve, all when empty
    address: HOST:PORT, `[HOST]:PORT` for IPv6; port 0 takes a free one
    target: the variant of every model, by default each bundle's first
    threads, streams, hint: of each model, see `runtimes.base.Settings`
    model_cpus: processors that models have to themselves, such as `0,2-3`; all else of the server runs on the others
    certificates: folder of the certificates, by default each bundle's own; for repositories that can't be written
    certify: prove a model that has no valid certificate for this device before it is served, instead of refusing it
    max_pixels: of one picture; decode_threads: pictures decoded side by side, by default one a processor
    max_images_per_request, stream_window: see RequestLimits; infer_stream_window: see InferLimits
    shared_memory_bytes: of all regions that local clients of the Open Inference Protocol may register; 0 refuses them
    watch_seconds: how often the repository is looked at for what changed, 0 for never
    tls_certificate, tls_key: PEM files; tls_client_ca: of the certificates that clients must show
    tokens: file of bearer tokens, see `security.tokens`; allow_plaintext_tokens: from other machines without TLS too
    open_health: health checks need no token
    admin_address: HOST:PORT of this machine alone, where everything is allowed without a token
    grace_seconds: how long requests in flight may take when the server stops
    per_model: what is otherwise for a model, by its name

    What it inherits is said where it stands.
    """

    repository: Path
    address: str = "127.0.0.1:8001"
    models: tuple[str, ...] = ()
    target: str | None = None
    threads: Parallel | None = None
    streams: Parallel | None = None
    hint: Hint = "latency"
    model_cpus: str | None = None
    certificates: Path | None = None
    certify: bool = False
    max_images_per_request: Positive = 64
    max_pixels: Positive = MAX_PIXELS
    decode_threads: Annotated[int, Field(ge=1, le=MAX_PARALLEL)] | None = None
    stream_window: Positive = 4
    infer_stream_window: Positive = 16
    shared_memory_bytes: Annotated[int, Field(ge=0)] = 0
    watch_seconds: Annotated[float, Field(ge=0, le=3600)] = 2.0
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tokens: Path | None = None
    allow_plaintext_tokens: bool = False
    open_health: bool = True
    admin_address: str | None = None
    grace_seconds: Annotated[float, Field(ge=0, le=3600)] = 30.0
    per_model: Mapping[str, ModelSettings] = Field(default={})

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_security(self)
        if self.metrics_address is not None:
            split_address(self.metrics_address)
        self._check_addresses()
        if self.target is not None:
            parse_target(self.target)
        if self.model_cpus is not None:
            parse_placement(self.model_cpus)
        for name in (None, *self.per_model):
            limit, of = self.of(name).queue_limit, "" if name is None else f" of {name}"
            if self.max_images_per_request > limit:
                raise ValueError(
                    f"max_images_per_request {self.max_images_per_request} is above queue_limit {limit}{of}: "
                    "such a request could never be answered"
                )
        return self

    def of(self, model: str | None) -> "ServerConfig":
        """What holds for a model; None for one that has nothing of its own."""
        own = None if model is None else self.per_model.get(model)
        return self if own is None else self.model_copy(update=own.model_dump(exclude_none=True))

    @property
    def busy_threads(self) -> int | None:
        """That compute at a time at the most, of one model; None for one a processor."""
        busy: list[int] = []
        for one in map(self.of, (None, *self.per_model)):
            if one.threads is None:
                return None
            busy.append(one.threads * one.concurrency)
        return max(busy)

    def _check_addresses(self) -> None:
        names = ("address", "admin_address", "metrics_address")
        given = [(name, value) for name in names if (value := getattr(self, name)) is not None]
        for index, (name, value) in enumerate(given):
            for other, its in given[:index]:
                if value == its and split_address(value)[1]:  # port 0 is another one each time
                    raise ValueError(f"{name} is {value}, which is {other} too; choose another port")

    @classmethod
    def from_settings(cls, settings: Mapping[str, object]) -> Self:
        """Raises UsageError with one line for the first setting that is wrong."""
        _check_flags(settings, cls.model_fields)
        own = settings.get("per_model")
        for name, table in own.items() if isinstance(own, Mapping) else ():
            if isinstance(table, Mapping):
                _check_flags(table, ModelSettings.model_fields, f"per_model.{name}.")
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "extra_forbidden":
                *table, name = map(str, first["loc"])
                known = ModelSettings.model_fields if table else cls.model_fields
                where = f"{'.'.join(table)}: " if table else ""
                raise UsageError(f"{where}there is no setting {name}{propose(name, known)}") from error
            where = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise UsageError(f"{where}: {message}" if where else message) from error


def _check_flags(settings: Mapping[str, object], fields: Mapping[str, FieldInfo], where: str = "") -> None:
    """Raises UsageError for `true` or `false` where something else is wanted: they would count as 1 and 0."""
    for name, value in settings.items():
        if isinstance(value, bool) and name in fields and fields[name].annotation is not bool:
            raise UsageError(f"{where}{name}: {str(value).lower()} is not what this setting takes")
