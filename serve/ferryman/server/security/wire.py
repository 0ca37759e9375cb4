"""How many fields a message has, counted before it is parsed: two bytes on the wire may be a hundred in memory.

Protocol Buffers, "Encoding": a message is a row of fields, each a tag (number and wire type) and a value.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from ferryman.errors import UsageError

MAX_FIELDS = 16 * 1024  # 64 pictures need 70; with typed tensors, whose values are one field, as few
# By number: the fields of a message inside; None for packed 64-bit numbers, of which each byte may be one.
Inner: TypeAlias = "Mapping[int, Inner | None]"
_WIDE = {FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_SINT64}


def inner_fields(kind: Descriptor) -> Inner:
    """What of a message's fields counts beside the fields themselves. Takes no messages that hold their own kind."""
    found: dict[int, Any] = {}
    for field in kind.fields:
        if field.message_type is not None:
            found[field.number] = inner_fields(field.message_type)
        elif field.type in _WIDE:
            found[field.number] = None
    return found


def check_fields(data: bytes, inner: Inner, limit: int = MAX_FIELDS) -> None:
    """Raises UsageError for more fields than that, of inner messages too. What is no message is left to the parser."""
    try:
        left = _count_down(data, 0, len(data), inner, limit)
    except IndexError:  # it ends inside a number
        return
    if left < 0:
        raise UsageError(f"the request has more than {limit:,} fields; send large values raw, and fewer at a time")


def _count_down(data: bytes, at: int, end: int, inner: Inner, left: int) -> int:
    """What is left of a number of fields after those in data[at:end], below 0 for too many."""
    while at < end and left >= 0:
        left -= 1
        tag, at = data[at], at + 1
        if tag >= 0x80:  # as a rule it is one byte, and a call costs more than all else here
            tag, at = _varint(data, at - 1)
        match tag & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 2:
                size, at = data[at], at + 1
                if size >= 0x80:
                    size, at = _varint(data, at - 1)
                if at + size > end:
                    return left
                if tag >> 3 in inner:
                    within = inner[tag >> 3]
                    left = left - size if within is None else _count_down(data, at, at + size, within, left)
                at += size
            case 5:
                at += 4
            case _:  # groups, which nobody sends: their fields count as any
                pass
    return left


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place behind it; of the 64 bits that it may have."""
    value = data[at]
    if value < 0x80:
        return value, at + 1
    value &= 0x7F
    for shift in range(7, 70, 7):
        at += 1
        value |= (data[at] & 0x7F) << shift
        if data[at] < 0x80:
            break
    return value, at + 1
