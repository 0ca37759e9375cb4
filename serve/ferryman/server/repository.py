"""The models of a repository folder: found once, loaded off the event loop, served only when they answer right."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from ferryman.bundle import find_bundles
from ferryman.errors import (
    BundleError,
    BundleNotFoundError,
    FerrymanError,
    ModelNotFoundError,
    UnavailableError,
    UsageError,
)
from ferryman.server.loading import LoadedModel

log = logging.getLogger(__name__)
LOADING = "load"  # what the names of the threads that load models begin with


class Closable(Protocol):
    async def close(self) -> None: ...


Served = TypeVar("Served", bound=Closable)


class ModelRepository(Generic[Served]):
    """Which models and versions there are, and what serves each of them.

    The newest version of each model is loaded when the server starts, so that a server that is ready is fast.
    An older one is loaded when it is first asked for: a client that holds on to a version gets it, and versions
    that nobody asks for cost no memory. Each is loaded once, one at a time, in a thread. A version that can't be
    loaded stays refused, with its reason; a broken newest one is never silently replaced by an older one.

    load: from NAME/VERSION to a loaded model, in the thread; serve: what then serves it, on the event loop
    """

    def __init__(
        self,
        folder: Path,
        only: Sequence[str],
        load: Callable[[Path], LoadedModel],
        serve: Callable[[LoadedModel], Served],
    ) -> None:
        """only: the models to serve, all when empty. Raises BundleNotFoundError when there is nothing to serve."""
        found = find_bundles(folder)
        if not found:
            raise BundleNotFoundError(
                f"{folder} holds no bundle as NAME/VERSION; give the folder that `ferryman export -o` wrote to"
            )
        missing = [name for name in only if name not in found]
        if missing:
            raise BundleNotFoundError(f"{folder} holds no model {', '.join(missing)}; it holds {', '.join(found)}")
        self._folder = folder
        self._versions = {name: versions for name, versions in found.items() if not only or name in only}
        self._load = load
        self._serve = serve
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=LOADING)
        self._tasks: dict[tuple[str, int], asyncio.Task[Served]] = {}
        self._closed = False

    @property
    def names(self) -> list[str]:
        return list(self._versions)

    async def get(self, name: str, version: int = 0) -> Served:
        """What serves a version, 0 for the newest; waits until it is loaded.

        Raises UsageError and ModelNotFoundError for names and versions that are not there, BundleError with
        the reason for a version that can't be served, UnavailableError after `close`.
        """
        version = self._find(name, version)
        if self._closed:
            raise UnavailableError("the server is stopping")
        task = self._tasks.get((name, version))
        if task is None:
            task = self._tasks[name, version] = asyncio.create_task(self._open(name, version))
        # wait, not await: the model goes on loading for others when this caller gives up
        await asyncio.wait([task])
        if task.cancelled():
            raise UnavailableError("the server is stopping")
        error = task.exception()
        if error is not None:
            reason = error if isinstance(error, FerrymanError) else "an unexpected error, see the server's log"
            raise BundleError(f"{name} version {version} can't be served: {reason}") from error
        return task.result()

    def _find(self, name: str, version: int) -> int:
        if not name:
            raise UsageError(f"the request names no model; this server has {', '.join(self.names)}", "model.name")
        versions = self._versions.get(name)
        if versions is None:
            raise ModelNotFoundError(f"there is no model {name[:100]!r}; this server has {', '.join(self.names)}")
        if version < 0:
            raise UsageError(f"version {version} is below 0; 0 is the newest", "model.version")
        if version and version not in versions:
            raise ModelNotFoundError(f"{name} has no version {version}; it has {', '.join(map(str, versions))}")
        return version or versions[-1]

    async def _open(self, name: str, version: int) -> Served:
        start = time.monotonic()
        folder = self._folder / name / str(version)
        log.info("model loading: name=%s version=%d", name, version)
        try:
            model = await asyncio.get_running_loop().run_in_executor(self._thread, self._load, folder)
        except FerrymanError as error:
            log.error("model failed: name=%s version=%d reason=%s", name, version, error)
            raise
        except Exception:
            log.exception("model failed: name=%s version=%d, by a bug or a broken installation", name, version)
            raise
        log.info(
            "model loaded: name=%s version=%d target=%s digest=%s seconds=%.2f",
            name, version, model.target, model.bundle.digest[:12], time.monotonic() - start,
        )  # fmt: skip
        return self._serve(model)

    async def close(self) -> None:
        """Closes everything that was loaded; what still loads is given up."""
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
        for loaded in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(loaded, BaseException):
                await loaded.close()
