"""The server: its parts put together (VisionServer), and its life (serve)."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Collection
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import cast

import grpc
import grpc.aio
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from ferryman.addresses import split_address
from ferryman.errors import AddressError, BundleError, FerrymanError
from ferryman.inference import grpc_service_pb2_grpc
from ferryman.server.config import ServerConfig
from ferryman.server.engines import Engines
from ferryman.server.guard import CallsInFlight, ErrorGuard
from ferryman.server.health import METHODS, SERVICES, Health
from ferryman.server.inference.infer import InferLimits
from ferryman.server.inference.servicer import IN_STEPS, InferenceServicer
from ferryman.server.inference.shared_memory import Regions, SharedMemory
from ferryman.server.loading import LoadedModel
from ferryman.server.observing import Observer
from ferryman.server.placement import ANYWHERE, inside, place_threads
from ferryman.server.probes import Probes, text_page
from ferryman.server.rpc.core import Handler
from ferryman.server.rpc.server import RpcServer
from ferryman.server.security.access import (
    ADMINISTRATORS,
    Access,
    Door,
    Permissions,
    owner_of,
)
from ferryman.server.security.exposure import describe_exposure
from ferryman.server.security.tls import server_credentials
from ferryman.server.security.tokens import TokenFile
from ferryman.server.servicer import RequestLimits, VisionServicer
from ferryman.server.supervised import Supervisor
from ferryman.server.tidying import Tidier
from ferryman.server.transport import caller_of, grpc_options, patience_of
from ferryman.server.watching import Watcher
from ferryman.v1 import vision_pb2_grpc

log = logging.getLogger(__name__)
# For health checks under way. Watches never end by themselves, and vision calls have ended before.
_LAST_CHECKS_S = 0.2
# Between the last call and the end, and for how long it may be waited for.
_QUIET_S, _LONGEST_QUIET_S = 0.05, 1.0


class VisionServer:
    """A server and its models. `start` it in a running event loop, `stop` it once.

    load: gives the model in NAME/VERSION, in a thread; a seam for models that come from elsewhere
    """

    def __init__(self, config: ServerConfig, load: Callable[[Path], LoadedModel] | None = None) -> None:
        """Raises BundleNotFoundError when the repository holds nothing to serve. Listens to nothing yet."""
        self.config = config
        self._placement = place_threads(config.model_cpus, config.busy_threads)
        self._before = ANYWHERE  # of the event loop's thread, before it moved to its own
        self.address = config.address  # with the port that was bound, once started
        self.calls = CallsInFlight()
        self._listening = False
        self._telling: set[asyncio.Task[None]] = set()
        with inside(self._placement.others):  # for the threads that decode
            self._engines = Engines(config, load, self._placement, self._tell_health)
        self.models = self._engines.models
        self.observer = Observer(config)
        self._memory = SharedMemory(config.shared_memory_bytes)
        self.health = Health()
        self.watcher = Watcher(self.models, self.health, config.watch_seconds)
        self._tidier = Tidier(self._count_inside, lambda: sum(door.passed for door in self._doors))
        self.metrics_address = config.metrics_address  # with the port that was bound, once started
        self._probes: Probes | None = None
        tokens = None if config.tokens is None else TokenFile(config.tokens, self._forget_tokens)
        self._credentials = None
        if config.tls_certificate is not None and config.tls_key is not None:
            self._credentials = server_credentials(config.tls_certificate, config.tls_key, config.tls_client_ca)
        self._doors: list[Door] = []  # of both addresses
        with inside(self._placement.others):  # for gRPC's threads
            self._server = self._make_server(Access(tokens, config.open_health))
            self._admin = None if config.admin_address is None else self._make_server(Access(None, True, admin=True))
        self.admin_address = config.admin_address  # with the port that was bound, once started

    def _forget_tokens(self, names: Collection[str]) -> None:
        """What was left by tokens that there are no longer. names: of those that there are. In gRPC's thread."""
        self._loop.call_soon_threadsafe(self._memory.keep_owners, {ADMINISTRATORS, *map(owner_of, names)})

    def _count_inside(self) -> int:
        return sum(engine.images_inside for engine in self.models.loaded())

    @property
    def calls_inside(self) -> int:
        """Calls at both addresses that were let in and have not ended, whether their request is there or not."""
        return sum(door.calls_inside for door in self._doors)

    def _make_server(self, access: Access) -> RpcServer:
        """All services over the models, for those whom `access` admits."""
        config = self.config
        guard, permissions = ErrorGuard(self.calls), Permissions(self.models.model_of, access.tokens)

        def wrap(method: str, handler: Handler) -> Handler:
            if method not in METHODS:
                return handler  # health and reflection have statuses of their own, and say nothing of the load
            return self.observer.wrap(method, guard.wrap(method, permissions.wrap(method, handler)))

        door = Door(access, self.observer.counts.add_call, config.max_calls)
        self._doors.append(door)
        made = RpcServer(door.open, wrap, grpc_options(config), patience_of(config), door.note, IN_STEPS)
        server = cast("grpc.aio.Server", made)  # to the generated code, which adds the methods of services to it
        self.health.add_to(server)
        callers = partial(caller_of, by=config.client_by)
        requests = RequestLimits(max_images=config.max_images_per_request, stream_window=config.stream_window)
        vision = VisionServicer(self.models, requests, self.calls, callers)
        vision_pb2_grpc.add_VisionServiceServicer_to_server(vision, server)
        inference = InferenceServicer(
            self.models,
            Regions(self._memory, access.owner),
            InferLimits(
                max_images=config.max_images_per_request,
                max_bytes=config.max_message_bytes,
                stream_window=config.infer_stream_window,
            ),
            self.health,
            self.calls.stopping,
            callers,
        )
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, server)
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(names), server)
        return made

    def _tell_health(self) -> None:
        task = asyncio.create_task(self.health.follow(self.models))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def start(self) -> list[str]:
        """Listens, loads what answers for each model and alias, and returns the names of those that are served.

        Health answers from the first moment, and says NOT_SERVING until a model is certified, loaded and warm.
        Raises AddressError when the address can't be listened on, BundleError when no model can be served; a
        model that can't be served beside others that can is logged, and stays NOT_SERVING.
        """
        self._loop = asyncio.get_running_loop()
        self._before = self._placement.others.take()
        await self.health.register([*self.models.names, *self.models.aliases])
        await self._start_probes()
        for warning in describe_exposure(self.config):
            log.warning(warning)
        self.address = _bind(self._server, self.config.address, self._credentials)
        await self._server.start()
        if self._admin is not None and self.config.admin_address is not None:
            self.admin_address = _bind(self._admin, self.config.admin_address)
            await self._admin.start()
            log.info("everything is allowed at admin_address=%s", self.admin_address)
        self._listening = True
        failures: list[FerrymanError] = []
        served: list[str] = []
        for name in (*self.models.names, *self.models.aliases):
            try:
                await self.models.get(name)
            except FerrymanError as error:
                failures.append(error)
            else:
                served.append(name)
                await self.health.follow(self.models)
        if not served:
            raise BundleError(
                f"nothing in {self.config.repository} can be served: {'; '.join(map(_with_folder, failures))}"
            )
        await self.health.set_ready()
        self.watcher.start()
        self._tidier.start()
        log.info("server started: address=%s models=%s", self.address, ",".join(served))
        return served

    async def _start_probes(self) -> None:
        """Before any model is loaded, so that an orchestrator sees that the process lives. Raises AddressError."""
        address = self.config.metrics_address
        if address is None:
            return
        from ferryman.server.metrics import Metrics, Sources

        sources = Sources(self.models, self.observer.counts, lambda: self.calls_inside, self.health, self.watcher)
        metrics = Metrics(sources)
        self._probes = Probes(
            {
                "/livez": text_page(lambda: True),
                "/readyz": text_page(lambda: self.health.ready),
                "/metrics": lambda accept: (HTTPStatus.OK, *metrics.render(accept)),
            }
        )
        host, port = split_address(address)
        try:
            bound = await self._probes.start(host, port)
        except OSError as error:
            raise AddressError(f"can't listen on {address}: {error.strerror}; choose another address") from error
        self.metrics_address = f"{address.rpartition(':')[0]}:{bound}"
        log.info("metrics: address=%s", self.metrics_address)

    async def stop(self, hurry: asyncio.Event | None = None) -> None:
        """Refuses new requests, answers those in flight within `grace_seconds`, frees everything.

        hurry: when it is set the requests in flight are cancelled at once; a batch that runs ends all the
        same. Calling it twice is fine.
        """
        if self.calls.stopping.is_set():
            return
        in_flight = self.calls.count
        self.calls.stopping.set()
        await self.health.stop()
        hurry = hurry or asyncio.Event()
        drained, hurried = asyncio.create_task(self.calls.wait_for_none()), asyncio.create_task(hurry.wait())
        await asyncio.wait((drained, hurried), timeout=self.config.grace_seconds, return_when=asyncio.FIRST_COMPLETED)
        drained.cancel()
        hurried.cancel()
        left = self.calls.count
        if not left:
            await self.calls.wait_for_quiet(_QUIET_S, _LONGEST_QUIET_S)
        servers = [self._server] if self._admin is None else [self._server, self._admin]
        await asyncio.gather(*(server.stop(None if left else _LAST_CHECKS_S) for server in servers))
        await self.watcher.stop()
        await self._tidier.stop()
        await self._engines.close()
        self._memory.close()
        if self._probes is not None:
            self._probes.stop()
        await asyncio.to_thread(self.observer.close)
        self._before.take()
        if self._listening:
            log.info("server stopped: address=%s in_flight=%d cancelled=%d", self.address, in_flight, left)


async def serve(
    config: ServerConfig,
    on_ready: Callable[[str, list[str]], None] = lambda address, models: None,
    load: Callable[[Path], LoadedModel] | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT; a second one ends it without waiting. Runs in the main thread.

    A supervisor that started the process and waits for word of it gets that, see Supervisor.

    on_ready: called with HOST:PORT and the names of the models once requests can be answered
    Raises what VisionServer and its `start` raise.
    """
    server, supervisor = VisionServer(config, load), Supervisor(os.environ)
    stop, hurry = asyncio.Event(), asyncio.Event()

    def interrupt() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        loop.add_signal_handler(number, interrupt)
    starting, stopping = asyncio.create_task(server.start()), asyncio.create_task(stop.wait())
    feeding = asyncio.create_task(supervisor.feed())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            served = starting.result()
            on_ready(server.address, served)
            supervisor.ready(f"serving {', '.join(served)} on {server.address}")
            await stopping
    finally:
        starting.cancel()
        stopping.cancel()
        supervisor.stopping()
        await server.stop(hurry)
        feeding.cancel()
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


def _with_folder(error: FerrymanError) -> str:
    """Whoever starts the server is told with its folder, to mend it, what callers are told of a version without."""
    what, _, _ = str(error).partition(" can't be served: ")
    cause = error.__cause__
    return f"{what} can't be served: {cause}" if isinstance(cause, FerrymanError) else str(error)


def _bind(server: RpcServer, address: str, credentials: grpc.ServerCredentials | None = None) -> str:
    """Listens on HOST:PORT and returns it with the port that was bound. Raises AddressError."""
    host, port = split_address(address)
    # gRPC says only that it failed, and writes to stderr; the operating system says why.
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen()
        bound = server.add_port(address, credentials)
    except OSError as error:
        raise AddressError(f"can't listen on {address}: {error.strerror}; choose another address") from error
    except (RuntimeError, UnicodeError) as error:  # taken in between, or not for gRPC; no name of a host
        raise AddressError(f"can't listen on {address}: {error}; choose another address") from error
    return f"{address.rpartition(':')[0]}:{bound}"
