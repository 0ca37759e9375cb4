"""Who may call what, of a real server: every method of every service, without a token and with each kind of token."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from ferryman.client import AsyncClient, RetryPolicy, Security
from ferryman.errors import ForbiddenError, UnauthenticatedError
from ferryman.inference import grpc_service_pb2
from ferryman.server.security.access import ADMIN, HEALTH, MODEL_OF, NO_MODEL
from ferryman.server.security.tokens import make_token
from ferryman.v1 import vision_pb2 as pb

from ...toy import make_pictures
from ..gate import Gate
from ..inference.asking import bearer, infer_pictures, status_of
from ..inside import Caller, calling, running

SERVICES = (
    pb.DESCRIPTOR.services_by_name["VisionService"],
    grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
)
METHODS = {f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
PICTURES = make_pictures(1)
REFUSED = {"PERMISSION_DENIED", "UNAUTHENTICATED"}
ONCE = RetryPolicy(attempts=1)
TOKENS = (
    make_token("all", "fm_all"),
    make_token("some", "fm_some", models=("toy-classifier", "toy-embedder")),
    make_token("ops", "fm_ops", admin=True),
    make_token("slow", "fm_slow", rate=2, in_flight=1),
)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("\n".join(token.line for token in TOKENS), encoding="utf-8")
    return path


@asynccontextmanager
async def guarded(
    repository: Path, tokens: Path, gate: Gate | None = None, **settings: Any
) -> AsyncGenerator[tuple[Caller, str]]:
    async with (
        running(repository, gate, tokens=tokens, **settings) as server,
        calling(server.address) as caller,
    ):
        yield caller, server.address


async def outcomes(address: str, calls: Sequence[tuple[str, Any]]) -> list[str]:
    """The status of an empty request to each method, `OK` included, with its metadata."""

    def ask() -> list[str]:
        with grpc.insecure_channel(address) as channel:
            return [_outcome(channel, path, metadata) for path, metadata in calls]

    return await asyncio.to_thread(ask)


def _outcome(channel: Any, path: str, metadata: Any) -> str:
    streaming = path in METHODS and METHODS[path].client_streaming
    try:
        if streaming or path.endswith(("ServerReflectionInfo", "Watch")):
            call = channel.stream_stream(path)(iter([b""]), metadata=metadata, timeout=60)
            next(call)
            call.cancel()
        else:
            channel.unary_unary(path)(b"", metadata=metadata, timeout=60)
    except grpc.RpcError as error:
        failed: Any = error  # a call as well, which the types do not tell
        return failed.code().name
    return "OK"


def test_every_method_has_its_place() -> None:
    """A method that is added must be told apart by hand: a token of one model may not reach others through it."""
    places = (ADMIN, set(MODEL_OF), NO_MODEL)
    assert set().union(*places) == set(METHODS)
    assert all(not one & other for one, other in itertools.combinations(map(set, places), 2))


OTHERS = (
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "/grpc.health.v1.Health/List",
    "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "/no.such.Service/Method",
)  # fmt: skip


async def test_without_a_token_nothing_but_health_is_answered(toy_repository: Path, tokens: Path) -> None:
    wrong = [
        None,
        bearer("fm_wrong"),
        bearer(""),
        bearer(TOKENS[0].sha256),
        (("authorization", "fm_all"),),
        (("authorization", "Basic fm_all"),),
        (*bearer("fm_all"), *bearer("fm_ops")),
        (("token", "fm_all"),),
    ]
    async with guarded(toy_repository, tokens) as (_, address):
        calls = list(itertools.product((*METHODS, *OTHERS), wrong))
        for (path, metadata), found in zip(calls, await outcomes(address, calls), strict=True):
            assert found == ("OK" if path in HEALTH else "UNAUTHENTICATED"), (path, metadata)
    async with guarded(toy_repository, tokens, open_health=False) as (_, address):
        for metadata, code in ((None, "UNAUTHENTICATED"), (bearer("fm_some"), "OK")):
            assert set(await outcomes(address, [(path, metadata) for path in HEALTH])) == {code}


async def test_administrators_alone_administer(toy_repository: Path, tokens: Path) -> None:
    async with guarded(toy_repository, tokens) as (caller, address):
        plain, admin = ([(path, bearer(secret)) for path in METHODS] for secret in ("fm_all", "fm_ops"))
        denied = {path for path, code in zip(METHODS, await outcomes(address, plain), strict=True) if code in REFUSED}
        assert denied == ADMIN
        assert not REFUSED & set(await outcomes(address, admin))
        reflected = caller.reflection.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), metadata=bearer("fm_some")
        )
        assert len((await reflected.read()).list_services_response.service) == 4
    # without tokens as well, and there is an address of their own
    async with running(toy_repository, admin_address="127.0.0.1:0") as server:
        for address, code in ((server.address, "PERMISSION_DENIED"), (str(server.admin_address), "OK")):
            assert await outcomes(address, [("/inference.GRPCInferenceService/RepositoryIndex", None)]) == [code]


async def test_a_token_of_some_models(toy_repository: Path, tokens: Path) -> None:
    security = Security(token="fm_some")
    async with guarded(toy_repository, tokens) as (caller, address), AsyncClient(address, security=security) as client:
        assert (await client.classify(PICTURES, model="toy-classifier")).results
        for method in (client.detect, client.classify):
            with pytest.raises(ForbiddenError, match="may ask toy-classifier, toy-embedder alone, and not 'toy-detec"):
                await method(PICTURES, model="toy-detector")
        with pytest.raises(ForbiddenError, match="'toy-detector'"):
            [frame async for frame in client.stream_detect(PICTURES, model="toy-detector")]
        with pytest.raises(ForbiddenError, match="not 'vit'"):  # nor does it learn whether there is such a model
            await client.model_info("vit")
        inference, metadata = caller.inference, bearer("fm_some")
        allowed = infer_pictures("toy-embedder", PICTURES)
        assert (await inference.ModelInfer(allowed, metadata=metadata)).outputs
        stream = inference.ModelStreamInfer(
            iter([allowed, infer_pictures("toy-detector", PICTURES)]), metadata=metadata
        )

        async def read() -> None:
            async for answer in stream:
                assert answer.infer_response.model_name == "toy-embedder"

        assert (await status_of(read()))[0] == "PERMISSION_DENIED"
        everything = inference.ModelStatistics(grpc_service_pb2.ModelStatisticsRequest(), metadata=metadata)
        assert await status_of(everything) == (
            "PERMISSION_DENIED", "this token may ask toy-classifier, toy-embedder alone, and not all models"
        )  # fmt: skip
        assert (await inference.ServerMetadata(grpc_service_pb2.ServerMetadataRequest(), metadata=metadata)).name


async def test_a_token_is_one_client_on_all_its_connections(toy_repository: Path, tokens: Path) -> None:
    gate = Gate()
    async with guarded(toy_repository, tokens, gate, client_images=1) as (caller, address), calling(address) as other:
        request = pb.ClassifyRequest(model=pb.ModelRef(name="toy-classifier"), images=PICTURES[:1])
        first = asyncio.ensure_future(caller.vision.Classify(request, metadata=bearer("fm_all")))
        await gate.wait_for_batches(1)
        code, _ = await status_of(other.vision.Classify(request, metadata=bearer("fm_all")))
        assert code == "RESOURCE_EXHAUSTED"
        second = asyncio.ensure_future(caller.vision.Classify(request, metadata=bearer("fm_some")))
        gate.open()
        await asyncio.gather(first, second)


async def test_limits_of_a_token(toy_repository: Path, tokens: Path) -> None:
    gate = Gate()
    async with guarded(toy_repository, tokens, gate) as (caller, address):
        request, slow = pb.ClassifyRequest(model=pb.ModelRef(name="toy-classifier"), images=PICTURES), bearer("fm_slow")
        first = asyncio.ensure_future(caller.vision.Classify(request, metadata=slow))
        await gate.wait_for_batches(1)
        second = caller.vision.Classify(request, metadata=slow)
        assert await status_of(second) == (
            "RESOURCE_EXHAUSTED", "this token may have 1 calls at a time; wait for one of them to end"
        )  # fmt: skip
        others = asyncio.ensure_future(caller.vision.Classify(request, metadata=bearer("fm_all")))
        gate.open()
        await asyncio.gather(first, others)
        codes: list[Any] = []
        for _ in range(4):
            try:
                await caller.vision.Classify(request, metadata=slow)
            except grpc.aio.AioRpcError as error:
                codes.append(error)
        refused = codes[-1]
        status: Any = rpc_status.from_call(refused)
        retry = next(detail for detail in (RetryInfo(),) if any(packed.Unpack(detail) for packed in status.details))
        assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 0 < retry.retry_delay.ToNanoseconds() <= 0.5e9
        # our client waits that long and is answered
        async with AsyncClient(address, security=Security(token="fm_slow")) as client:
            assert (await client.classify(PICTURES, model="toy-classifier")).results
            # a stream is held back instead
            frames = [frame async for frame in client.stream_classify(PICTURES * 4, model="toy-classifier")]
            assert [frame.frame_id for frame in frames] == [0, 1, 2, 3]


async def test_a_token_that_is_taken_away(toy_repository: Path, tokens: Path) -> None:
    security = Security(token="fm_all")
    async with (
        guarded(toy_repository, tokens) as (_, address),
        AsyncClient(address, security=security, retry=ONCE) as client,
    ):
        await client.classify(PICTURES, model="toy-classifier")
        tokens.write_text(make_token("new", "fm_new").line, encoding="utf-8")
        with pytest.raises(UnauthenticatedError, match="no `Bearer TOKEN` that this server knows"):
            await client.classify(PICTURES, model="toy-classifier")


async def test_a_stream_whose_token_is_taken_away(toy_repository: Path, tokens: Path) -> None:
    async with guarded(toy_repository, tokens) as (caller, _):
        frame = pb.StreamClassifyRequest(
            request=pb.ClassifyRequest(model=pb.ModelRef(name="toy-classifier"), images=PICTURES)
        )
        stream = caller.vision.StreamClassify(metadata=bearer("fm_all"))
        await stream.write(frame)
        assert (await stream.read()).response.results
        tokens.write_text(make_token("all", "fm_all", models=("toy-detector",)).line, encoding="utf-8")
        narrowed = caller.vision.StreamClassify(metadata=bearer("fm_all"))
        await narrowed.write(frame)
        assert (await status_of(narrowed.read()))[0] == "PERMISSION_DENIED"
        tokens.write_text(make_token("new", "fm_new").line, encoding="utf-8")
        await stream.write(frame)
        assert await status_of(stream.read()) == ("UNAUTHENTICATED", "the token of this stream is not known any more")


async def test_a_refused_call_is_not_read(toy_repository: Path, tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its answer comes though its request never comes, and strangers can't fill the log."""

    async with guarded(toy_repository, tokens) as (caller, address):
        call = caller.vision.StreamClassify()
        assert (await status_of(call.read()))[0] == "UNAUTHENTICATED"
        assert set(await outcomes(address, [(f"/{'x' * 1000}/y", None)] * 20)) == {"UNAUTHENTICATED"}
        lines = [record.message for record in caplog.records if record.message.startswith("refused")]
        assert len(lines) == 1
        assert "last_method='/ferryman.v1.VisionService/StreamClassify' last_peer=ipv4:127.0.0.1:" in lines[0]
        check = caller.health.Check(health_pb2.HealthCheckRequest(service="toy-classifier"))
        assert (await check).status == health_pb2.HealthCheckResponse.SERVING


async def test_strangers_leave_places_to_those_with_a_token(
    toy_repository: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watches that never end and health checks that say nothing: a quarter of the calls, these not for long."""
    monkeypatch.setattr("ferryman.server.security.access._SOON_S", 1.0)
    health, watch = "/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest()
    async with guarded(toy_repository, tokens, max_calls=16) as (caller, _):
        watches = [caller.health.Watch(watch) for _ in range(2)]
        assert [(await one.read()).status for one in watches] == [health_pb2.HealthCheckResponse.SERVING] * 2
        silent = [
            caller.channel.stream_stream(path)() for path in (health, "/inference.GRPCInferenceService/ServerLive")
        ]
        more = [caller.channel.stream_stream(health)() for _ in range(10)]
        assert {(await one.code()).name for one in more} == {"RESOURCE_EXHAUSTED"}
        request = infer_pictures("toy-classifier", PICTURES)
        assert (await caller.inference.ModelInfer(request, metadata=bearer("fm_all"))).outputs
        assert [(await one.code()).name for one in silent] == ["DEADLINE_EXCEEDED"] * 2
        empty = caller.channel.stream_stream(health)()
        await empty.done_writing()
        assert (await empty.code()).name == "INVALID_ARGUMENT"
        assert (await caller.health.Check(watch)).status == health_pb2.HealthCheckResponse.SERVING
        assert not any(one.done() for one in watches)
        [one.cancel() for one in watches]


async def test_a_token_leaves_places_to_others(toy_repository: Path, tokens: Path) -> None:
    """Calls whose request never comes are half of all at most; what ends them gives their places back."""
    infer, request = "/inference.GRPCInferenceService/ModelInfer", infer_pictures("toy-classifier", PICTURES)
    async with guarded(toy_repository, tokens, max_calls=16) as (caller, _):
        mine, other = bearer("fm_all"), bearer("fm_ops")
        silent = [caller.channel.stream_stream(infer)(metadata=mine) for _ in range(16)]
        done, waiting = await asyncio.wait([asyncio.create_task(one.code()) for one in silent], timeout=2)
        assert ({task.result().name for task in done}, len(done)) == ({"RESOURCE_EXHAUSTED"}, 8)
        assert (await status_of(caller.inference.ModelInfer(request, metadata=mine)))[0] == "RESOURCE_EXHAUSTED"
        assert (await caller.inference.ModelInfer(request, metadata=other)).outputs
        for one in silent:
            one.cancel()
        await asyncio.wait(waiting)
        for _ in range(100):  # the server hears of it a little later
            if (await caller.inference.ModelInfer(request, metadata=mine).code()).name == "OK":
                break
            await asyncio.sleep(0.05)
        answers = [caller.inference.ModelInfer(request, metadata=mine) for _ in range(8)]
        assert all([(await answer).outputs for answer in answers])


async def test_callers_do_not_mix(toy_repository: Path, tokens: Path) -> None:
    """Each of many calls at once over one connection is held to its own token."""
    async with guarded(toy_repository, tokens) as (caller, _):
        secrets = ["fm_all", "fm_some", "fm_wrong"] * 20

        async def ask(secret: str) -> str:
            request = infer_pictures("toy-detector", PICTURES)
            try:
                await caller.inference.ModelInfer(request, metadata=bearer(secret))
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "OK"

        expected = {"fm_all": "OK", "fm_some": "PERMISSION_DENIED", "fm_wrong": "UNAUTHENTICATED"}
        assert await asyncio.gather(*map(ask, secrets)) == [expected[secret] for secret in secrets]
