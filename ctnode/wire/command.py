"""Command sets, read and written without a parser that judges (PS3.7 6.3, 9.3.1, E.1).

A UID of 65 characters is the fault of one instance, not of its association: so this reads what is there, and whoever
keeps the instance decides.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

COMMAND_LIMIT_BYTES: Final = 1 << 16
UID_LIMIT_BYTES: Final = 64
COMMENT_LIMIT: Final = 64

C_STORE_RQ: Final = 0x0001
C_STORE_RSP: Final = 0x8001
RESPONSE_BIT: Final = 0x8000
NO_DATA_SET: Final = 0x0101

_GROUP_LENGTH: Final = 0x0000
_CLASS: Final = 0x0002
_FIELD: Final = 0x0100
_MESSAGE: Final = 0x0110
_RESPONDED: Final = 0x0120
_DATA_SET_TYPE: Final = 0x0800
_STATUS: Final = 0x0900
_COMMENT: Final = 0x0902
_INSTANCE: Final = 0x1000
_MOVE_AE: Final = 0x1030
_MOVE_MESSAGE: Final = 0x1031

_HEADER: Final = struct.Struct("<HHL")
_SHORT: Final = struct.Struct("<H")
_LONG: Final = struct.Struct("<L")
_FOUR_SHORTS: Final = struct.Struct("<" + 4 * "HHLH")


# Reasons of an A-ABORT of the service provider (PS3.8 Table 9-26).
NOT_SPECIFIED: Final = 0
UNRECOGNIZED_PDU: Final = 1
UNEXPECTED_PDU: Final = 2
INVALID_PARAMETER: Final = 6


class Malformed(Exception):
    """Bytes from the peer that no association survives: it cannot be told where the next message begins.

    Parameters
    ----------
    why
        For the log.
    reason
        For the A-ABORT (PS3.8 Table 9-26).
    cause
        The counter that it counts under.
    """

    def __init__(self, why: str, *, reason: int = INVALID_PARAMETER, cause: str = "malformed") -> None:
        super().__init__(why)
        self.why = why
        self.reason = reason
        self.cause = cause


class TooMuch(Malformed):
    """The peer goes on sending what was refused already."""

    def __init__(self, why: str) -> None:
        super().__init__(why, reason=NOT_SPECIFIED, cause="too much")


@dataclass(frozen=True, slots=True)
class Command:
    """What the node needs of a command set; UIDs as they came, without trailing padding."""

    field: int
    message_id: int
    has_data_set: bool
    sop_class: bytes
    sop_instance: bytes
    move_originator: str
    move_message_id: int


def parse_command(data: bytes | bytearray | memoryview) -> Command:
    """Read a whole command set: implicit little endian, group 0000 only.

    Raises
    ------
    Malformed
        If an element is cut off or belongs to another group, or the field, the message ID of a request or the
        CommandDataSetType is missing.
    """
    found: dict[int, bytes] = {}
    data = bytes(data)
    position, end = 0, len(data)
    while position < end:
        if end - position < _HEADER.size:
            raise Malformed("the command set is cut off")
        group, element, length = _HEADER.unpack_from(data, position)
        position += _HEADER.size
        if group != 0 or length > end - position:
            raise Malformed("the command set has an element that cannot be")
        found[element] = data[position : position + length]
        position += length
    field = _number(found, _FIELD)
    data_set_type = _number(found, _DATA_SET_TYPE)
    message_id = _number(found, _RESPONDED if field is not None and field & RESPONSE_BIT else _MESSAGE)
    if field is None or data_set_type is None:
        raise Malformed("the command set does not say what it is")
    if message_id is None and field == C_STORE_RQ:
        raise Malformed("the command set has no message ID")
    return Command(
        field=field,
        message_id=message_id or 0,
        has_data_set=data_set_type != NO_DATA_SET,
        sop_class=found.get(_CLASS, b"").rstrip(b" \0"),
        sop_instance=found.get(_INSTANCE, b"").rstrip(b" \0"),
        move_originator=found.get(_MOVE_AE, b"").decode("latin-1").strip(" \0")[:16],
        move_message_id=_number(found, _MOVE_MESSAGE) or 0,
    )


def store_response(command: Command, status: int, comment: str) -> bytes:
    """Write a C-STORE-RSP (PS3.7 9.3.1.2); UIDs that no response may carry are left out, they are optional there."""
    body = b"".join(
        (
            _uid(_CLASS, command.sop_class),
            _FOUR_SHORTS.pack(
                *(0, _FIELD, 2, C_STORE_RSP),
                *(0, _RESPONDED, 2, command.message_id),
                *(0, _DATA_SET_TYPE, 2, NO_DATA_SET),
                *(0, _STATUS, 2, status),
            ),
            _text(_COMMENT, comment[:COMMENT_LIMIT]),
            _uid(_INSTANCE, command.sop_instance),
        )
    )
    return _HEADER.pack(0, _GROUP_LENGTH, 4) + _LONG.pack(len(body)) + body


def command_pdus(context_id: int, command: bytes, peer_limit_bytes: int) -> bytes:
    """Wrap a command set into P-DATA-TF PDUs that the peer takes (PS3.8 9.3.5, E.2); a limit of 0 is none."""
    # The limit counts the PDV header too: 4 bytes of length, context and control. A peer that announces less than
    # one byte of room gets whole PDUs: there is no way to obey it.
    room = peer_limit_bytes - 6 if peer_limit_bytes > 6 else len(command)
    pdus = []
    for start in range(0, len(command), room):
        piece = command[start : start + room]
        control = 3 if start + room >= len(command) else 1
        pdus.append(struct.pack(">BBLLBB", 4, 0, len(piece) + 6, len(piece) + 2, context_id, control) + piece)
    return b"".join(pdus)


def _number(found: dict[int, bytes], element: int) -> int | None:
    value = found.get(element, b"")
    return int(_SHORT.unpack(value)[0]) if len(value) == _SHORT.size else None


def _uid(element: int, value: bytes) -> bytes:
    if not value or len(value) > UID_LIMIT_BYTES or b"\0" in value:
        return b""
    padded = value + b"\0" * (len(value) % 2)
    return _HEADER.pack(0, element, len(padded)) + padded


def _text(element: int, value: str) -> bytes:
    if not value:
        return b""
    encoded = value.encode("ascii", "replace")
    padded = encoded + b" " * (len(encoded) % 2)
    return _HEADER.pack(0, element, len(padded)) + padded
