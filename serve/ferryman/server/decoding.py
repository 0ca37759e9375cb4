"""Threads that decode pictures and fit them to canvases, shared by all models of a process."""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from ferryman.predictor import Fitted, fit_one, join_fitted
from ferryman.preprocess import MAX_PIXELS
from ferryman.server.batcher import Batcher, Waiting
from ferryman.server.costs import Costs
from ferryman.server.queueing import ANYONE, Caller
from ferryman.specs import PreprocessSpec

_FIRST_GUESS_S = 0.005  # of a picture, until some were decoded
# What a thread may keep of freed pictures: four blocks of 4 MiB, a decoded picture of a megapixel being one.
_KEPT_BLOCKS, _BLOCK_BYTES = 4, 4 * 2**20


@dataclass(frozen=True)
class _Picture:
    """One of a request: number `number` of `count`, from 1. model: a number that stands for who asked"""

    model: int
    data: bytes
    number: int
    count: int
    specs: Sequence[PreprocessSpec]


class Decoder:
    """Decodes and resizes in threads: the libraries release the interpreter's lock. Clients take turns here too.

    threads: pictures decoded side by side; max_pixels: of one picture
    """

    def __init__(self, threads: int, max_pixels: int = MAX_PIXELS) -> None:
        self._max_pixels = max_pixels
        _keep_memory(_KEPT_BLOCKS * threads)
        self._costs = costs = Costs({1: _FIRST_GUESS_S})
        self._batcher = Batcher[_Picture, Fitted](
            self._fit, "images", lambda key: costs, key=lambda picture: picture.model, concurrency=threads
        )

    async def fit(
        self,
        images: Sequence[bytes],
        specs: Sequence[PreprocessSpec],
        deadline: float | None = None,
        caller: Caller = ANYONE,
        model: int = 0,
    ) -> Fitted:
        """As `fit_images`, picture by picture: those of a request that was cancelled, is late or has failed are left.

        Its times are shares of the time that passed, as pictures are decoded side by side.
        Raises as `fit_images` and `Batcher.submit`.
        """
        pictures = [_Picture(model, data, number, len(images), specs) for number, data in enumerate(images, start=1)]
        start = time.perf_counter()
        fitted = join_fitted([done.output for done in await self._batcher.submit(pictures, deadline, caller)])
        passed_ms = (time.perf_counter() - start) * 1e3
        share = min(1.0, passed_ms / max(fitted.decode_ms + fitted.resize_ms, 1e-9))
        return replace(fitted, decode_ms=fitted.decode_ms * share, resize_ms=fitted.resize_ms * share)

    def predict(self, images: int, caller: Caller) -> float:
        """Seconds until so many pictures would be decoded, 0.0 when they start at once."""
        return self._batcher.predict({0: images}, caller)

    def image_s(self) -> float:
        """What a picture takes in one thread, by what the last ones took."""
        return self._costs.image_s()

    def newest(self, client: str | None, model: int) -> list[Waiting[Any, Any]]:
        """See `Batcher.newest`."""
        return self._batcher.newest(client, model)

    def evict(self, waiting: Iterable[Waiting[Any, Any]], error: Exception) -> None:
        self._batcher.evict(waiting, error)

    async def close(self) -> None:
        await self._batcher.close()

    def _fit(self, pictures: list[_Picture]) -> list[Fitted]:
        return [fit_one(one.data, one.specs, self._max_pixels, one.number, one.count) for one in pictures]


def _keep_memory(blocks: int) -> None:
    """Lets Pillow use freed memory again, for the whole process, unless its own variables say what it should do.

    By default each picture's goes back to the system, which clears it page by page for the next one: that takes longer
    than decoding a small JPEG. Blocks are as large as what they last held.
    """
    if not any(name in os.environ for name in ("PILLOW_BLOCKS_MAX", "PILLOW_BLOCK_SIZE")):
        Image.core.set_block_size(_BLOCK_BYTES)
        Image.core.set_blocks_max(blocks)
