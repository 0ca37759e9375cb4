"""What `ferryman bench` measures: a bundle's variants in this process, or a server's model."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, fields
from typing import Literal, Protocol

from ferryman.bench.alone import Load, SessionCost, measure_cost
from ferryman.bench.flow import AsyncRequest
from ferryman.bench.harness import Request
from ferryman.bench.record import Check, Proven
from ferryman.bundle import Bundle
from ferryman.certificates import check_certificate
from ferryman.commands.predict import Answers, Asker, Local, Remote
from ferryman.errors import CertificateError, MissingExtraError, TaskError
from ferryman.manifest import Tolerance
from ferryman.parity import ParityReport, check_parity
from ferryman.predictor import Predictor, Timings
from ferryman.runtimes import find_runtime
from ferryman.runtimes.base import Session, Settings
from ferryman.specs import Target

Ask = Callable[[Sequence[bytes]], Timings]
When = Literal["before", "after"]
SERVER, PYTORCH = "the server", "PyTorch eager"
_COST_PROCESSES = 1
_STAGES = tuple(field.name for field in fields(Timings) if field.name != "total_ms")


class Contender(Protocol):
    """One that is asked. name: of its row; model: for people"""

    name: str
    model: str

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

    def __init__(self, bundle: Bundle, predictor: Predictor, target: Target, settings: Settings) -> None:
        self.name, self.model = str(target), f"{bundle.name}/{bundle.version}"
        self._bundle, self._predictor, self._target, self._settings = bundle, predictor, target, settings

    def request(self, images: Sequence[bytes], count: int = 1) -> Request:
        return make_request(choose_ask(Local(self._predictor), images[0]), images, count)

    @asynccontextmanager
    async def connect(self, images: Sequence[bytes], count: int, clients: int) -> AsyncGenerator[AsyncRequest, None]:
        """Requests wait their turn in a queue, which is part of their time, for one of so many threads."""
        request, loop = self.request(images, count), asyncio.get_running_loop()
        pool = ThreadPoolExecutor(clients)
        try:
            yield lambda number: loop.run_in_executor(pool, request, number)
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
    def bundle(self) -> Bundle:
        return self._bundle

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

    def __init__(self, bundle: Bundle, predictor: Predictor, settings: Settings, version: str) -> None:
        super().__init__(bundle, predictor, bundle.targets[0], settings)
        self.name, self._version = PYTORCH, version

    @property
    def target(self) -> None:
        return None

    def measure_cost(self) -> None: ...

    def prove(self) -> Proven:
        digest = self._bundle.manifest.source.sha256
        return Proven(target=self.name, runtime_version=self._version, digest=digest, certificate="")


class ServedContender:
    """A model of a server. What it answers with is proved by its own certificate."""

    name = SERVER

    def __init__(self, answers: Remote, asker: Asker, proven: Proven) -> None:
        self.model, self._answers, self._asker, self._proven = answers.name, answers, asker, proven

    def request(self, images: Sequence[bytes], count: int = 1) -> Request:
        return make_request(choose_ask(self._answers, images[0]), images, count)

    @asynccontextmanager
    async def connect(self, images: Sequence[bytes], count: int, clients: int) -> AsyncGenerator[AsyncRequest, None]:
        """One connection, on which any number of requests are under way."""
        from ferryman.client import AsyncClient, RetryPolicy

        task, name = self._answers.facts().task, self._answers.name
        version = self._answers.version
        assert self._asker.address is not None
        retry = RetryPolicy(attempts=1)
        async with AsyncClient(self._asker.address, security=self._asker.security, retry=retry) as client:

            async def request(number: int) -> Mapping[str, float]:
                data = choose_images(images, number, count)
                match task:
                    case "classification":
                        answer = await client.classify(data, model=name, version=version)
                    case "embedding":
                        answer = await client.embed(data, model=name, version=version)
                    case "detection":
                        answer = await client.detect(data, model=name, version=version)
                    case _:
                        answer = await client.segment(data, model=name, version=version)
                return list_stages(answer.timings)

            yield request

    def check(self, when: When) -> None:
        del when

    def measure_cost(self) -> None: ...

    def prove(self) -> Proven:
        return self._proven


@dataclass(frozen=True)
class Opened:
    """bundle_digest: of the first; notes: why they may not be comparable, a line each"""

    contenders: tuple[Contender, ...]
    bundle_digest: str
    notes: tuple[str, ...] = ()


@contextmanager
def open_contenders(
    bundle: Bundle | None, targets: Sequence[str], settings: Settings, server: Asker | None, pytorch: str | None = None
) -> Generator[Opened, None, None]:
    """A bundle's targets, by default its first, and after them a server's model, whichever are given.

    pytorch: the checkpoint that the bundle was made from, to be measured before all others in PyTorch itself
    Raises EngineError when one can't be loaded, UnavailableError, ModelNotFoundError ... for a server.
    """
    with ExitStack() as opened:
        found: list[Contender] = []
        digests: list[str] = []
        notes: list[str] = []
        if bundle is not None:
            digests.append(bundle.digest)
            if pytorch is not None:
                found.append(opened.enter_context(open_pytorch(bundle, pytorch, settings)))
            for name in dict.fromkeys(targets or [str(bundle.targets[0])]):
                target = bundle.variants(name)[0].target
                predictor = opened.enter_context(Predictor(bundle, str(target), settings))
                found.append(LocalContender(bundle, predictor, target, settings))
        if server is not None:
            remote = opened.enter_context(server.connect())
            facts = remote.facts()
            proven = Proven(
                target=facts.target, runtime_version=facts.runtime_version, digest="", certificate=facts.certified
            )
            digests.append(facts.bundle_digest)
            if found and facts.target not in [one.name for one in found]:
                notes.append(f"the server answers with {facts.target}, which is not measured here")
            found.append(ServedContender(remote, server, proven))
        if len(set(digests)) > 1:
            notes.append("the server answers with another bundle than the one here")
        yield Opened(tuple(found), digests[0], tuple(notes))


@contextmanager
def open_pytorch(bundle: Bundle, source: str, settings: Settings) -> Generator[Contender, None, None]:
    """Raises MissingExtraError without PyTorch, and what `open_eager` raises."""
    try:
        from ferryman_export.eager import VERSION, open_eager
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"measuring PyTorch ({error.name} is missing)", "export") from error
    with Predictor(bundle, sessions=open_eager(bundle, source, settings)) as predictor:
        yield EagerContender(bundle, predictor, settings, VERSION)


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
    return lambda number: list_stages(ask(choose_images(images, number, count)))


def choose_images(images: Sequence[bytes], number: int, count: int) -> list[bytes]:
    """Those of a request: the next ones in turn."""
    return [images[(number * count + index) % len(images)] for index in range(count)]


def list_stages(timings: Timings) -> dict[str, float]:
    return {name.removesuffix("_ms"): getattr(timings, name) for name in _STAGES}


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
