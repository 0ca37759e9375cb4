"""Clients of a running server, in a process of their own: `python -m ferryman.bench.load`.

Reads a line `ADDRESS SIZE [CA]`, the last a file and for TLS, a request of so many bytes and then one order a line, and
writes what became of each as a line of JSON. Requests and answers stay bytes, so that clients take as little of the
machine as they can.
"""

import asyncio
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Literal

import grpc
import grpc.aio
from pydantic import TypeAdapter

from ferryman.pem import read_authorities
from ferryman.specs import Facts

METHOD = "/inference.GRPCInferenceService/ModelInfer"


class Closed(Facts):
    """Clients that each ask again once they are answered. timeout: of each request, None for none"""

    kind: Literal["closed"] = "closed"
    clients: int
    seconds: float
    timeout: float | None = None


class Open(Facts):
    """So many requests a second, spread evenly over the clients, whatever becomes of them."""

    kind: Literal["open"] = "open"
    clients: int
    seconds: float
    rate: float
    timeout: float


class Outcome(Facts):
    """seconds: from the first request to the last answer; codes: how many got which status

    latencies_ms: of those that were answered OK; refused_ms: of those that were not
    late: of an open load the longest time that a request was sent after its turn, in seconds
    """

    seconds: float
    codes: dict[str, int]
    latencies_ms: list[float]
    refused_ms: list[float]
    late: float = 0.0


class _Clients:
    """Each has a connection of its own. The first so many are asked by each order."""

    def __init__(self, address: str, request: bytes, ca: Path | None) -> None:
        self._address = address
        self._request = request
        self._credentials = None if ca is None else grpc.ssl_channel_credentials(read_authorities(ca))
        self._calls: list[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = []
        self._channels: list[grpc.aio.Channel] = []
        self._reset()

    def _reset(self) -> None:
        self._codes = Counter[str]()
        self._latencies: list[float] = []
        self._refused: list[float] = []

    async def open(self, count: int) -> None:
        while len(self._calls) < count:
            options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
            if self._credentials is None:
                channel = grpc.aio.insecure_channel(self._address, options)
            else:
                channel = grpc.aio.secure_channel(self._address, self._credentials, options)
            self._channels.append(channel)
            self._calls.append(channel.unary_unary(METHOD))
            await self._ask(len(self._calls) - 1, None)
        self._reset()

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def _ask(self, client: int, timeout: float | None) -> None:
        start = time.perf_counter()
        try:
            await self._calls[client](self._request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            self._codes[error.code().name] += 1
            self._refused.append((time.perf_counter() - start) * 1e3)
        else:
            self._codes["OK"] += 1
            self._latencies.append((time.perf_counter() - start) * 1e3)

    async def run(self, order: Closed | Open) -> Outcome:
        await self.open(order.clients)
        start = time.perf_counter()
        late = await (self._run_closed(order) if isinstance(order, Closed) else self._run_open(order))
        outcome = Outcome(
            seconds=time.perf_counter() - start,
            codes=dict(self._codes),
            latencies_ms=self._latencies,
            refused_ms=self._refused,
            late=late,
        )
        self._reset()
        return outcome

    async def _run_closed(self, order: Closed) -> float:
        end = time.perf_counter() + order.seconds

        async def go_on(client: int) -> None:
            while time.perf_counter() < end:
                await self._ask(client, order.timeout)

        await asyncio.gather(*map(go_on, range(order.clients)))
        return 0.0

    async def _run_open(self, order: Open) -> float:
        start, late = time.perf_counter(), 0.0
        tasks: set[asyncio.Task[None]] = set()
        for number in range(round(order.rate * order.seconds)):
            pause = start + number / order.rate - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            late = max(late, -pause)
            task = asyncio.create_task(self._ask(number % order.clients, order.timeout))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)
        return late


async def _main() -> None:
    line = sys.stdin.buffer.readline()
    if not line:  # there is no server after all
        return
    address, size, *ca = line.decode().split(maxsplit=2)
    clients = _Clients(address, sys.stdin.buffer.read(int(size)), Path(ca[0].strip()) if ca else None)
    orders: TypeAdapter[Closed | Open] = TypeAdapter(Closed | Open)
    while line := await asyncio.to_thread(sys.stdin.buffer.readline):
        outcome = await clients.run(orders.validate_json(line))
        sys.stdout.write(outcome.model_dump_json() + "\n")
        sys.stdout.flush()
    await clients.close()


if __name__ == "__main__":
    asyncio.run(_main())
