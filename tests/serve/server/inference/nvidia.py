"""What NVIDIA's client gets from a server: nvidia.py ADDRESS SCENARIO, in a process of its own.

Its definitions of the protocol and ours can't be in one process. Reads the arguments of the scenario from stdin and
writes what it returns to stdout, both pickled.
"""

import asyncio
import pickle
import queue
import sys
from collections.abc import AsyncIterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException, shared_memory

Client = Any  # its own types forget what it returns


def _tensor(name: str, array: Any, datatype: str) -> triton.InferInput:
    given = triton.InferInput(name, array.shape, datatype)
    given.set_data_from_numpy(array)
    return given


def _pictures(pictures: Sequence[bytes]) -> triton.InferInput:
    return _tensor("image_bytes", np.array(pictures, dtype=np.object_), "BYTES")


def _arrays(result: Any) -> dict[str, Any]:
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def describe(client: Client, model: str) -> dict[str, Any]:
    return {
        "ready": [client.is_server_live(), client.is_server_ready(), client.is_model_ready(model, "1")],
        "not ready": [client.is_model_ready("vit"), client.is_model_ready(model, "9")],
        "server": client.get_server_metadata(as_json=True),
        "metadata": client.get_model_metadata(model, as_json=True),
        "config": client.get_model_config(model, as_json=True)["config"],
        "statistics": client.get_inference_statistics(model, as_json=True)["model_stats"],
        "index": client.get_model_repository_index(as_json=True)["models"],
    }


def infer(client: Client, model: str, image: Any, pictures: list[bytes]) -> dict[str, Any]:
    tensors = client.infer(model, [_tensor("image", image, "UINT8")], request_id="7", model_version="1")
    later: queue.Queue[Any] = queue.Queue()
    client.async_infer(model, [_pictures(pictures)], lambda result, error: later.put(error or result))
    best = triton.InferRequestedOutput("probabilities", class_count=2)
    classes = client.infer("toy-classifier", [_tensor("image", image, "UINT8")], outputs=[best], timeout=100_000_000)
    errors: list[Any] = []
    for wrong in (_tensor("image", image[:, 1:], "UINT8"), _pictures([b"hello"])):
        try:
            client.infer(model, [wrong])
        except InferenceServerException as error:
            errors.append((error.status(), error.message()))
    return {
        "id": tensors.get_response().id,
        "tensors": _arrays(tensors),
        "pictures": _arrays(later.get(timeout=60)),
        "classes": classes.as_numpy("probabilities"),
        "errors": errors,
    }


def stream(client: Client, model: str, pictures: list[bytes]) -> dict[str, Any]:
    """A request a picture, all of them sent before the first answer is looked at."""
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for index, picture in enumerate(pictures):
        client.async_stream_infer(
            model, [_pictures([picture])], request_id=str(index), enable_empty_final_response=True
        )
    found: dict[str, Any] = {}
    errors: list[str] = []
    for _ in pictures:
        result, error = answers.get(timeout=60)
        if error is not None:
            errors.append(error.message())
        else:
            response = result.get_response()
            found[response.id] = _arrays(result), response.parameters["triton_final_response"].bool_param
    client.stop_stream()
    return {"answers": found, "errors": errors, "more": answers.qsize()}


def asynchronous(address: str, model: str, pictures: list[bytes]) -> dict[str, Any]:

    async def ask() -> dict[str, Any]:
        client: Client
        async with triton_aio.InferenceServerClient(address) as client:

            async def requests() -> AsyncIterator[dict[str, Any]]:
                for index, picture in enumerate(pictures):
                    yield {"model_name": model, "inputs": [_pictures([picture])], "request_id": str(index)}

            streamed: dict[str, Any] = {}
            async for result, error in client.stream_infer(requests()):
                assert error is None
                streamed[result.get_response().id] = _arrays(result)
            single = await asyncio.gather(*(client.infer(model, [_pictures([picture])]) for picture in pictures))
            return {
                "ready": await client.is_server_ready(),
                "streamed": [streamed[str(index)] for index in range(len(pictures))],
                "single": [_arrays(result) for result in single],
            }

    return asyncio.run(ask())


def share(client: Client, key: str, model: str, image: Any) -> dict[str, Any]:
    """Inputs and outputs in one region of shared memory; the image lies behind the outputs."""
    offset = 4096
    region = shared_memory.create_shared_memory_region("frames", key, offset + image.nbytes)
    try:
        shared_memory.set_shared_memory_region(region, [image], offset)
        client.register_system_shared_memory("frames", key, offset + image.nbytes)
        status = client.get_system_shared_memory_status(as_json=True)["regions"]
        given = triton.InferInput("image", image.shape, "UINT8")
        given.set_shared_memory("frames", image.nbytes, offset)
        boxes = triton.InferRequestedOutput("boxes")
        boxes.set_shared_memory("frames", 2048, 1024)
        result = client.infer(model, [given], outputs=[boxes, triton.InferRequestedOutput("scores")])
        output = result.get_output("boxes")
        shape = tuple(output.shape)
        found = {
            "boxes": np.array(shared_memory.get_contents_as_numpy(region, np.float32, shape, 1024)),
            "scores": result.as_numpy("scores"),
            "bytes": output.parameters["shared_memory_byte_size"].int64_param,
        }
        client.unregister_system_shared_memory()
        client.unregister_cuda_shared_memory()  # as perf_analyzer does
        left = client.get_system_shared_memory_status(as_json=True)
        return found | {"status": status, "left": left}
    finally:
        shared_memory.destroy_shared_memory_region(region)


def share_cuda(client: Client, model: str, image: Any, played: bool) -> dict[str, Any]:
    """Inputs and outputs in memory of the first GPU, or of one that is played; the image lies behind a gap."""
    if played:
        from device import play_bindings  # pyright: ignore[reportImplicitRelativeImport]

        play_bindings()
    sys.modules.setdefault("pkg_resources", ModuleType("pkg_resources"))  # imported there, and not used
    from tritonclient.utils import cuda_shared_memory

    gap = np.zeros(4096, np.uint8)
    sizes = {"frames": gap.nbytes + image.nbytes, "boxes": 2048}
    regions = {name: cuda_shared_memory.create_shared_memory_region(name, size, 0) for name, size in sizes.items()}
    cuda_shared_memory.set_shared_memory_region(regions["frames"], [gap, image])
    for name, region in regions.items():
        handle = cuda_shared_memory.get_raw_handle(region)
        client.register_cuda_shared_memory(name, handle, 0, sizes[name])
    status = client.get_cuda_shared_memory_status(as_json=True)["regions"]
    given = triton.InferInput("image", image.shape, "UINT8")
    given.set_shared_memory("frames", image.nbytes, gap.nbytes)
    boxes = triton.InferRequestedOutput("boxes")
    boxes.set_shared_memory("boxes", 2048)
    result = client.infer(model, [given], outputs=[boxes, triton.InferRequestedOutput("scores")])
    shape = tuple(result.get_output("boxes").shape)
    found = {
        "boxes": cuda_shared_memory.get_contents_as_numpy(regions["boxes"], np.float32, shape),
        "scores": result.as_numpy("scores"),
        "right": _arrays(client.infer(model, [_tensor("image", image, "UINT8")])),
        "extensions": list(client.get_server_metadata().extensions),
        "system": client.get_system_shared_memory_status(as_json=True),
    }
    client.unregister_cuda_shared_memory()
    left = client.get_cuda_shared_memory_status(as_json=True)
    for region in regions.values():
        cuda_shared_memory.destroy_shared_memory_region(region)
    return found | {"status": status, "left": left}


def control(client: Client, model: str, image: Any) -> list[Any]:
    """Unloads a model, asks it, loads it, asks it."""
    client.unload_model(model)
    found: list[Any] = [client.is_model_ready(model), client.get_model_repository_index(as_json=True)["models"]]
    try:
        client.infer(model, [_tensor("image", image, "UINT8")])
    except InferenceServerException as error:
        found.append((error.status(), error.message()))
    client.load_model(model)
    found.append(client.is_model_ready(model))
    return [*found, _arrays(client.infer(model, [_tensor("image", image, "UINT8")]))]


def main() -> None:
    _, address, scenario = sys.argv
    arguments = pickle.load(sys.stdin.buffer)
    if scenario == "asynchronous":
        found: Any = asynchronous(address, *arguments)
    else:
        with triton.InferenceServerClient(address) as client:
            found = globals()[scenario](client, *arguments)
    sys.stdout.buffer.write(pickle.dumps(found))


if __name__ == "__main__":
    main()
