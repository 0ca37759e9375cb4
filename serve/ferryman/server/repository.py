"""The models of a repository folder: found once, loaded off the event loop, served only when they answer right."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from pydantic import ValidationError

from ferryman.answers import ModelFacts, OutputParity
from ferryman.bundle import Bundle, find_bundles
from ferryman.errors import (
    BundleCorruptError,
    BundleError,
    BundleNotFoundError,
    BundleSchemaError,
    FerrymanError,
    ModelNotFoundError,
    UnavailableError,
    UsageError,
)
from ferryman.golden import FILE_NAME as GOLDEN
from ferryman.golden import GoldenSamples, load_golden
from ferryman.parity import ParityReport, ParityReports, check_parity
from ferryman.runtimes import RUNTIMES, open_session
from ferryman.runtimes.base import Session

log = logging.getLogger(__name__)
PARITY = "parity.json"
WARM_UP_SAMPLES = 4
WARM_UP_BATCHES = (1, 2)


@dataclass(frozen=True)
class LoadedModel:
    """A bundle whose digests were right, and a session that answered its golden samples within tolerance.

    name, version: of its folder in the repository; measured: at export, None when the bundle holds no report
    """

    name: str
    version: int
    bundle: Bundle
    target: str
    runtime_version: str
    measured: ParityReport | None
    session: Session

    @property
    def facts(self) -> ModelFacts:
        manifest = self.bundle.manifest
        height, width = manifest.spec.preprocess.size
        return ModelFacts(
            name=self.name,
            version=self.version,
            task=manifest.spec.task,
            labels=manifest.spec.labels,
            target=self.target,
            runtime_version=self.runtime_version,
            bundle_digest=self.bundle.digest,
            checkpoint=manifest.source.source,
            checkpoint_digest=manifest.source.sha256,
            parity=_worst_errors(self.measured) if self.measured is not None else (),
            created=manifest.created,
            canvas=(width, height),
        )


def load_model(folder: Path, target: str | None = None, threads: int | None = None) -> LoadedModel:
    """Opens NAME/VERSION, loads a variant and warms it up with golden samples. Blocks.

    Raises a BundleError, UsageError for a target that the bundle has not, EngineError, and ParityError when
    the variant does not answer on this device as it did when it was exported.
    """
    bundle = Bundle.open(folder)
    variant = bundle.variant(target)
    tolerance = bundle.manifest.tolerances.get(variant.target.precision)
    if tolerance is None:
        raise BundleSchemaError(f"{folder}: the manifest has no tolerance for {variant.target.precision}")
    golden = load_golden(bundle.file(GOLDEN), bundle.spec)
    measured = _read_parity(bundle, str(variant.target))
    session = open_session(bundle, target, threads)
    version = RUNTIMES[variant.target.runtime].version()
    few = _first_samples(golden, WARM_UP_SAMPLES)
    try:
        check_parity(
            session.run, few, bundle.spec, tolerance, str(variant.target), version, WARM_UP_BATCHES
        ).raise_for_failures()
    except FerrymanError:
        session.close()
        raise
    return LoadedModel(folder.parent.name, bundle.version, bundle, str(variant.target), version, measured, session)


def _first_samples(golden: GoldenSamples, count: int) -> GoldenSamples:
    return GoldenSamples(
        golden.names[:count],
        {name: array[:count] for name, array in golden.inputs.items()},
        {name: array[:count] for name, array in golden.outputs.items()},
    )


def _read_parity(bundle: Bundle, target: str) -> ParityReport | None:
    if PARITY not in bundle.manifest.files:
        return None
    try:
        reports = ParityReports.model_validate_json(bundle.file(PARITY).read_bytes())
    except (OSError, ValidationError) as error:
        raise BundleCorruptError(f"{bundle.path}: {PARITY} can't be read: {error}") from error
    return next((report for report in reports.reports if report.target == target), None)


def _worst_errors(report: ParityReport) -> tuple[OutputParity, ...]:
    found: dict[str, OutputParity] = {}
    for error in report.errors:
        worst = found.get(error.output)
        found[error.output] = OutputParity(
            error.output,
            max(error.max_abs, worst.max_abs_error if worst else 0.0),
            min(error.cosine, worst.min_cosine if worst else 1.0),
            error.limit,
        )
    return tuple(found.values())


class Closable(Protocol):
    async def close(self) -> None: ...


Served = TypeVar("Served", bound=Closable)


class ModelRepository(Generic[Served]):
    """Which models and versions there are, and what serves each of them.

    The newest version of each model is loaded when the server starts, so that a server that is ready is fast.
    An
    older one is loaded when it is first asked for: a client that holds on to a version gets it, and versions
    that nobody asks for cost no memory. Each is loaded once, one at a time, in a thread. A version that can't
    be loaded stays refused, with its reason; a broken newest version is never silently replaced by an older
    one.

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
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="load")
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
        try:
            model = await asyncio.get_running_loop().run_in_executor(self._thread, partial(self._load, folder))
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
