"""Servers whose queue is known, and what the books say of it."""

import asyncio
from collections.abc import Callable, Mapping

import numpy as np

from ferryman.bench.flow import AsyncRequest
from ferryman.bench.samples import Series


def serve(service_s: Callable[[int], float], workers: int = 1) -> AsyncRequest:
    """A server with a queue: each of its workers answers one request at a time, in the order in which they came."""
    lock: list[asyncio.Semaphore] = []

    async def request(number: int) -> Mapping[str, float]:
        if not lock:
            lock.append(asyncio.Semaphore(workers))
        async with lock[0]:
            await asyncio.sleep(service_s(number))
        return {"compute": service_s(number) * 1e3}

    return request


def lindley(arrivals: Series, service_s: float) -> Series:
    """Milliseconds in a queue with one worker, by Lindley's recursion."""
    free, found = 0.0, list[float]()
    for arrival in arrivals:
        free = max(free, float(arrival)) + service_s
        found.append((free - float(arrival)) * 1e3)
    return np.array(found)
