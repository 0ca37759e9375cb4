"""The models of a repository, each with its engine, and what the engines of a process share. Knows no gRPC."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ferryman.device import count_usable
from ferryman.runtimes.base import Settings
from ferryman.server.clients import Clients
from ferryman.server.config import ServerConfig
from ferryman.server.decoding import Decoder
from ferryman.server.engine import Engine
from ferryman.server.loading import LoadedModel, load_model
from ferryman.server.placement import AS_IT_COMES, Placement, inside
from ferryman.server.repository import ModelRepository
from ferryman.server.security.access import may_be_told


class Engines:
    """Threads that decode and make results, the clients' limits, and `models`, which loads what is asked for.

    load: see VisionServer; placement: of the server's threads
    on_ready: told when a session has failed, and when it is mended
    """

    def __init__(
        self,
        config: ServerConfig,
        load: Callable[[Path], LoadedModel] | None = None,
        placement: Placement = AS_IT_COMES,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Raises as ModelRepository does."""
        model_cpus = placement.models.cpus
        processors = len(placement.others.cpus) if placement.others.cpus else count_usable()
        self._config = config
        self._place = placement.models
        self._on_ready = on_ready
        self._pool = ThreadPoolExecutor(processors, thread_name_prefix="results")
        self._decoder = Decoder(config.decode_threads or processors, config.max_pixels)
        self._clients = Clients(config)

        def load_as_set(folder: Path) -> LoadedModel:
            own = config.of(folder.parent.name)
            return load_model(
                folder,
                target=own.target,
                settings=Settings(own.threads or (len(model_cpus) if model_cpus else None), own.streams, own.hint),
                certificates=own.certificates,
                certify=own.certify,
                max_batch=own.max_batch,
            )

        def load_there(folder: Path) -> LoadedModel:
            with inside(placement.models):
                return (load or load_as_set)(folder)

        self.models = ModelRepository[Engine](config.repository, config.models, load_there, self._open, may_be_told)

    def _open(self, model: LoadedModel) -> Engine:
        limits, shared = self._config.of(model.name), (self._decoder, self._clients, self._pool)
        reload = partial(self.models.reload, model.name, model.version)
        return Engine(model, limits, *shared, reload, self._on_ready, self._place)

    async def close(self) -> None:
        """Answers what runs, refuses what waits, frees everything."""
        await self.models.close()
        await self._decoder.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
