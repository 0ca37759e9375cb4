"""Fields are counted before a message is parsed: bombs are found, and honest messages pass."""

import itertools

import numpy as np
import pytest

from ferryman.errors import UsageError
from ferryman.inference import grpc_service_pb2 as oip
from ferryman.server.health import METHODS
from ferryman.server.security.wire import MAX_FIELDS, check_fields, inner_fields
from ferryman.v1 import vision_pb2 as pb

from ..inference.asking import infer, infer_pictures, tensor

INFER = inner_fields(METHODS["/inference.GRPCInferenceService/ModelInfer"].input_type)
MANY = MAX_FIELDS + 1


def field(number: int, data: bytes) -> bytes:
    """Of a message, text or bytes."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    low = bytes([value & 0x7F | (0x80 if value > 0x7F else 0)])
    return low + varint(value >> 7) if value > 0x7F else low


BOMBS = {
    "inputs": field(5, b"") * MANY,
    "raw contents": field(7, b"") * MANY,
    "a shape": field(5, field(3, b"\1" * MANY)),
    "a shape, not packed": field(5, b"\x18\1" * MANY),
    "shapes that are one together": field(5, field(3, b"\1" * (MANY // 2)) * 3),
    "elements of BYTES": field(5, field(5, field(8, b"") * MANY)),
    "64-bit values": field(5, field(5, field(3, b"\1" * MANY))),
    "parameters": b"".join(field(4, field(1, b"%d" % number)) for number in range(MANY // 2 + 1)),
    "fields that there are not": b"\xf8\x07\0" * MANY,
    "groups": b"\x0b\x0c" * MANY,
    "fixed": b"\x0d\0\0\0\0" * MANY,
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_bombs(data: bytes) -> None:
    with pytest.raises(UsageError, match=r"^the request has more than 16,384 fields"):
        check_fields(data, INFER)


def test_honest_messages() -> None:
    canvas = np.zeros((1, 224, 224, 3), np.uint8)
    typed = oip.InferTensorContents(uint_contents=[200] * canvas.size)
    for request in (
        infer("m", {"image": np.repeat(canvas, 64, axis=0)}),
        infer_pictures("m", [b"x" * 1000] * 64),
        oip.ModelInferRequest(inputs=[tensor("image", "UINT8", canvas.shape, typed)]),
        oip.ModelInferRequest(raw_input_contents=[b"\x2a\0" * MANY]),  # bytes are no fields
        oip.ModelInferRequest(id="x" * MANY),
    ):
        check_fields(request.SerializeToString(), INFER)
    images = pb.StreamDetectRequest(frame_id=2**63 - 1, request=pb.DetectRequest(images=[b"x" * 100_000] * 64))
    check_fields(
        images.SerializeToString(), inner_fields(METHODS["/ferryman.v1.VisionService/StreamDetect"].input_type), 70
    )


def test_each_field_counts_once() -> None:
    request = infer_pictures("m", [b"1", b"2"], id="7")  # model, id, an input of name, type and shape of 1, contents
    data = request.SerializeToString()
    check_fields(data, INFER, 8)
    with pytest.raises(UsageError):
        check_fields(data, INFER, 7)


def test_what_is_no_message_is_left_to_the_parser() -> None:
    good = infer_pictures("m", [b"123"], id="7").SerializeToString()
    for end in range(len(good)):
        check_fields(good[:end], INFER)
    for first, second in itertools.product(range(256), repeat=2):
        check_fields(bytes((first, second)) + b"\xff" * 40, INFER)


def test_all_requests_can_be_counted() -> None:
    """None holds its own kind, which would have no end."""
    for method in METHODS.values():
        check_fields(b"", inner_fields(method.input_type))
