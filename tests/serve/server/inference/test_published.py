"""Our proto against the published one, as NVIDIA's client carries it: the same names, numbers and types."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto

from ferryman.inference import grpc_service_pb2, model_config_pb2

# In another process: a process holds one definition of a package, and this one holds ours.
_PUBLISHED = """
import base64, json
from tritonclient.grpc import model_config_pb2, service_pb2

files = [module.DESCRIPTOR.serialized_pb for module in (service_pb2, model_config_pb2)]
print(json.dumps([base64.b64encode(file).decode() for file in files]))
"""


def _published() -> list[FileDescriptorProto]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PUBLISHED], capture_output=True, text=True, timeout=120, check=True
    )
    return [FileDescriptorProto.FromString(base64.b64decode(file)) for file in json.loads(done.stdout)]


def _ours() -> list[FileDescriptorProto]:
    return [
        FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        for module in (grpc_service_pb2, model_config_pb2)
    ]


def _enum_facts(enums: Iterable[EnumDescriptorProto], scope: str) -> Iterator[tuple[object, ...]]:
    for enum in enums:
        for value in enum.value:
            yield f"{scope}{enum.name}", value.name, value.number


def _message_facts(messages: Iterable[DescriptorProto], scope: str) -> Iterator[tuple[object, ...]]:
    for message in messages:
        inner = f"{scope}{message.name}."
        yield "message", inner
        for field in message.field:
            choice = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
            yield inner, field.name, field.number, field.type, field.type_name, field.label, choice
        yield from _message_facts(message.nested_type, inner)
        yield from _enum_facts(message.enum_type, inner)


def _facts(file: FileDescriptorProto) -> set[tuple[object, ...]]:
    """All that decides what goes over the wire."""
    facts: set[tuple[object, ...]] = {("package", file.package)}
    for service in file.service:
        for method in service.method:
            streams = method.client_streaming, method.server_streaming
            facts.add((service.name, method.name, method.input_type, method.output_type, *streams))
    return facts | {*_message_facts(file.message_type, "")} | {*_enum_facts(file.enum_type, "")}


def test_the_proto_is_the_published_one() -> None:
    (our_service, our_config), (service, config) = map(_facts, _ours()), map(_facts, _published())
    assert len(our_service) > 200
    assert our_service == service
    # Of the configuration we have what we fill.
    assert len(our_config) > 50
    assert our_config - config == set()


def test_a_client_of_ours_leaves_room_for_other_definitions() -> None:
    """`ferryman.Client` and NVIDIA's client go together in one process; only the server holds our definition."""
    code = (
        "import ferryman.cli, ferryman.client, ferryman.commands.predict, sys\n"
        "assert not [name for name in sys.modules if name.startswith('ferryman.inference')]\n"
        "import tritonclient.grpc\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=120, check=True)
