"""Every method of every service is asked with values that nobody means well: no name becomes a path, no answer tells
where the server's files lie or what its code looks like.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from ferryman.inference import grpc_service_pb2 as inference_pb
from ferryman.server.guard import UNEXPECTED
from ferryman.v1 import vision_pb2 as vision_pb

from ...toy import flip_a_byte, make_picture
from ..inference.asking import infer_pictures
from ..inside import Caller, administering

SERVICES = [
    module.DESCRIPTOR.services_by_name[name]
    for module, name in (
        (vision_pb, "VisionService"),
        (inference_pb, "GRPCInferenceService"),
        (health_pb2, "Health"),
        (reflection_pb2, "ServerReflection"),
    )
]
HOSTILE = (
    "../../../../etc/passwd", "/etc/passwd", "..", ".", "/", "toy-classifier/../toy-detector", "toy-classifier/1",
    "toy-classifier\0.onnx", "~root", "file:///etc/passwd", "C:\\Windows\\win.ini", "%s%n%x{0.__class__}", "A" * 5000,
    "\n\r\x1b[31m", "\u202e\U0001f4a3", "sem.x", "$(id)", "",
)  # fmt: skip
NUMBERS = (0, -1, 2**31 - 1, -(2**63), 2**63 - 1)
PICTURE = make_picture((200, 10, 10))


def filled(kind: Descriptor, text: str, number: int, depth: int = 4) -> Message:
    """A message of which every field holds the text or the number, as far as its type can."""
    message: Any = GetMessageClass(kind)()
    if depth == 0:
        return message
    for field in kind.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            entry = getattr(message, field.name)
            if value.message_type is None:
                entry[text] = scalar(value, text, number)
            else:
                entry[text].CopyFrom(filled(value.message_type, text, number, depth - 1))
        elif field.message_type is not None:
            inner = filled(field.message_type, text, number, depth - 1)
            place = getattr(message, field.name)
            place.add().CopyFrom(inner) if field.is_repeated else place.CopyFrom(inner)
        elif field.is_repeated:
            getattr(message, field.name).append(scalar(field, text, number))
        else:
            setattr(message, field.name, scalar(field, text, number))
    return message


def scalar(field: FieldDescriptor, text: str, number: int) -> Any:
    bits = {"CPPTYPE_INT32": (-(2**31), 2**31 - 1), "CPPTYPE_UINT32": (0, 2**32 - 1), "CPPTYPE_UINT64": (0, 2**64 - 1)}
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_BOOL:
            return bool(number)
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return float("nan") if number < 0 else float(number)
        case FieldDescriptor.CPPTYPE_ENUM:
            return 0
        case FieldDescriptor.CPPTYPE_INT64:
            return number
        case other:
            name = {FieldDescriptor.CPPTYPE_INT32: "CPPTYPE_INT32", FieldDescriptor.CPPTYPE_UINT32: "CPPTYPE_UINT32"}
            low, high = bits[name.get(other, "CPPTYPE_UINT64")]
            return min(max(number, low), high)


def with_each_text(message: Any, text: str) -> Iterator[Message]:
    """Copies of a good message, each with another one of its texts replaced, of inner messages too."""
    for field, value in message.ListFields():
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for index in range(len(value)) if field.is_repeated else (None,):
                for inner in with_each_text(value if index is None else value[index], text):
                    copy = type(message)()
                    copy.CopyFrom(message)
                    place = getattr(copy, field.name)
                    (place if index is None else place[index]).CopyFrom(inner)
                    yield copy
        elif field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
            copy = type(message)()
            copy.CopyFrom(message)
            setattr(copy, field.name, text)
            yield copy


async def everything_said(caller: Caller, method: Any, request: Message) -> str:
    """All text of the answers, or of the status and its details."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    channel: Any = caller.channel
    parse = GetMessageClass(method.output_type).FromString
    serialize = GetMessageClass(method.input_type).SerializeToString
    said: list[Any] = []
    try:
        if method.client_streaming:
            call = channel.stream_stream(path, serialize, parse)(iter([request]), timeout=60)
            said += [answer async for answer in call]
        elif method.server_streaming:  # a watch, which never ends
            call = channel.unary_stream(path, serialize, parse)(request, timeout=60)
            said.append(await call.read())
            call.cancel()
        else:
            said.append(await channel.unary_unary(path, serialize, parse)(request, timeout=60))
    except grpc.aio.AioRpcError as error:
        details = [value for _, value in error.trailing_metadata() or ()]
        said += [error.code().name, error.details() or "", error.debug_error_string(), *details]
    return "\n".join(map(str, said))


class Opened:
    """What the process opened or listed while `on`; audit hooks stay for ever."""

    def __init__(self) -> None:
        self.on = False
        self.paths: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event in {"open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir"}:
            path = arguments[0]
            if isinstance(path, str | bytes | os.PathLike):
                self.paths.append(os.fsdecode(path))


@pytest.fixture
def repository(toy_repository: Path, tmp_path: Path) -> Path:
    """Of which one model is broken, and one was never proved here: their reasons name files."""
    copy = shutil.copytree(toy_repository, tmp_path / "my models")
    for name in ("broken", "unproved"):
        shutil.copytree(copy / "toy-detector", copy / name)
    flip_a_byte(copy / "broken" / "1" / "model.onnx")
    shutil.rmtree(copy / "unproved" / "1" / "certificates")
    return copy


async def test_no_name_becomes_a_path_and_no_answer_tells_one(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = [
        vision_pb.ClassifyRequest(model=vision_pb.ModelRef(name="toy-classifier"), images=[PICTURE]),
        infer_pictures("toy-classifier", [PICTURE], model_version="1", id="7"),
    ]
    names = [vision_pb.ModelRef(name=name) for name in ("broken", "unproved")]
    opened = Opened()
    asked = 0
    async with administering(repository, shared_memory_bytes=2**20, certificates=None) as caller:
        opened.on = True
        for service in SERVICES:
            for method in service.methods:
                requests = [
                    filled(method.input_type, text, NUMBERS[index % len(NUMBERS)]) for index, text in enumerate(HOSTILE)
                ]
                requests += [filled(method.input_type, name.name, 0) for name in names]
                for one in good:
                    if one.DESCRIPTOR is method.input_type:
                        requests += [copy for text in HOSTILE for copy in with_each_text(one, text)]
                for request in requests:
                    said = await everything_said(caller, method, request)
                    asked += 1
                    for secret in (str(repository), repository.name, "Traceback", "site-packages", ".py", UNEXPECTED):
                        assert secret not in said, (method.full_name, request, said)
        opened.on = False
        index = await caller.inference.RepositoryIndex(inference_pb.RepositoryIndexRequest())
        reasons = {one.name: one.reason for one in index.models}
        assert "model.onnx is not the file that was exported" in reasons["broken"]
        assert "prove it with: ferryman verify" in reasons["unproved"]
        assert not any(str(repository) in reason for reason in reasons.values())
        answer = await caller.inference.ModelInfer(good[1])
        assert answer.outputs
    assert asked > 700
    # what the server may touch: its repository as it was found, and single names in shared memory
    strange = {path for path in opened.paths if not Path(path).is_relative_to(repository)}
    assert {path for path in strange if os.path.dirname(path) != "/dev/shm"} == set()
    inside = {os.path.relpath(path, repository) for path in opened.paths if path not in strange}
    assert not {path for path in inside if ".." in path or any(text in path for text in HOSTILE if len(text) > 2)}
    assert [record for record in caplog.records if "unexpected" in record.message.lower()] == []
