"""Command sets of the requests that we make (PS3.7 9.3, 10.3, E.1)."""

from __future__ import annotations

import struct
from typing import Final

from ctnode.wire.command import NO_DATA_SET, UID_LIMIT_BYTES

C_STORE: Final = 0x0001
C_FIND: Final = 0x0020
C_ECHO: Final = 0x0030
N_EVENT_REPORT: Final = 0x0100
N_ACTION: Final = 0x0130

CLASS: Final = 0x0002
FIELD: Final = 0x0100
MESSAGE: Final = 0x0110
RESPONDED: Final = 0x0120
STATUS: Final = 0x0900
COMMENT: Final = 0x0902
INSTANCE: Final = 0x1000

_CLASS_REQUESTED: Final = 0x0003
_PRIORITY: Final = 0x0700
_DATA_SET_TYPE: Final = 0x0800
_INSTANCE_REQUESTED: Final = 0x1001
_EVENT_TYPE: Final = 0x1002
_ACTION_TYPE: Final = 0x1008
_HAS_DATA_SET: Final = 0x0001
_ELEMENT: Final = struct.Struct("<HHL")
_REQUEST_COMMITMENT: Final = 1


def store_request(message_id: int, sop_class: str, sop_instance: str) -> bytes:
    """Return a C-STORE-RQ of medium priority."""
    return _command(
        {
            CLASS: sop_class, FIELD: C_STORE, MESSAGE: message_id, _PRIORITY: 0, _DATA_SET_TYPE: _HAS_DATA_SET,
            INSTANCE: sop_instance,
        }
    )  # fmt: skip


def echo_request(message_id: int, sop_class: str) -> bytes:
    """Return a C-ECHO-RQ."""
    return _command({CLASS: sop_class, FIELD: C_ECHO, MESSAGE: message_id, _DATA_SET_TYPE: NO_DATA_SET})


def find_request(message_id: int, sop_class: str) -> bytes:
    """Return a C-FIND-RQ of medium priority; its identifier follows."""
    return _command({CLASS: sop_class, FIELD: C_FIND, MESSAGE: message_id, _PRIORITY: 0, _DATA_SET_TYPE: _HAS_DATA_SET})


def commitment_request(message_id: int, sop_class: str, sop_instance: str) -> bytes:
    """Return the N-ACTION-RQ that asks for storage commitment (PS3.4 J.3.2); its references follow."""
    return _command(
        {
            _CLASS_REQUESTED: sop_class, FIELD: N_ACTION, MESSAGE: message_id, _DATA_SET_TYPE: _HAS_DATA_SET,
            _INSTANCE_REQUESTED: sop_instance, _ACTION_TYPE: _REQUEST_COMMITMENT,
        }
    )  # fmt: skip


def event_response(message_id: int, sop_class: str, sop_instance: str, event_type: int) -> bytes:
    """Return the N-EVENT-REPORT-RSP of success."""
    return _command(
        {
            CLASS: sop_class, FIELD: 0x8000 | N_EVENT_REPORT, RESPONDED: message_id, _DATA_SET_TYPE: NO_DATA_SET,
            STATUS: 0, INSTANCE: sop_instance, _EVENT_TYPE: event_type,
        }
    )  # fmt: skip


def can_be_named(uid: str) -> bool:
    """Return whether a command set takes a UID."""
    return uid.isascii() and 0 < len(uid) <= UID_LIMIT_BYTES and "\0" not in uid


def _command(values: dict[int, str | int]) -> bytes:
    body = bytearray()
    for number, value in sorted(values.items()):
        raw = value.to_bytes(2, "little") if isinstance(value, int) else value.encode("ascii")
        raw += b"\0" * (len(raw) % 2)
        body += _ELEMENT.pack(0, number, len(raw)) + raw
    return _ELEMENT.pack(0, 0, 4) + len(body).to_bytes(4, "little") + bytes(body)
