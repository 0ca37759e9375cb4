"""The models of a repository folder: found once, loaded off the event loop, served only when they answer right."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

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


State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]


class Closable(Protocol):
    async def drain(self) -> None:
        """Refuses new requests; returns when those inside are answered."""
        ...

    async def close(self) -> None: ...


Served = TypeVar("Served", bound=Closable)


@dataclass(frozen=True)
class VersionState:
    """reason: why it is not READY, empty when it is."""

    name: str
    version: int
    state: State
    reason: str


class ModelRepository(Generic[Served]):
    """Which models and versions there are, and what serves each of them.

    The newest version of each model is loaded when the server starts, so that a server that is ready is fast.
    An older one is loaded when it is first asked for: a client that holds on to a version gets it, and versions
    that nobody asks for cost no memory. Each is loaded once, one at a time, in a thread. A version that can't be
    loaded stays refused, with its reason; a broken newest one is never silently replaced by an older one. What
    `unload` freed is refused until it is loaded again.

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
        self._only = frozenset(only)
        self._versions = {name: versions for name, versions in found.items() if not only or name in only}
        self._load = load
        self._serve = serve
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=LOADING)
        self._tasks: dict[tuple[str, int], asyncio.Task[Served]] = {}
        self._unloading: set[tuple[str, int]] = set()
        self._unloaded: set[tuple[str, int]] = set()
        self._control = asyncio.Lock()  # one load or unload at a time
        self._changes: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def names(self) -> list[str]:
        return list(self._versions)

    async def get(self, name: str, version: int = 0) -> Served:
        """What serves a version, 0 for the newest; waits until it is loaded.

        Raises UsageError and ModelNotFoundError for names and versions that are not there, BundleError with
        the reason for a version that can't be served, UnavailableError after `close`.
        """
        version = self._find(name, version, self._versions)
        if (name, version) in self._unloaded:
            raise BundleError(f"{name} version {version} is unloaded")
        return await self._load_once(name, version)

    def versions(self, name: str) -> tuple[int, ...]:
        """The versions that can be asked for, ascending. Raises as `get` does for names."""
        self._find(name, 0, self._versions)
        return tuple(version for version in self._versions[name] if (name, version) not in self._unloaded)

    def is_ready(self, name: str, version: int = 0) -> bool:
        """Whether a version is loaded; False for names and versions that are not there."""
        try:
            return self._state(name, self._find(name, version, self._versions))[0] == "READY"
        except ModelNotFoundError:
            return False

    def loaded(self) -> list[Served]:
        """What serves now, by name and version."""
        return [self._tasks[key].result() for key in sorted(self._tasks) if self._state(*key)[0] == "READY"]

    def index(self) -> list[VersionState]:
        """All versions that were found or loaded, by name and version."""
        found = {(name, version) for name, versions in self._versions.items() for version in versions}
        keys = sorted(found | set(self._tasks) | self._unloading)
        return [VersionState(*key, *self._state(*key)) for key in keys]

    async def load(self, name: str, version: int = 0) -> None:
        """Loads a version, by default the newest that the folder holds now, though it was not there before.

        Returns when it is served; one that was already is left as it is, and one that failed is tried again. A new
        version becomes the newest once it is served. Raises as `get`.
        """
        await self._finish(self._load_found(name, version))

    async def unload(self, name: str) -> None:
        """Frees all versions of a model once those inside are answered; refuses them from the first moment.

        Raises UsageError and ModelNotFoundError for names that are not there.
        """
        await self._finish(self._unload(name))

    async def _finish(self, change: Coroutine[Any, Any, None]) -> None:
        """Awaits a change, which is brought to its end though this caller gives up."""
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        await asyncio.shield(task)

    async def _load_found(self, name: str, version: int) -> None:
        async with self._control:
            found = await asyncio.get_running_loop().run_in_executor(None, find_bundles, self._folder)
            known = {key: versions for key, versions in found.items() if not self._only or key in self._only}
            key = name, self._find(name, version, known)
            task = self._tasks.get(key)
            if task is not None and task.done() and task.exception() is not None:
                del self._tasks[key]
            await self._load_once(*key)
            self._unloaded.discard(key)
            self._versions[name] = sorted({*self._versions.get(name, ()), key[1]})

    async def _unload(self, name: str) -> None:
        async with self._control:
            self._find(name, 0, self._versions)
            self._unloaded |= {(name, version) for version in self._versions[name]}
            keys = {key for key in self._tasks if key[0] == name}
            tasks = [self._tasks.pop(key) for key in keys]
            self._unloading = keys
            for task in tasks:
                task.cancel()  # one that is loading still
            for served in await asyncio.gather(*tasks, return_exceptions=True):
                if not isinstance(served, BaseException):
                    await served.drain()
                    await served.close()
            self._unloading = set()
            log.info("model unloaded: name=%s versions=%d", name, len(keys))

    async def _load_once(self, name: str, version: int) -> Served:
        if self._closed:
            raise UnavailableError("the server is stopping")
        task = self._tasks.get((name, version))
        if task is None:
            task = self._tasks[name, version] = asyncio.create_task(self._open(name, version))
        if not task.done():
            # wait, not await: the model goes on loading for others when this caller gives up
            await asyncio.wait([task])
        if task.cancelled():
            raise UnavailableError("the server is stopping" if self._closed else f"{name} is being unloaded")
        error = task.exception()
        if error is not None:
            raise BundleError(f"{name} version {version} can't be served: {_reason(error, self._folder)}") from error
        return task.result()

    def _state(self, name: str, version: int) -> tuple[State, str]:
        key = name, version
        if key in self._unloading:
            return "UNLOADING", "being unloaded"
        task = self._tasks.get(key)
        if task is None:
            return "UNAVAILABLE", "unloaded" if key in self._unloaded else "loaded when it is first asked for"
        if not task.done():
            return "LOADING", "being loaded"
        error = UnavailableError("the server is stopping") if task.cancelled() else task.exception()
        return ("READY", "") if error is None else ("UNAVAILABLE", _reason(error, self._folder))

    @staticmethod
    def _find(name: str, version: int, known: Mapping[str, Sequence[int]]) -> int:
        if not name:
            raise UsageError(f"the request names no model; this server has {', '.join(known)}", "model.name")
        versions = known.get(name)
        if versions is None:
            raise ModelNotFoundError(f"there is no model {name[:100]!r}; this server has {', '.join(known)}")
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
        await asyncio.gather(*self._changes, return_exceptions=True)


def _reason(error: BaseException, folder: Path) -> str:
    """For callers, who don't learn where the repository lies."""
    if not isinstance(error, FerrymanError):
        return "an unexpected error, see the server's log"
    return str(error).replace(f"{folder}/", "")
