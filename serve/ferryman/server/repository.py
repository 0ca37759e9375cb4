"""The models of a repository folder: found once, loaded off the event loop, served only when they answer right."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from ferryman.errors import (
    BundleError,
    BundleNotFoundError,
    FerrymanError,
    ModelNotFoundError,
    UnavailableError,
    UsageError,
)
from ferryman.server.folder import Mark, Seen, State, Version, VersionState, look, mark_files, reason_of
from ferryman.server.loading import LoadedModel
from ferryman.server.steps import on_loop, running_loop

log = logging.getLogger(__name__)
LOADING = "load"  # what the names of the threads that load models begin with


class Closable(Protocol):
    @property
    def ready(self) -> bool:
        """Whether it can be asked now; False while it mends itself."""
        ...

    async def drain(self) -> None:
        """Refuses new requests; returns when those inside are answered."""
        ...

    async def close(self) -> None: ...


Served = TypeVar("Served", bound=Closable)


class ModelRepository(Generic[Served]):
    """Which models and versions there are, and what serves each of them.

    Of each model one version answers requests that name none: the newest, or what `versions.toml` says (see Choices).
    It is loaded when the server starts, so that a server that is ready is fast. Another one is loaded when it is
    first asked for: a client that holds on to a version gets it, and versions that nobody asks for cost no memory.
    Each is loaded once, one at a time, in a thread. A version that can't be loaded stays refused, with its reason; a
    broken newest one is never silently replaced by an older one. What `unload` freed is refused until it is loaded
    again.

    `refresh` follows the folder: a version takes over once it is loaded, and not before; what it replaced answers
    those inside, and is freed unless an alias stands for it or a client has asked for it by its number. Whoever gets
    a version from `get` must hand it a request before awaiting anything else, and ask once more where that was
    refused as the version is retired: `get` may be awaited without an event loop, and one may have retired it since.

    load: from NAME/VERSION to a loaded model, in the thread; serve: what then serves it, on the event loop
    told: whether the caller under way may be told that there is a model of a name
    """

    def __init__(
        self,
        folder: Path,
        only: Sequence[str],
        load: Callable[[Path], LoadedModel],
        serve: Callable[[LoadedModel], Served],
        told: Callable[[str], bool] = lambda name: True,
    ) -> None:
        """only: the models to serve, all when empty. Raises BundleNotFoundError when there is nothing to serve, and as
        `look` and Choices do.
        """
        self._folder = folder
        self._only = frozenset(only)
        seen = look(folder)
        missing = [name for name in only if name not in seen.versions]
        if missing:
            raise BundleNotFoundError(
                f"{folder} holds no model {', '.join(missing)}; it holds {', '.join(seen.versions)}"
            )
        self._choices = seen.choices
        self._versions = self._mine(seen)
        self._answering = {name: self._choices.choose(name, versions) for name, versions in self._versions.items()}
        self._choices.check_pinned(seen.versions)
        self._choices.check_aliases(self._versions)
        self._load = load
        self._serve = serve
        self._told = told
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=LOADING)
        self._tasks: dict[Version, asyncio.Task[Served]] = {}
        self._marks: dict[Version, Mark] = {}  # of the files that were loaded, or refused
        self._seen: Seen | None = None  # by `refresh`
        self._asked: set[Version] = set()  # by number
        self._unloading: set[Version] = set()
        self._unloaded: set[Version] = set()
        self._control = asyncio.Lock()  # one load, unload or refresh at a time
        self._changes: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def names(self) -> list[str]:
        return list(self._versions)

    @property
    def aliases(self) -> list[str]:
        return list(self._choices.aliases)

    async def get(self, name: str, version: int = 0) -> Served:
        """What serves a version of a model or alias, 0 for the one that answers; waits until it is loaded.

        Raises UsageError and ModelNotFoundError for names and versions that are not there, BundleError with
        the reason for a version that can't be served, UnavailableError after `close`.
        """
        if running_loop() is None:
            found = self._at_hand(name, version)
            if found is not None:
                return found
            await on_loop()
        key = self._find(name, version)
        if key in self._unloaded:
            raise BundleError(f"{key[0]} version {key[1]} is unloaded")
        if version:
            self._asked.add(key)
        return await self._load_once(*key)

    def _at_hand(self, name: str, version: int) -> Served | None:
        """What `get` returns where it has nothing to do for it. Beside the event loop, which may change all of this."""
        try:
            key = self._find(name, version)
        except (FerrymanError, KeyError):
            return None
        task = self._tasks.get(key)
        if key in self._unloaded or (version and key not in self._asked) or task is None or not task.done():
            return None
        return None if task.cancelled() or task.exception() is not None else task.result()

    def model_of(self, name: str) -> str:
        """The model that an alias stands for; any other name is its own."""
        return self._choices.target(name)[0] if self._is_alias(name) else name

    def versions(self, name: str) -> tuple[int, ...]:
        """The versions that can be asked for under a name, ascending. Raises as `get` does for names."""
        model, version = self._find(name, 0)
        named = [version] if self._is_alias(name) else self._versions[model]
        return tuple(version for version in named if (model, version) not in self._unloaded)

    def is_ready(self, name: str, version: int = 0) -> bool:
        """Whether a version is loaded; False for names and versions that are not there."""
        try:
            return self._state(*self._find(name, version))[0] == "READY"
        except ModelNotFoundError:
            return False

    def loaded(self) -> list[Served]:
        """What serves now, by name and version, and what mends itself."""
        return [self._tasks[key].result() for key in sorted(self._tasks) if self._is_loaded(key)]

    def refused(self) -> list[VersionState]:
        """Versions that could not be loaded."""
        return [one for one in self.index() if self._has_failed((one.name, one.version))]

    def index(self) -> list[VersionState]:
        """All versions that were found or loaded, by name and version."""
        found = {(name, version) for name, versions in self._versions.items() for version in versions}
        keys = sorted(found | set(self._tasks) | self._unloading)
        return [VersionState(*key, *self._state(*key)) for key in keys]

    async def load(self, name: str, version: int = 0) -> None:
        """Loads a version, by default the one that should answer by what the folder holds now.

        Returns when it is served; one that was already is left as it is, and one that failed is tried again. Raises as
        `get`, and as `look` and Choices do; then all stays as it was.
        """
        await self._finish(self._load_found(name, version))

    async def refresh(self) -> list[str]:
        """Follows what changed in the folder since the last look; returns the models and aliases that it concerns.

        A version that can't be loaded is logged and stays refused until its files change. One whose folder is gone is
        freed, unless `versions.toml` names it or nothing can take its place. Raises as `look` and Choices do; then
        all stays as it was.
        """
        async with self._control:
            failed = [key for key in self._tasks if self._has_failed(key)]
            seen = await asyncio.get_running_loop().run_in_executor(None, look, self._folder, failed)
            if seen == self._seen:
                return []
            changed = await self._follow(seen)
            self._seen = seen
            return changed

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
            seen = await asyncio.get_running_loop().run_in_executor(None, look, self._folder)
            known = self._mine(seen)
            self._check(name, version, known)
            chosen = seen.choices.choose(name, known[name])
            key = name, version or chosen
            if self._has_failed(key):
                del self._tasks[key]
            await self._load_once(*key)
            self._unloaded.discard(key)
            self._versions[name] = sorted({*self._versions.get(name, ()), key[1]})
            if key[1] == chosen:
                self._answer_with(*key)
            else:
                self._asked.add(key)
            self._retire_unused()

    async def _follow(self, seen: Seen) -> list[str]:
        before = self._summary()
        choices, known = seen.choices, self._mine(seen)
        named = [(name, choices.pinned(name) or 0) for name in self._answering] + list(
            map(choices.target, choices.aliases)
        )
        for name, version in named:  # what is loaded and must answer stays, though its folder is gone
            if version not in known.get(name, ()) and self._is_loaded((name, version)):
                known[name] = sorted({*known.get(name, ()), version})
        chosen = {name: choices.choose(name, versions) for name, versions in known.items()}
        choices.check_pinned({**seen.versions, **known})
        choices.check_aliases(known)
        for key, mark in seen.marks.items():
            if mark != self._marks.get(key) and self._has_failed(key):
                del self._tasks[key]
        for name, version in chosen.items():
            self._versions[name] = known[name]
            if (name, self._answering.get(name, 0)) in self._unloaded:  # by a client: new versions are too
                self._unloaded |= {(name, one) for one in known[name]}
                self._answer_with(name, version)
            elif await self._can_serve(name, version) or not self._is_loaded((name, self._answering.get(name, 0))):
                self._answer_with(name, version)
            elif self._answering[name] not in known[name]:
                self._versions[name] = sorted({*known[name], self._answering[name]})
        for name in self._answering.keys() - known.keys():
            del self._versions[name], self._answering[name]
            self._unloaded = {key for key in self._unloaded if key[0] != name}
        for name, version in map(choices.target, choices.aliases):
            if version:
                await self._can_serve(name, version)
        self._choices = choices
        self._retire_unused()
        after = self._summary()
        return [name for name in {**before, **after} if before.get(name) != after.get(name)]

    def _summary(self) -> dict[str, object]:
        """What answers for each model and alias, and whether it can."""
        keys = {name: self._find(name, 0) for name in (*self._versions, *self._choices.aliases)}
        return {name: (key, self._state(*key)) for name, key in keys.items()}

    async def _can_serve(self, name: str, version: int) -> bool:
        """Loads it where it is not, and fails without an error: what failed is logged, and told by `index`."""
        try:
            await self._load_once(name, version)
        except BundleError:
            return False
        return True

    def _answer_with(self, name: str, version: int) -> None:
        before = self._answering.get(name)
        if before != version:
            self._answering[name] = version
            log.info("model answers: name=%s version=%d instead=%s", name, version, before)

    def _retire_unused(self) -> None:
        used = set(self._answering.items()) | self._asked | set(map(self._choices.target, self._choices.aliases))
        for key in list(self._tasks):
            name, version = key
            there = version in self._versions.get(name, ())
            if not there:
                self._asked.discard(key)
            if not there or (key not in used and self._is_loaded(key)):
                self._retire(key)

    def _retire(self, key: Version) -> asyncio.Task[None]:
        """Takes a version out of service now; it is freed when the task ends."""
        self._unloading.add(key)
        freeing = asyncio.create_task(self._free(key, self._tasks.pop(key)))
        self._changes.add(freeing)
        freeing.add_done_callback(self._changes.discard)
        return freeing

    async def _free(self, key: Version, task: asyncio.Task[Served]) -> None:
        task.cancel()  # one that is loading still
        [served] = await asyncio.gather(task, return_exceptions=True)
        if not isinstance(served, BaseException):
            await served.drain()
            await served.close()
            log.info("model freed: name=%s version=%d", *key)
        self._unloading.discard(key)

    async def _unload(self, name: str) -> None:
        async with self._control:
            self._check(name, 0, self._versions)
            self._unloaded |= {(name, version) for version in self._versions[name]}
            self._asked = {key for key in self._asked if key[0] != name}
            keys = [key for key in self._tasks if key[0] == name]
            await asyncio.gather(*map(self._retire, keys))
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
            raise BundleError(f"{name} version {version} can't be served: {reason_of(error, self._folder)}") from error
        return task.result()

    def _state(self, name: str, version: int) -> tuple[State, str]:
        key = name, version
        task = self._tasks.get(key)
        if task is None:
            if key in self._unloading:
                return "UNLOADING", "being unloaded"
            return "UNAVAILABLE", "unloaded" if key in self._unloaded else "loaded when it is first asked for"
        if not task.done():
            return "LOADING", "being loaded"
        error = UnavailableError("the server is stopping") if task.cancelled() else task.exception()
        if error is not None:
            return "UNAVAILABLE", reason_of(error, self._folder)
        return ("READY", "") if task.result().ready else ("UNAVAILABLE", "its session has failed and is being rebuilt")

    def _is_loaded(self, key: Version) -> bool:
        task = self._tasks.get(key)
        return task is not None and task.done() and not task.cancelled() and task.exception() is None

    def _has_failed(self, key: Version) -> bool:
        task = self._tasks.get(key)
        return task is not None and task.done() and not task.cancelled() and task.exception() is not None

    def _mine(self, seen: Seen) -> dict[str, Sequence[int]]:
        return {name: found for name, found in seen.versions.items() if not self._only or name in self._only}

    def _find(self, name: str, version: int) -> Version:
        """The model and version that a name, which may be an alias, and a version, 0 for any, stand for."""
        if self._is_alias(name):
            model, fixed = self._choices.target(name)
            if version and version != (fixed or self._answering.get(model)):
                raise ModelNotFoundError(
                    f"{name} is an alias of {self._choices.aliases[name]}: ask for no other version"
                )
            name, version = model, fixed
        self._check(name, version, self._versions)
        return name, version or self._answering[name]

    def _is_alias(self, name: str) -> bool:
        return name not in self._versions and name in self._choices.aliases

    def _check(self, name: str, version: int, known: Mapping[str, Sequence[int]]) -> None:
        told = ", ".join(filter(self._told, known))
        others = f"; this server has {told}" if told else ""
        if not name:
            raise UsageError(f"the request names no model{others}", "model.name")
        versions = known.get(name)
        if versions is None:
            raise ModelNotFoundError(f"there is no model {name[:100]!r}{others}")
        if version < 0:
            raise UsageError(f"version {version} is below 0; 0 is the one that answers", "model.version")
        if version and version not in versions:
            raise ModelNotFoundError(f"{name} has no version {version}; it has {', '.join(map(str, versions))}")

    async def _open(self, name: str, version: int) -> Served:
        start = time.monotonic()
        log.info("model loading: name=%s version=%d", name, version)
        self._marks[name, version] = await asyncio.to_thread(mark_files, self._folder / name / str(version))
        try:
            model = await self.reload(name, version)
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

    async def reload(self, name: str, version: int) -> LoadedModel:
        """Loads a version, though it may be loaded already, for what serves it; in the thread, as all are."""
        folder = self._folder / name / str(version)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._load, folder)

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
