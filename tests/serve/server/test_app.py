"""A whole server in this process, asked over loopback: statuses and their details, health, reflection, stopping."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from ferryman.addresses import split_address
from ferryman.errors import AddressError, BundleError, BundleNotFoundError, FerrymanError, UsageError
from ferryman.parity import ParityReport
from ferryman.proof import prove_sessions
from ferryman.server import loading
from ferryman.server.app import ServerConfig, VisionServer, serve
from ferryman.v1 import vision_pb2 as pb

from ..toy import make_picture, make_pictures, make_toy_repository
from .gate import Gate, load_gated
from .inside import calling, running, until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
PICTURE = make_picture((200, 10, 10))
CLASSIFIER = pb.ModelRef(name="toy-classifier")
DETECTOR = pb.ModelRef(name="toy-detector")


async def details_of(call: Any) -> tuple[str, str, dict[str, Any]]:
    """Code, message and details by type of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    details: dict[str, Any] = {}
    status = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType]
    for packed in status.details if status is not None else ():
        for kind in (ErrorInfo, RetryInfo, BadRequest):
            detail = kind()
            if packed.Unpack(detail):
                details[kind.__name__] = detail
    return error.code().name, error.details() or "", details


def classify(**fields: Any) -> pb.ClassifyRequest:
    defaults: dict[str, Any] = {"model": CLASSIFIER, "images": [PICTURE]}
    return pb.ClassifyRequest(**(defaults | fields))


def detect(**fields: Any) -> pb.DetectRequest:
    defaults: dict[str, Any] = {"model": DETECTOR, "images": [PICTURE]}
    return pb.DetectRequest(**(defaults | fields))


WRONG = {
    "no image": (classify(images=[]), "INVALID_ARGUMENT", "UsageError", "images", "holds no image"),
    "no model": (
        pb.ClassifyRequest(images=[PICTURE]), "INVALID_ARGUMENT", "UsageError", "model.name", "names no model"),
    "unknown model": (
        classify(model=pb.ModelRef(name="vit")), "NOT_FOUND", "ModelNotFoundError", None, "there is no model 'vit'"),
    "unknown version": (
        classify(model=pb.ModelRef(name="toy-classifier", version=9)),
        "NOT_FOUND", "ModelNotFoundError", None, "toy-classifier has no version 9; it has 1"),
    "version below 0": (
        classify(model=pb.ModelRef(name="toy-classifier", version=-1)),
        "INVALID_ARGUMENT", "UsageError", "model.version", "version -1 is below 0"),
    "another task": (
        detect(model=CLASSIFIER), "INVALID_ARGUMENT", "TaskError", None,
        "toy-classifier is a classification model and can't answer detection requests"),
    "top_k 0": (classify(top_k=0), "INVALID_ARGUMENT", "UsageError", "top_k", "top_k is 0, expected 1 or more"),
    "top_k below 0": (classify(top_k=-3), "INVALID_ARGUMENT", "UsageError", "top_k", "top_k is -3"),
    "threshold above 1": (
        detect(score_threshold=1.5), "INVALID_ARGUMENT", "UsageError", "score_threshold", "score_threshold is 1.5"),
    "threshold below 0": (
        detect(score_threshold=-0.1), "INVALID_ARGUMENT", "UsageError", "score_threshold", "score_threshold is -0.1"),
    "threshold NaN": (
        detect(score_threshold=float("nan")), "INVALID_ARGUMENT", "UsageError", "score_threshold", "is nan"),
    "too many images": (
        classify(images=[PICTURE] * 6), "INVALID_ARGUMENT", "UsageError", "images",
        "holds 6 images, more than the limit of 5"),
    "an empty image": (classify(images=[b""]), "INVALID_ARGUMENT", "ImageError", None, "empty (0 bytes)"),
    "text": (classify(images=[b"hello"]), "INVALID_ARGUMENT", "ImageError", None, "the 5 bytes are not a JPEG"),
    "a truncated image": (
        classify(images=[PICTURE, PICTURE[:-200]]),
        "INVALID_ARGUMENT", "ImageError", None, "image 2 of 2: the image is"),
    "a huge image": (
        classify(images=[make_picture((0, 0, 0), 101, 100)]),
        "INVALID_ARGUMENT", "ImageError", None, "101x100 = 10,100 pixels, more than the limit of 10,000"),
    "an oversize message": (
        classify(images=[b"x" * 70_000]), "RESOURCE_EXHAUSTED", None, None, "larger than max"),
}  # fmt: skip


async def test_wrong_requests_get_the_right_status(toy_repository: Path) -> None:
    limits: dict[str, Any] = {"max_images_per_request": 5, "max_pixels": 10_000, "max_message_bytes": 65536}
    async with running(toy_repository, **limits) as server, calling(server.address) as caller:
        for name, (request, code, reason, field, message) in WRONG.items():
            ask = caller.vision.Detect if isinstance(request, pb.DetectRequest) else caller.vision.Classify
            found_code, found_message, details = await details_of(ask(request))
            assert (found_code, message in found_message) == (code, True), (name, found_code, found_message)
            assert "\n" not in found_message
            if reason is not None:
                assert (details["ErrorInfo"].reason, details["ErrorInfo"].domain) == (reason, "ferryman"), name
            if field is not None:
                [violation] = details["BadRequest"].field_violations
                assert violation.field == field, name
        # and the server answers on
        assert len((await caller.vision.Classify(classify(top_k=2))).results[0].predictions) == 2
        await until(lambda: server.calls.count == 0)


async def test_an_unexpected_error_is_hidden(toy_repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(is_open=True)
    async with running(toy_repository, gate) as server, calling(server.address) as caller:
        gate.fail_with(ZeroDivisionError("secret"))
        code, message, details = await details_of(caller.vision.Classify(classify()))
        assert (code, message) == ("INTERNAL", "the server met an unexpected error; its log says more")
        assert details["ErrorInfo"].reason == "FerrymanError"
        assert "ZeroDivisionError: secret" in caplog.text
        gate.fail_with(None)
        assert (await caller.vision.Classify(classify())).results


async def test_an_answer_says_who_and_how_long(toy_repository: Path) -> None:
    async with running(toy_repository) as server, calling(server.address) as caller:
        response = await caller.vision.Detect(detect(images=make_pictures(3)))
        assert (response.answerer.model.name, response.answerer.model.version) == ("toy-detector", 1)
        assert response.answerer.target == "onnxruntime-cpu-fp32"
        assert len(response.answerer.bundle_digest) == 64
        timings = response.timings
        assert 0 < timings.compute_ms <= timings.total_ms
        assert len(response.results) == 3
        for timings in (response.timings, (await caller.vision.Classify(classify())).timings):
            stages = (
                timings.decode_ms,
                timings.resize_ms,
                timings.compute_ms,
                timings.postprocess_ms,
                timings.encode_ms,
            )
            assert min(stages) > 0
            assert sum(stages) + timings.queue_ms <= timings.total_ms


async def test_overload_says_when_to_ask_again(toy_repository: Path) -> None:
    gate = Gate()
    limits: dict[str, Any] = {"queue_limit": 4, "max_images_per_request": 4}
    async with running(toy_repository, gate, **limits) as server, calling(server.address) as caller:
        inside = asyncio.ensure_future(caller.vision.Classify(classify(images=[PICTURE] * 4)))
        await gate.wait_for_batches(1)
        code, _, details = await details_of(caller.vision.Classify(classify()))
        assert code == "RESOURCE_EXHAUSTED"
        assert details["ErrorInfo"].reason == "OverloadedError"
        assert details["RetryInfo"].retry_delay.ToNanoseconds() > 0
        # another model has places of its own
        other = asyncio.ensure_future(caller.vision.Detect(detect()))
        await gate.wait_for_batches(2)
        gate.open()
        assert len((await inside).results) == 4
        await other


async def test_a_cancelled_or_late_request_leaves(toy_repository: Path) -> None:
    gate = Gate()
    async with running(toy_repository, gate) as server, calling(server.address) as caller:
        engine = await server.models.get("toy-classifier")
        inside = asyncio.ensure_future(caller.vision.Classify(classify()))
        await gate.wait_for_batches(1)
        cancelled = caller.vision.Classify(classify(images=[PICTURE] * 3))
        waiting = asyncio.ensure_future(cancelled)
        await until(lambda: engine.images_inside == 4)
        cancelled.cancel()
        await asyncio.wait([waiting])
        late = caller.vision.Classify(classify(images=[PICTURE] * 2), timeout=0.3)
        assert (await details_of(late))[0] == "DEADLINE_EXCEEDED"
        await until(lambda: engine.images_inside == 1)
        gate.open()
        await inside
        assert gate.batches == [1]


async def test_health_follows_loading(toy_repository: Path) -> None:
    gate = Gate()

    def load(folder: Path) -> Any:
        if folder.parent.name == "toy-detector":
            gate(1)
        return load_gated(folder, Gate(is_open=True))

    server = VisionServer(ServerConfig(repository=toy_repository, address="127.0.0.1:0"), load)
    starting = asyncio.create_task(server.start())
    await gate.wait_for_batches(1)
    async with calling(server.address) as caller:
        # loaded in this order, and toy-detector is not yet
        assert await caller.status_of("toy-classifier") == SERVING
        for name in ("toy-detector", "toy-embedder", "", "ferryman.v1.VisionService", "inference.GRPCInferenceService"):
            assert await caller.status_of(name) == NOT_SERVING
        assert (await details_of(caller.status_of("vit")))[0] == "NOT_FOUND"
        # what is loaded already answers; what is not yet is waited for
        assert (await caller.vision.Classify(classify())).results
        waiting = asyncio.ensure_future(caller.vision.Detect(detect()))
        gate.open()
        assert (await waiting).results
        assert await starting == ["toy-classifier", "toy-detector", "toy-embedder"]
        for name in ("toy-detector", "toy-embedder", "", "ferryman.v1.VisionService", "inference.GRPCInferenceService"):
            assert await caller.status_of(name) == SERVING
    await server.stop()


async def test_health_waits_for_the_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = make_toy_repository(tmp_path, ["toy-detector"])
    place = repository / "toy-detector" / "1" / "certificates" / "onnxruntime-cpu-fp32.json"
    place.unlink()
    gate = Gate()

    def prove(*arguments: Any) -> tuple[ParityReport, ...]:
        gate(1)
        return prove_sessions(*arguments)

    monkeypatch.setattr(loading, "prove_sessions", prove)
    server = VisionServer(ServerConfig(repository=repository, address="127.0.0.1:0", certify=True))
    starting = asyncio.create_task(server.start())
    await gate.wait_for_batches(1)
    async with calling(server.address) as caller:
        for name in ("toy-detector", ""):
            assert await caller.status_of(name) == NOT_SERVING
        assert not place.exists()
        gate.open()
        assert await starting == ["toy-detector"]
        assert await caller.status_of("toy-detector") == SERVING
        facts = await caller.vision.ModelInfo(pb.ModelInfoRequest(model=pb.ModelRef(name="toy-detector")))
        assert (facts.target, facts.certified) == (place.stem, json.loads(place.read_bytes())["created"])
    await server.stop()


async def test_a_corrupt_bundle_beside_a_good_one(tmp_path: Path) -> None:
    make_toy_repository(tmp_path, ["toy-classifier", "toy-detector"])
    with (tmp_path / "toy-classifier" / "1" / "model.onnx").open("r+b") as file:
        file.write(b"\0")
    async with running(tmp_path) as server, calling(server.address) as caller:
        assert await caller.status_of("toy-classifier") == NOT_SERVING
        for name in ("toy-detector", "", "ferryman.v1.VisionService", "inference.GRPCInferenceService"):
            assert await caller.status_of(name) == SERVING
        code, message, details = await details_of(caller.vision.Classify(classify()))
        assert (code, details["ErrorInfo"].reason) == ("FAILED_PRECONDITION", "BundleError")
        assert "toy-classifier version 1 can't be served" in message
        assert "model.onnx is not the file that was exported" in message
        assert (await caller.vision.Detect(detect())).results
    with (tmp_path / "toy-detector" / "1" / "model.onnx").open("r+b") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match=r"nothing in .* can be served: toy-classifier version 1 .*; toy-detector "):
        async with running(tmp_path):
            pass


async def test_reflection_names_the_services(toy_repository: Path) -> None:
    async with running(toy_repository) as server, calling(server.address) as caller:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stream = caller.reflection.ServerReflectionInfo(iter([request]))
        [response] = [response async for response in stream]
        assert {service.name for service in response.list_services_response.service} == {
            "ferryman.v1.VisionService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
            "inference.GRPCInferenceService",
        }


async def test_model_info(toy_repository: Path) -> None:
    async with running(toy_repository) as server, calling(server.address) as caller:
        info = await caller.vision.ModelInfo(pb.ModelInfoRequest(model=DETECTOR))
        assert (info.model.version, info.task, [size.width for size in info.canvases]) == (1, "detection", [32])
        assert [one.output for one in info.parity] == ["logits", "boxes", "scores", "labels"]
        assert info.parity[1].limit == pytest.approx(1e-4)
        assert not info.parity[0].HasField("limit")


async def test_stopping_answers_what_is_in_flight_and_refuses_the_rest(toy_repository: Path) -> None:
    gate = Gate()
    async with running(toy_repository, gate) as server, calling(server.address) as caller:
        inside = asyncio.ensure_future(caller.vision.Classify(classify()))
        await gate.wait_for_batches(1)
        queued = asyncio.ensure_future(caller.vision.Classify(classify(images=[PICTURE] * 2)))
        watch = caller.health.Watch(health_pb2.HealthCheckRequest(service="toy-classifier"))
        assert (await watch.read()).status == SERVING
        await until(lambda: server.calls.count == 2)
        stopping = asyncio.create_task(server.stop())
        assert (await watch.read()).status == NOT_SERVING
        code, message, _ = await details_of(caller.vision.Classify(classify()))
        assert (code, "the server is stopping" in message) == ("UNAVAILABLE", True)
        gate.open()
        assert len((await inside).results) == 1
        assert len((await queued).results) == 2
        await stopping


async def test_what_takes_longer_than_the_grace_is_cancelled(toy_repository: Path) -> None:
    gate = Gate()
    async with running(toy_repository, gate, grace_seconds=0) as server, calling(server.address) as caller:
        inside = asyncio.ensure_future(caller.vision.Classify(classify()))
        await gate.wait_for_batches(1)
        stopping = asyncio.create_task(server.stop())
        assert (await details_of(inside))[0] in {"UNAVAILABLE", "CANCELLED"}
        gate.open()
        await stopping


async def test_a_signal_while_loading_stops_the_server(toy_repository: Path) -> None:
    gate = Gate()
    told: list[str] = []

    def load(folder: Path) -> Any:
        gate(1)
        return load_gated(folder, Gate(is_open=True))

    config = ServerConfig(repository=toy_repository, address="127.0.0.1:0")
    serving = asyncio.create_task(serve(config, lambda address, models: told.append(address), load))
    await gate.wait_for_batches(1)
    os.kill(os.getpid(), signal.SIGTERM)
    await serving
    gate.open()
    assert told == []


async def test_a_taken_port(toy_repository: Path) -> None:
    async with running(toy_repository) as server:
        second = VisionServer(ServerConfig(repository=toy_repository, address=server.address))
        with pytest.raises(AddressError, match=f"can't listen on {server.address}: Address already in use"):
            await second.start()
        await second.stop()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(AddressError, match="Address already in use"):
            async with running_at(toy_repository, f"127.0.0.1:{other.getsockname()[1]}"):
                pass


@asynccontextmanager
async def running_at(repository: Path, address: str) -> AsyncGenerator[VisionServer]:
    server = VisionServer(ServerConfig(repository=repository, address=address))
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


async def test_a_host_that_is_not_this_one(toy_repository: Path) -> None:
    for address in ("192.0.2.1:0", "no-such-host.invalid:0"):
        with pytest.raises(AddressError, match=f"can't listen on {address}: .+; choose another address"):
            async with running_at(toy_repository, address):
                pass


def test_an_empty_repository(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError):
        VisionServer(ServerConfig(repository=tmp_path))


WRONG_SETTINGS = {
    "no port": ({"address": "localhost"}, "address 'localhost' is not HOST:PORT"),
    "no host": ({"address": ":8001"}, "address ':8001' is not HOST:PORT"),
    "a port too high": ({"address": "localhost:65536"}, "is not HOST:PORT"),
    "a bare IPv6 host": ({"address": "::1:8001"}, "is not HOST:PORT"),
    "a target": ({"target": "fast"}, "fast is none of the targets that this version knows, which are "),
    "no threads": ({"threads": 0}, "threads: Input should be greater than or equal to 1"),
    "a queue shorter than a request": ({"queue_limit": 2}, "max_images_per_request 64 is above queue_limit 2"),
    "a word": ({"max_batch": "many"}, "max_batch: Input should be a valid integer"),
    "an unknown name": ({"adress": 1}, "there is no setting adress; did you mean address?"),
    "a certificate alone": ({"tls_certificate": "c"}, "tls_certificate and tls_key belong together"),
    "clients' certificates in plaintext": ({"tls_client_ca": "c"}, "tls_client_ca needs tls_certificate and tls_key"),
    "tokens in plaintext": (
        {"address": "0.0.0.0:8001", "tokens": "t"}, "tokens would travel to 0.0.0.0:8001 unencrypted"),
    "an admin address for all": ({"admin_address": "[::]:8002"}, "admin_address [::]:8002 must be of this machine"),
    "grace NaN": ({"grace_seconds": float("nan")}, "grace_seconds: "),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), WRONG_SETTINGS.values(), ids=WRONG_SETTINGS)
def test_wrong_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        ServerConfig.from_settings({"repository": "models"} | settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, FerrymanError)


def test_addresses() -> None:
    assert split_address("localhost:1") == ("localhost", 1)
    assert split_address("[::1]:0") == ("::1", 0)
