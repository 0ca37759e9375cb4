"""A server's memory after thousands of requests with large pictures, from many connections."""

import asyncio
import io
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferryman.v1 import vision_pb2 as pb

from .inside import Caller, calling
from .process import ServerProcess

CONNECTIONS = 64


async def resident_mb(process: int) -> float:
    """At rest: while requests are inside, their pictures are too, up to `queue_limit` of them."""
    lowest = math.inf
    for _ in range(8):
        await asyncio.sleep(1)
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
        found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        assert found is not None
        lowest = min(lowest, int(found[1]) / 1024)
    return lowest


@pytest.mark.skipif("FERRYMAN_SOAK" not in os.environ, reason="set FERRYMAN_SOAK to a number of requests (minutes)")
@pytest.mark.timeout(3600)
async def test_memory_does_not_grow(toy_repository: Path) -> None:
    """Every tenth request is cancelled, every eleventh is no picture, and some are refused: all must leave nothing."""
    requests = int(os.environ["FERRYMAN_SOAK"])
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (512, 682, 3), dtype=np.uint8)).save(file, "BMP")
    picture = file.getvalue()
    assert len(picture) > 1_000_000
    model = pb.ModelRef(name="toy-detector")
    good = pb.DetectRequest(model=model, images=[picture])
    bad = pb.DetectRequest(model=model, images=[picture[:500_000]])
    codes: dict[str, int] = {}
    numbers = iter(range(requests + 2000))

    async def go_on(caller: Caller, last: int) -> None:
        for number in numbers:
            call = caller.vision.Detect(bad if number % 11 == 0 else good)
            if number % 10 == 0:
                await asyncio.sleep(0.01)
                call.cancel()
            code = (await call.code()).name
            codes[code] = codes.get(code, 0) + 1
            if number >= last:
                return

    with ServerProcess({"repository": str(toy_repository), "threads": 1, "queue_limit": 64}) as server:
        openings = [calling(server.address) for _ in range(CONNECTIONS)]
        callers = [await opening.__aenter__() for opening in openings]
        # Pools, arenas and connections take what they need first.
        await asyncio.gather(*(go_on(caller, 1000) for caller in callers))
        before = await resident_mb(server.process.pid)
        await asyncio.gather(*(go_on(caller, 1000 + requests) for caller in callers))
        grown = await resident_mb(server.process.pid) - before
        for opening in openings:
            await opening.__aexit__(None, None, None)
    assert set(codes) <= {"OK", "INVALID_ARGUMENT", "CANCELLED", "RESOURCE_EXHAUSTED"}
    assert codes["OK"] > requests / 2
    assert grown < 20, f"{grown:.1f} MB more after {requests} requests, {before:.1f} MB before: {codes}"
