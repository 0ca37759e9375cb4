"""Ready tensors instead of pictures: what a session and ModelInfer take, made before anything is timed."""

import time
from collections.abc import Callable, Mapping, Sequence

from ferryman.bench.harness import Request
from ferryman.bench.pictures import choose_next
from ferryman.preprocess import preprocess_image, stack_inputs
from ferryman.runtimes.base import Arrays, Session
from ferryman.specs import ModelSpec


def make_tensors(images: Sequence[bytes], count: int, spec: ModelSpec) -> Callable[[int], Arrays]:
    """What makes a request's inputs, by its number. Raises ImageError for a picture that can't be decoded."""
    fitted = [preprocess_image(data, spec.preprocess) for data in images]

    def make(number: int) -> Arrays:
        canvases, geometries = zip(*choose_next(fitted, number, count), strict=True)
        return stack_inputs(canvases, geometries, spec.input_names)

    return make


def request_tensors(session: Session, make: Callable[[int], Arrays]) -> Request:
    def request(number: int) -> Mapping[str, float]:
        inputs = make(number)
        start = time.perf_counter()
        session.run(inputs)
        return {"compute": (time.perf_counter() - start) * 1e3}

    return request
