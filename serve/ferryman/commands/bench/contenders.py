"""What `ferryman bench` measures: a bundle's variants in this process, or a server's model."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Literal, NoReturn, Protocol

from ferryman.bench.alone import Load, SessionCost, measure_cost
from ferryman.bench.flow import AsyncRequest
from ferryman.bench.harness import Request
from ferryman.bench.pictures import choose_next
from ferryman.bench.record import Check, Proven
from ferryman.bundle import Bundle
from ferryman.certificates import check_certificate
from ferryman.commands.bench.tensors import make_tensors, request_tensors
from ferryman.commands.predict import Answers, Local
from ferryman.errors import CertificateError, TaskError, UsageError
from ferryman.manifest import Tolerance
from ferryman.parity import ParityReport, check_parity
from ferryman.predictor import Predictor, Timings
from ferryman.runtimes import find_runtime
from ferryman.runtimes.base import Session, Settings
from ferryman.specs import Target

Ask = Callable[[Sequence[bytes]], Timings]
When = Literal["before", "after"]
EAGER, COMPILED = "PyTorch eager", "PyTorch compiled"
_COST_PROCESSES = 1
_STAGES = ("decode", "resize", "queue", "compute", "postprocess", "encode")


class Contender(Protocol):
    """One that is asked. name: of its row; model: for people; nearby: whether this machine is the one that answers"""

    name: str
    model: str
    nearby: bool

    def request(self, images: Sequence[bytes], count: int = 1) -> Request:
        """One picture after the other, or so many at a time."""
        ...

    def connect(self, images: Sequence[bytes], count: int, clients: int) -> AbstractAsyncContextManager[AsyncRequest]:
        """The same while the event loop goes on. clients: requests that are worked on here at a time"""
        ...

    def check(self, when: When) -> Check | None:
        """Whether its answers are right; None where that can't be told from here."""
        ...

    def measure_cost(self) -> SessionCost | None: ...

    def prove(self) -> Proven | None: ...


class LocalContender:
    """A bundle's variant, loaded in this process."""

    nearby = True

    def __init__(
        self, bundle: Bundle, predictor: Predictor, target: Target, settings: Settings, tensors: bool = False
    ) -> None:
        """tensors: pictures are decoded and resized beforehand, and answers left as they are"""
        self.name, self.model = str(target), f"{bundle.name}/{bundle.version}"
        self._bundle, self._predictor, self._target, self._settings = bundle, predictor, target, settings
        self._tensors = tensors

    def request(self, images: Sequence[bytes], count: int = 1) -> Request:
        if self._tensors:
            return request_tensors(self.sessions[0], make_tensors(images, count, self._bundle.spec))
        return make_request(choose_ask(Local(self._predictor), images[0]), images, count)

    @asynccontextmanager
    async def connect(self, images: Sequence[bytes], count: int, clients: int) -> AsyncGenerator[AsyncRequest, None]:
        """Requests wait their turn in a queue, which is part of their time, for one of so many threads."""
        request, loop = self.request(images, count), asyncio.get_running_loop()
        pool = ThreadPoolExecutor(clients)

        def take(number: int, came: float) -> Mapping[str, float]:
            waited_ms = (time.perf_counter() - came) * 1e3
            return {**request(number), "queue": waited_ms}

        try:
            yield lambda number: loop.run_in_executor(pool, take, number, time.perf_counter())
        finally:
            pool.shutdown(cancel_futures=True)

    @property
    def target(self) -> Target | None:
        """None for what is none of the bundle's variants."""
        return self._target

    @property
    def sessions(self) -> tuple[Session, ...]:
        return self._predictor.sessions

    @property
    def predictor(self) -> Predictor:
        return self._predictor

    @property
    def bundle(self) -> Bundle:
        return self._bundle

    @property
    def settings(self) -> Settings:
        return self._settings

    @contextmanager
    def reopen(self, settings: Settings) -> Generator["LocalContender", None, None]:
        """The same with sessions of its own. Raises EngineError."""
        with Predictor(self._bundle, str(self._target), settings) as predictor:
            yield LocalContender(self._bundle, predictor, self._target, settings, self._tensors)

    def check(self, when: When) -> Check:
        """Every golden sample alone, in each size: on the very sessions that are measured."""
        tolerance = self._bundle.tolerance(self._target)
        return check_sessions(when, self._bundle, self._predictor.sessions, tolerance, self.name)

    def measure_cost(self) -> SessionCost | None:
        """Raises EngineError."""
        variant = self._bundle.variants(self.name)[0]
        path = self._bundle.file(variant.path)
        load = Load(path=path, target=self._target, spec=self._bundle.spec, threads=self._settings.threads)
        return measure_cost(load, _COST_PROCESSES)

    def prove(self) -> Proven:
        try:
            certificate = check_certificate(self._bundle, self._target).created
        except CertificateError:
            certificate = ""
        runtime, variant = find_runtime(self._target), self._bundle.variants(self.name)[0]
        digest = self._bundle.manifest.files[variant.path].sha256
        loaded = runtime.loaded_digest(self._bundle.file(variant.path), self._target, digest)
        version = f"{self._target.runtime} {runtime.version()}"
        return Proven(target=self.name, runtime_version=version, digest=loaded, certificate=certificate)


class EagerContender(LocalContender):
    """PyTorch itself, on the checkpoint that the bundle was made from; within fp32's tolerance."""

    def __init__(
        self, bundle: Bundle, predictor: Predictor, settings: Settings, version: str, tensors: bool, compiled: bool
    ) -> None:
        super().__init__(bundle, predictor, bundle.targets[0], settings, tensors)
        self.name, self._version = COMPILED if compiled else EAGER, version

    @property
    def target(self) -> None:
        return None

    def reopen(self, settings: Settings) -> NoReturn:
        """Raises UsageError."""
        raise UsageError("PyTorch's threads are those of the whole process: leave --pytorch out of this curve")

    def measure_cost(self) -> None: ...

    def prove(self) -> Proven:
        digest = self._bundle.manifest.source.sha256
        return Proven(target=self.name, runtime_version=self._version, digest=digest, certificate="")


def check_sessions(when: When, bundle: Bundle, sessions: Sequence[Session], tolerance: Tolerance, name: str) -> Check:
    """On every golden sample alone, in each size. Nothing of the runtime's version is kept: the record has it."""
    reports = [
        check_parity(session.run, bundle.golden(index), session.spec, tolerance, name, "", batches=(1,))
        for index, session in enumerate(sessions)
    ]
    return summarize_check(when, reports)


def summarize_check(when: When, reports: Sequence[ParityReport]) -> Check:
    errors = [error.max_abs for report in reports for error in report.errors if error.limit is not None]
    failures = tuple(line for report in reports for line in report.failures)
    return Check(when=when, passed=not failures, error=max(errors, default=None), failures=failures)


def make_request(ask: Ask, images: Sequence[bytes], count: int) -> Request:
    """Of a session in this process, for which nothing queues."""

    def request(number: int) -> Mapping[str, float]:
        stages = list_stages(ask(choose_next(images, number, count)))
        del stages["queue"]
        return stages

    return request


def list_stages(timings: Timings) -> dict[str, float]:
    """Those that are told."""
    told = {name: getattr(timings, f"{name}_ms") for name in _STAGES}
    return {name: value for name, value in told.items() if value is not None}


def choose_ask(answers: Answers, image: bytes) -> Ask:
    """The call that the model answers; found by trying, since a server's model says its task only when asked."""
    asks: list[Ask] = [
        lambda data: answers.classify(data, 5)[1],
        lambda data: answers.segment(data, None)[1],
        lambda data: answers.detect(data, 0.5)[1],
        lambda data: answers.embed(data)[1],
    ]
    for ask in asks[:-1]:
        try:
            ask([image])
        except TaskError:
            continue
        return ask
    return asks[-1]
