"""What a server is told."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from ferryman.addresses import split_address
from ferryman.errors import UsageError, propose
from ferryman.preprocess import MAX_PIXELS
from ferryman.runtimes import parse_target
from ferryman.runtimes.base import MAX_PARALLEL, Hint
from ferryman.server.clients import ClientLimits
from ferryman.server.engine import EngineLimits
from ferryman.server.observing import ObservingSettings
from ferryman.server.placement import parse_placement
from ferryman.server.security.exposure import check_security
from ferryman.server.transport import TransportLimits

Positive = Annotated[int, Field(ge=1)]
Parallel = Annotated[int, Field(ge=1, le=MAX_PARALLEL)]


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

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_security(self)
        if self.metrics_address is not None:
            split_address(self.metrics_address)
        if self.target is not None:
            parse_target(self.target)
        if self.model_cpus is not None:
            parse_placement(self.model_cpus)
        if self.max_images_per_request > self.queue_limit:
            raise ValueError(
                f"max_images_per_request {self.max_images_per_request} is above queue_limit {self.queue_limit}: "
                "such a request could never be answered"
            )
        return self

    @classmethod
    def from_settings(cls, settings: Mapping[str, object]) -> Self:
        """Raises UsageError with one line for the first setting that is wrong."""
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "extra_forbidden":
                name = str(first["loc"][0])
                raise UsageError(f"there is no setting {name}{propose(name, cls.model_fields)}") from error
            where = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise UsageError(f"{where}: {message}" if where else message) from error
