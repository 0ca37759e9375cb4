"""What a server tells of itself: metrics as Prometheus' own parser reads them, probes, ids, logs and traces."""

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse

from ferryman.client import Client
from ferryman.errors import AddressError, ImageError, UsageError
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.runtimes.base import Settings
from ferryman.server.app import ServerConfig, VisionServer
from ferryman.server.loading import LoadedModel, load_model
from ferryman.server.observing import Call, Observer, ObservingSettings
from ferryman.v1 import vision_pb2

from ..toy import SIDE, add_toy_bundle, flip_a_byte, make_picture
from .gate import Gate
from .inference.asking import infer, infer_pictures, status_of
from .inside import calling, running, until
from .loading import LoadProcess
from .process import ServerProcess, free_address

CANVAS = np.full((1, SIDE, SIDE, 3), 9, np.uint8)
NAMES = {"model": "toy-classifier", "version": "1", "variant": "onnxruntime-cpu-fp32"}
LOCAL = "127.0.0.1:0"


def get(address: str | None, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    """Status and text of a page."""
    assert address is not None
    connection = HTTPConnection(address, timeout=60)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


class Metrics:
    def __init__(self, text: str) -> None:
        self.samples = [sample for family in parse(text) for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum over all series of that name with these labels."""
        return sum(s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items())

    def by(self, name: str, label: str) -> dict[str, float]:
        return {s.labels[label]: s.value for s in self.samples if s.name == name}


async def read_metrics(server: VisionServer) -> Metrics:
    status, text = await asyncio.to_thread(get, server.metrics_address, "/metrics")
    assert status == 200
    return Metrics(text)


async def test_metrics_follow_the_requests(toy_repository: Path) -> None:
    async with running(toy_repository, metrics_address=LOCAL) as server, calling(server.address) as caller:
        before = await read_metrics(server)
        assert before("ferryman_requests_total") == 0
        assert before("ferryman_request_seconds_count", **NAMES) == 0
        for count in (1, 1, 3):
            await caller.inference.ModelInfer(infer("toy-classifier", {"image": np.repeat(CANVAS, count, axis=0)}))
        await status_of(caller.inference.ModelInfer(infer_pictures("toy-classifier", [b"hello"])))
        await status_of(caller.inference.ModelInfer(infer("no such\nmodel", {})))
        frames = [
            vision_pb2.StreamClassifyRequest(
                frame_id=index,
                request=vision_pb2.ClassifyRequest(model=vision_pb2.ModelRef(name="toy-classifier"), images=[picture]),
            )
            for index, picture in enumerate([make_picture((9, 9, 9)), b"hello"])
        ]
        assert len([one async for one in caller.vision.StreamClassify(iter(frames))]) == 2
        after = await read_metrics(server)
        [statistics] = (
            await caller.inference.ModelStatistics(pb.ModelStatisticsRequest(name="toy-classifier"))
        ).model_stats
    requests = {
        (s.labels["model"], s.labels["code"]): s.value for s in after.samples if s.name == "ferryman_requests_total"
    }
    # a name that is not there is no label: a client could make up any number of them
    assert requests == {("toy-classifier", "OK"): 4, ("toy-classifier", "INVALID_ARGUMENT"): 2, ("", "NOT_FOUND"): 1}
    calls = {
        (s.labels["method"].rpartition("/")[2], s.labels["code"]): s.value
        for s in after.samples
        if s.name == "ferryman_calls_total"
    }
    assert calls == {
        ("ModelInfer", "OK"): 3,
        ("ModelInfer", "INVALID_ARGUMENT"): 1,
        ("ModelInfer", "NOT_FOUND"): 1,
        ("StreamClassify", "OK"): 1,
    }
    assert after("ferryman_images_total", **NAMES) == statistics.inference_count == 6
    assert after("ferryman_batch_images_count", **NAMES) == statistics.execution_count == 4
    assert after("ferryman_batch_images_sum", **NAMES) == 6
    assert after("ferryman_batch_images_bucket", le="2.0", **NAMES) == 3
    assert after("ferryman_request_seconds_count", **NAMES) == statistics.inference_stats.success.count == 4
    total_s = after("ferryman_request_seconds_sum", **NAMES)
    assert total_s == pytest.approx(statistics.inference_stats.success.ns / 1e9)
    stages = {stage: after("ferryman_stage_seconds_sum", stage=stage, **NAMES) for stage in STAGES}
    assert all(seconds > 0 for seconds in stages.values())
    assert sum(stages.values()) <= total_s
    for name in ("ferryman_request_seconds", "ferryman_batch_images"):
        buckets = [s.value for s in after.samples if s.name == f"{name}_bucket" and NAMES.items() <= s.labels.items()]
        assert buckets == sorted(buckets)
        assert buckets[-1] == 4
    assert after("ferryman_calls_in_flight") == 0
    assert after("ferryman_ready") == 1
    assert after("process_resident_memory_bytes") > 1e6


STAGES = ("queue", "decode", "compute", "encode")


async def test_what_waits_and_what_is_shed(toy_repository: Path) -> None:
    gate = Gate()
    async with (
        running(toy_repository, gate, metrics_address=LOCAL, queue_limit=4, max_images_per_request=4) as server,
        calling(server.address) as caller,
    ):
        first = asyncio.ensure_future(caller.inference.ModelInfer(infer("toy-classifier", {"image": CANVAS})))
        await gate.wait_for_batches(1)
        three = infer("toy-classifier", {"image": np.repeat(CANVAS, 3, axis=0)})
        second = asyncio.ensure_future(caller.inference.ModelInfer(three))
        [engine, *_] = server.models.loaded()
        await until(lambda: engine.images_inside == 4)
        assert (await status_of(caller.inference.ModelInfer(three)))[0] == "RESOURCE_EXHAUSTED"
        held = await read_metrics(server)
        gate.open()
        await asyncio.gather(first, second)
    assert (held("ferryman_images_inside", **NAMES), held("ferryman_images_waiting", **NAMES)) == (4, 3)
    assert held("ferryman_calls_in_flight") == 2
    assert held("ferryman_requests_total", code="RESOURCE_EXHAUSTED", **NAMES) == 1


async def test_what_is_refused(toy_repository: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(toy_repository, tmp_path / "copy")
    async with running(copy, metrics_address=LOCAL, watch_seconds=0.02) as server:
        flip_a_byte(add_toy_bundle(copy, "toy-classifier", samples=3).path / "model.onnx")
        await until(lambda: len(server.models.refused()) == 1)
        metrics = await read_metrics(server)
        assert metrics("ferryman_model_refused", model="toy-classifier", version="2") == 1
        assert metrics("ferryman_model_state", model="toy-classifier", version="2", state="UNAVAILABLE") == 1
        assert metrics("ferryman_model_state", model="toy-classifier", version="1", state="READY") == 1
        assert metrics("ferryman_repository_followed") == 1
        (copy / "versions.toml").write_text("[", encoding="utf-8")
        await until(lambda: server.watcher.problem != "")
        assert (await read_metrics(server))("ferryman_repository_followed") == 0


async def test_pages(toy_repository: Path) -> None:
    gate = threading.Event()

    def load(folder: Path) -> LoadedModel:
        gate.wait(60)
        return load_model(folder, settings=Settings(threads=1))

    server = VisionServer(ServerConfig(repository=toy_repository, address=LOCAL, metrics_address=LOCAL), load)
    starting = asyncio.create_task(server.start())
    await until(lambda: server.metrics_address != LOCAL)

    async def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        return await asyncio.to_thread(get, server.metrics_address, path, method, **headers)

    try:
        assert [(await ask(path))[0] for path in ("/livez", "/readyz", "/metrics")] == [200, 503, 200]
        gate.set()
        await starting
        assert await ask("/readyz") == (200, "ok\n")
        assert await ask("/readyz?verbose") == (200, "ok\n")
        assert await ask("/readyz", "HEAD") == (200, "")
        assert await ask("/../etc/passwd") == (404, "there is /livez, /readyz, /metrics\n")
        assert (await ask("/metrics", "POST"))[0] == 405
        status, text = await ask("/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert status == 200
        assert "ferryman_build" in {family.name for family in parse_open(text)}
        # neither random bytes nor someone who says nothing disturb others
        host, port = str(server.metrics_address).split(":")
        with socket.create_connection((host, int(port))), socket.create_connection((host, int(port))) as wild:
            wild.sendall(b"\x00" * 100_000)
            assert (await ask("/livez"))[0] == 200
        with pytest.raises(AddressError, match="can't listen on"):
            await VisionServer(
                ServerConfig(repository=toy_repository, address=LOCAL, metrics_address=server.metrics_address)
            ).start()
    finally:
        gate.set()
        await server.stop()


IDS = {"given": ("camera-7/42", True), "none": (None, False), "not one": ("a b", False), "long": ("x" * 129, False)}


@pytest.mark.parametrize(("given", "kept"), IDS.values(), ids=IDS)
async def test_answers_and_errors_carry_the_id(toy_repository: Path, given: str | None, kept: bool) -> None:
    metadata = [("x-request-id", given)] if given else []
    async with running(toy_repository) as server, calling(server.address) as caller:
        good = caller.inference.ModelInfer(infer("toy-classifier", {"image": CANVAS}), metadata=metadata)
        await good
        bad = caller.inference.ModelInfer(infer("vit", {}), metadata=metadata)
        await status_of(bad)
        ids = [dict(await call.trailing_metadata())["x-request-id"] for call in (good, bad)]
        status = await rpc_status_of(bad)
    if kept:
        assert ids == [given, given]
    else:
        assert ids[0] != ids[1]
        assert all(re.fullmatch("[0-9a-f]{32}", id) for id in ids)
    [info, *_] = status.details
    reason = ErrorInfo()
    assert info.Unpack(reason)
    assert reason.reason == "ModelNotFoundError"


async def rpc_status_of(call: Any) -> Any:
    """The status with details that a call of grpc.aio ended with."""
    trailing = await call.trailing_metadata()
    code, details = await call.code(), await call.details()

    class Ended:
        def code(self) -> grpc.StatusCode:
            return code

        def details(self) -> str:
            return details

        def trailing_metadata(self) -> Any:
            return [(key, value) for key, value in trailing]

    return rpc_status.from_call(Ended())  # pyright: ignore[reportArgumentType]


def test_logs_are_objects_with_the_id_and_without_pictures(toy_repository: Path, tmp_path: Path) -> None:
    (tmp_path / "serving.toml").write_text('log_format = "json"\nlog_requests = true\n', encoding="utf-8")
    command = [sys.executable, "-m", "ferryman", "serve", str(toy_repository), "--json"]
    command += ["--address", LOCAL, "--config", str(tmp_path / "serving.toml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            text = ""
            while "}" not in text:
                text += server.stdout.readline()
            with Client(json.loads(text)["address"], timeout=60) as client:
                client.classify([make_picture((9, 200, 9))], model="toy-classifier")
                with pytest.raises(ImageError):
                    client.classify([b"not a picture, but someone's secret"], model="toy-classifier")
            server.send_signal(signal.SIGTERM)
            _, log = server.communicate(timeout=60)
        finally:
            server.kill()
    assert "secret" not in log
    lines: list[dict[str, str]] = [json.loads(line) for line in log.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    requests = [line for line in lines if line["message"].startswith("request: model=toy-classifier version=1")]
    assert [re.findall(r"code=(\w+)", line["message"]) for line in requests] == [["OK"], ["INVALID_ARGUMENT"]]
    assert len({line["request_id"] for line in requests}) == 2
    assert all("request_id" not in line for line in lines if line not in requests)


async def test_traces_go_on_through_queue_and_batch(toy_repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parents = [f"00-{digit * 32}-{digit * 16}-01" for digit in "abc"]
    gate = Gate()
    async with (
        running(toy_repository, gate, trace_exporter="console") as server,
        calling(server.address) as caller,
    ):

        def ask(traceparent: str) -> asyncio.Future[Any]:
            request = infer("toy-classifier", {"image": CANVAS})
            return asyncio.ensure_future(caller.inference.ModelInfer(request, metadata=[("traceparent", traceparent)]))

        first = ask(parents[0])
        await gate.wait_for_batches(1)
        later = [ask(parent) for parent in parents[1:]]
        [engine, *_] = server.models.loaded()
        await until(lambda: engine.images_waiting == 2)
        gate.open()
        await asyncio.gather(first, *later)
        await status_of(
            caller.inference.ModelInfer(infer("vit", {}), metadata=[("traceparent", parents[0][:-1] + "0")])
        )
    spans = read_spans(capsys.readouterr().out)
    calls = {
        span["context"]["trace_id"]: span
        for span in spans
        if span["name"] == "inference.GRPCInferenceService/ModelInfer"
    }
    assert calls.keys() == {f"0x{digit * 32}" for digit in "abc"}  # the last call's client had decided against it
    assert {span["parent_id"] for span in calls.values()} == {f"0x{digit * 16}" for digit in "abc"}
    requests = [span for span in spans if span["name"] == "request"]
    for span in requests:
        assert span["parent_id"] == calls[span["context"]["trace_id"]]["context"]["span_id"]
        assert span["attributes"]["ferryman.model"] == "toy-classifier"
        assert span["attributes"]["ferryman.compute_ms"] > 0
    batches = [span for span in spans if span["name"] == "batch"]
    # Each is inside its first request's span, and linked with those of the others, which are with it.
    places = {span["context"]["span_id"]: span for span in requests}
    inside = [sorted([span, *span["links"]], key=lambda one: one["context"]["trace_id"]) for span in batches]
    traces = [[one["context"]["trace_id"] for one in together] for together in inside]
    assert sorted(traces) == [[f"0x{'a' * 32}"], [f"0x{'b' * 32}", f"0x{'c' * 32}"]]
    for span in batches:
        assert places[span["parent_id"]]["links"] == []
        for link in span["links"]:
            [back] = places[link["context"]["span_id"]]["links"]
            assert back["context"] == span["context"]
    # A batch is traced as its requests are, though of those whose clients have not decided none would be.
    settings: dict[str, Any] = {"trace_exporter": "console", "trace_ratio": 0.0}
    async with running(toy_repository, **settings) as server, calling(server.address) as caller:
        for metadata in ([], [("traceparent", parents[0])]):
            await caller.inference.ModelInfer(infer("toy-classifier", {"image": CANVAS}), metadata=metadata)
    names = sorted(span["name"] for span in read_spans(capsys.readouterr().out))
    assert names == ["batch", "inference.GRPCInferenceService/ModelInfer", "request"]


@pytest.mark.parametrize(
    ("left_s", "code"),
    [(None, "CANCELLED"), (5.0, "CANCELLED"), (0.01, "DEADLINE_EXCEEDED"), (0.0, "DEADLINE_EXCEEDED")],
)
def test_who_cancels_as_the_deadline_passes_was_late(left_s: float | None, code: str) -> None:
    """A client's clock began before the server's did."""

    class Context:
        def time_remaining(self) -> float | None:
            return left_s

    context: Any = Context()
    assert Call(Observer(ObservingSettings()), context, "id", None).code_when_cancelled() == code


def read_spans(text: str) -> list[dict[str, Any]]:
    """What the console exporter wrote."""
    decoder, spans = json.JSONDecoder(), []
    while text.strip():
        span, end = decoder.raw_decode(text.lstrip())
        spans.append(span)
        text = text.lstrip()[end:]
    return spans


def test_no_such_exporter(toy_repository: Path) -> None:
    with pytest.raises(UsageError, match=r"trace_exporter: zipkin is not installed; there is .*console"):
        VisionServer(ServerConfig(repository=toy_repository, trace_exporter="zipkin"))


def top(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ferryman", "top", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_top(toy_repository: Path) -> None:
    metrics_address = free_address()
    settings = {"repository": str(toy_repository), "threads": 1, "metrics_address": metrics_address}
    with ServerProcess(settings) as server, LoadProcess(server.address, ["toy-classifier"]) as load:
        done = top(metrics_address, "--json", "--interval", "0.5")
        assert done.returncode == 0, done.stderr
        facts = json.loads(done.stdout)
        assert (facts["ready"], facts["followed"], facts["refused"]) == (True, True, [])
        assert facts["memory_mb"] > 10
        assert facts["cpu"] > 0
        rows = {row["model"]: row for row in facts["models"]}
        assert rows.keys() == {"toy-classifier", "toy-detector", "toy-embedder"}
        busy, idle = rows["toy-classifier"], rows["toy-detector"]
        assert busy["requests"] > 0
        assert (busy["errors"], busy["shed"]) == (0, 0)
        assert 0 < busy["p50_ms"] <= busy["p99_ms"]
        assert busy["batch"] >= 1
        assert (idle["requests"], idle["p50_ms"], idle["batch"]) == (0, None, None)
        table = top(metrics_address, "--interval", "0.1").stdout
        assert re.search(r"^toy-classifier/1 +onnxruntime-cpu-fp32 +\d+\.\d ", table, re.MULTILINE)
        assert "ready" in table
        load.stop()
    for wrong in (metrics_address, "nowhere"):
        failed = top(wrong)
        assert (failed.returncode, failed.stdout) == (1, "")
        assert f"can't read the metrics of {wrong}" in failed.stderr
