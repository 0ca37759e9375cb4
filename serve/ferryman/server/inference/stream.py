"""ModelStreamInfer: requests of one stream side by side, each answered when it is done."""

import asyncio
import logging
from collections.abc import AsyncIterable, Awaitable, Callable

from ferryman.errors import FerrymanError, UnavailableError
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.server.guard import UNEXPECTED
from ferryman.server.inference.parameters import read_flag
from ferryman.server.rpc.core import Context
from ferryman.status import public_line

log = logging.getLogger(__name__)
Answer = Callable[[pb.ModelInferRequest], Awaitable[pb.ModelInferResponse]]


async def answer_stream(
    requests: AsyncIterable[pb.ModelInferRequest],
    context: Context,
    answer: Answer,
    window: int,
    stopping: asyncio.Event,
) -> None:
    """Writes one message a request, in the order in which they are done; a failed one is answered by its error.

    window: requests that may be inside at a time. The next one is read only when one of them has been sent, so that
        gRPC's flow control holds back a client that does not read.
    Raises UnavailableError once `stopping` is set and what was read is answered.
    """
    places = asyncio.Semaphore(window)
    writing = asyncio.Lock()  # a stream takes one message at a time
    started: set[asyncio.Task[None]] = set()

    async def answer_one(request: pb.ModelInferRequest) -> None:
        message = await _message_of(request, answer)
        try:
            async with writing:
                await context.write(message)
        finally:
            places.release()

    async def read() -> None:
        await places.acquire()
        async for request in requests:
            task = asyncio.create_task(answer_one(request))
            started.add(task)
            task.add_done_callback(started.discard)
            await places.acquire()

    reader, stopper = asyncio.create_task(read()), asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((reader, stopper), return_when=asyncio.FIRST_COMPLETED)
        reader.cancel()  # nothing, where it has ended
        await asyncio.wait([reader])
        await asyncio.gather(*started)
        if reader.cancelled():
            raise UnavailableError("the server is stopping; the requests that it had read are answered")
        reader.result()
    finally:
        for task in (stopper, reader, *started):
            task.cancel()


async def _message_of(request: pb.ModelInferRequest, answer: Answer) -> pb.ModelStreamInferResponse:
    """Never raises but for being cancelled."""
    try:
        final = read_flag(request.parameters, "triton_enable_empty_final_response")
        response = await answer(request)
        if final:  # the one answer is the last one: no empty one follows it
            response.parameters["triton_final_response"].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=response)
    except FerrymanError as error:
        failure = error.with_traceback(None)  # see ErrorGuard
    except Exception:
        log.exception("unexpected error in a stream")
        failure = FerrymanError(UNEXPECTED)
    return pb.ModelStreamInferResponse(
        error_message=public_line(failure), infer_response=pb.ModelInferResponse(id=request.id)
    )
