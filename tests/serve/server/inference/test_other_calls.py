"""What a server tells of itself and its models, by reflection alone as well; models loaded and unloaded by a client."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from ferryman.inference import grpc_service_pb2 as pb

from ...toy import SIDE, add_toy_bundle, flip_a_byte
from ..gate import Gate
from ..inside import administering, calling, running, until
from .asking import arrays_of, infer, infer_pictures, status_of

CANVAS = np.full((1, SIDE, SIDE, 3), 9, np.uint8)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_client_that_knows_nothing_but_reflection(toy_server: str) -> None:
    """As grpcurl and other tools ask: no definition but the server's own."""
    with grpc.insecure_channel(toy_server) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "inference.GRPCInferenceService" in database.get_services()
        pool = DescriptorPool(database)
        service = pool.FindServiceByName("inference.GRPCInferenceService")
        assert {method.name for method in service.methods} >= {"ModelInfer", "ModelStreamInfer", "RepositoryIndex"}

        def ask(call: str, **fields: Any) -> Any:
            method = service.FindMethodByName(call)
            invoke = channel.unary_unary(
                f"/{service.full_name}/{call}",
                GetMessageClass(method.input_type).SerializeToString,
                GetMessageClass(method.output_type).FromString,
            )
            return invoke(GetMessageClass(method.input_type)(**fields), timeout=60)

        metadata = ask("ModelMetadata", name="toy-classifier")
        [described] = metadata.inputs
        request: dict[str, Any] = {"name": described.name, "datatype": described.datatype, "shape": CANVAS.shape}
        answer = ask("ModelInfer", model_name="toy-classifier", inputs=[request], raw_input_contents=[CANVAS.tobytes()])
        assert [output.name for output in answer.outputs] == [output.name for output in metadata.outputs]
        assert [len(raw) for raw in answer.raw_output_contents] == [16, 16]


async def test_statistics_follow_the_requests(toy_repository: Path) -> None:
    async with running(toy_repository) as server, calling(server.address) as caller:

        async def statistics(**fields: str) -> list[Any]:
            return list((await caller.inference.ModelStatistics(pb.ModelStatisticsRequest(**fields))).model_stats)

        before = await statistics()
        assert [one.name for one in before] == ["toy-classifier", "toy-detector", "toy-embedder"]
        assert all(one.inference_count == one.last_inference == 0 and not one.batch_stats for one in before)
        for count in (1, 1, 3):
            await caller.inference.ModelInfer(infer("toy-classifier", {"image": np.repeat(CANVAS, count, axis=0)}))
        await status_of(caller.inference.ModelInfer(infer_pictures("toy-classifier", [b"hello"])))
        await status_of(caller.inference.ModelInfer(infer("toy-classifier", {})))  # never gets as far as the model
        [found] = await statistics(name="toy-classifier", version="1")
        assert (found.inference_count, found.execution_count) == (5, 3)
        stats = found.inference_stats
        assert (stats.success.count, stats.fail.count, stats.queue.count, stats.compute_infer.count) == (3, 1, 3, 3)
        parts = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
        assert 0 < sum(part.ns for part in parts) <= stats.success.ns
        assert {one.batch_size: one.compute_infer.count for one in found.batch_stats} == {1: 2, 3: 1}
        # one request a batch: the same time was counted for both
        assert sum(one.compute_infer.ns for one in found.batch_stats) == stats.compute_infer.ns
        assert await statistics(name="toy-classifier", version="9") == []
        [other] = await statistics(name="toy-detector")
        assert not other.inference_stats.success.count


async def test_a_server_without_switches_says_so(toy_repository: Path) -> None:
    async with administering(toy_repository) as caller:
        metadata = await caller.inference.ServerMetadata(pb.ServerMetadataRequest())
        assert not [name for name in metadata.extensions if name.endswith("shared_memory")]
        for kind in ("System", "Cuda"):
            status = getattr(pb, f"{kind}SharedMemoryStatusRequest")()
            assert not (await getattr(caller.inference, f"{kind}SharedMemoryStatus")(status)).regions
            await getattr(caller.inference, f"{kind}SharedMemoryUnregister")(
                getattr(pb, f"{kind}SharedMemoryUnregisterRequest")()
            )


async def test_versions_are_asked_for_by_their_number(toy_repository: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(toy_repository, tmp_path / "copy")
    add_toy_bundle(copy, "toy-classifier", samples=3)
    async with administering(copy) as caller:

        async def ready(version: str) -> bool:
            return (
                await caller.inference.ModelReady(pb.ModelReadyRequest(name="toy-classifier", version=version))
            ).ready

        assert [await ready(version) for version in ("", "2", "1", "3")] == [True, True, False, False]
        request = infer("toy-classifier", {"image": CANVAS})
        assert (await caller.inference.ModelInfer(request)).model_version == "2"
        request.model_version = "1"
        assert (await caller.inference.ModelInfer(request)).model_version == "1"
        assert await ready("1")
        metadata = await caller.inference.ModelMetadata(pb.ModelMetadataRequest(name="toy-classifier", version="1"))
        assert list(metadata.versions) == ["1", "2"]
        index = await caller.inference.RepositoryIndex(pb.RepositoryIndexRequest())
        assert [(one.name, one.version, one.state) for one in index.models] == [
            ("toy-classifier", "1", "READY"),
            ("toy-classifier", "2", "READY"),
            ("toy-detector", "1", "READY"),
            ("toy-embedder", "1", "READY"),
        ]


async def test_unloading_answers_what_is_inside(toy_repository: Path) -> None:
    gate = Gate()
    async with (
        running(toy_repository, gate, admin_address="127.0.0.1:0") as server,
        calling(str(server.admin_address)) as caller,
    ):
        inside = asyncio.ensure_future(caller.inference.ModelInfer(infer("toy-classifier", {"image": CANVAS})))
        await gate.wait_for_batches(1)
        unload = pb.RepositoryModelUnloadRequest(model_name="toy-classifier")
        # Its caller does not wait for the end of it: it ends all the same.
        call = caller.inference.RepositoryModelUnload(unload)
        waiting = asyncio.ensure_future(call)
        await until(lambda: server.models.index()[0].state == "UNLOADING")
        call.cancel()
        await asyncio.wait([waiting])
        assert await caller.status_of("toy-classifier") == NOT_SERVING
        index = await caller.inference.RepositoryIndex(pb.RepositoryIndexRequest())
        assert {one.name: one.state for one in index.models}["toy-classifier"] == "UNLOADING"
        late = caller.inference.ModelInfer(infer("toy-classifier", {"image": CANVAS}))
        assert await status_of(late) == ("FAILED_PRECONDITION", "toy-classifier version 1 is unloaded")
        gate.open()
        assert arrays_of(await inside)["logits"].shape == (1, 4)
        await until(lambda: server.models.index()[0].reason == "unloaded")
        ready = await caller.inference.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
        assert [one.name for one in ready.models] == ["toy-detector", "toy-embedder"]
        assert (await caller.inference.ModelInfer(infer("toy-detector", {"image": CANVAS}))).outputs


async def test_an_alias_is_as_healthy_as_its_model(toy_repository: Path, tmp_path: Path) -> None:
    models = shutil.copytree(toy_repository, tmp_path / "models")
    (models / "versions.toml").write_text('[aliases]\nchampion = "toy-classifier"\n', encoding="utf-8")
    async with administering(models) as caller:
        unload = caller.inference.RepositoryModelUnload
        assert (await status_of(unload(pb.RepositoryModelUnloadRequest(model_name="champion"))))[0] == "NOT_FOUND"
        assert [await caller.status_of(name) for name in ("champion", "toy-classifier")] == [SERVING] * 2
        await unload(pb.RepositoryModelUnloadRequest(model_name="toy-classifier"))
        assert [await caller.status_of(name) for name in ("champion", "toy-classifier")] == [NOT_SERVING] * 2
        await caller.inference.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="toy-classifier"))
        assert [await caller.status_of(name) for name in ("champion", "toy-classifier")] == [SERVING] * 2


async def test_loading_a_new_version(toy_repository: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(toy_repository, tmp_path / "copy")
    load = pb.RepositoryModelLoadRequest(model_name="toy-classifier")
    request = infer("toy-classifier", {"image": CANVAS})
    async with administering(copy) as caller:
        add_toy_bundle(copy, "toy-classifier", samples=3)
        assert (await caller.inference.ModelInfer(request)).model_version == "1"
        await caller.inference.RepositoryModelLoad(load)
        assert (await caller.inference.ModelInfer(request)).model_version == "2"
        add_toy_bundle(copy, "toy-classifier", samples=3)
        flip_a_byte(copy / "toy-classifier" / "3" / "model.onnx")
        code, message = await status_of(caller.inference.RepositoryModelLoad(load))
        assert (code, "toy-classifier version 3 can't be served" in message) == ("FAILED_PRECONDITION", True)
        assert (await caller.inference.ModelInfer(request)).model_version == "2"
        assert await caller.status_of("toy-classifier") == SERVING
        index = await caller.inference.RepositoryIndex(pb.RepositoryIndexRequest())
        states = {one.version: (one.state, one.reason) for one in index.models if one.name == "toy-classifier"}
        assert [states[version][0] for version in "123"] == ["UNAVAILABLE", "READY", "UNAVAILABLE"]
        assert states["1"][1] == "loaded when it is first asked for"
        assert "model.onnx is not the file that was exported" in states["3"][1]
        load.parameters["config"].string_param = "{}"
        assert (await status_of(caller.inference.RepositoryModelLoad(load)))[0] == "INVALID_ARGUMENT"
        for name in ("vit", "../secret", ""):
            wrong = pb.RepositoryModelLoadRequest(model_name=name)
            code, _ = await status_of(caller.inference.RepositoryModelLoad(wrong))
            assert code == ("NOT_FOUND" if name else "INVALID_ARGUMENT")
