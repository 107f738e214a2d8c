"""PDUs as no decent library writes them: every field free, every length able to lie (PS3.8 9.3, PS3.7 D.3)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from tests.wire_peers import ASSOCIATE_RQ, CT, EXPLICIT, IMPLICIT, VERIFICATION, pdu, uid

APPLICATION = b"1.2.840.10008.3.1.1.1"
HTTP = b"GET / HTTP/1.1\r\nHost: node\r\n\r\n"
# The record of a ClientHello (RFC 8446 5.1), as a peer that takes the port for one of TLS sends it.
TLS_HELLO = bytes.fromhex("16030100310100002d0303") + bytes(range(32)) + bytes.fromhex("000002130100")
PROXY = b"PROXY TCP4 10.0.0.1 10.0.0.2 4711 104\r\n"

Context = tuple[int, bytes, Sequence[bytes]]
CONTEXTS: tuple[Context, ...] = (
    (1, VERIFICATION.encode(), (IMPLICIT.encode(),)),
    (3, CT.encode(), (EXPLICIT.encode(),)),
    (5, CT.encode(), (IMPLICIT.encode(),)),
)


def item(kind: int, body: bytes, *, length: int | None = None) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body) if length is None else length) + body


def context_item(number: int, abstract: bytes, syntaxes: Sequence[bytes]) -> bytes:
    inner = item(0x30, abstract) + b"".join(item(0x40, syntax) for syntax in syntaxes)
    return item(0x20, struct.pack(">BBBB", number, 0, 0, 0) + inner)


def user_item(*more: bytes, limit: int | None = 16384) -> bytes:
    inner = b"" if limit is None else item(0x51, struct.pack(">L", limit))
    return item(0x50, inner + item(0x52, uid(9).encode()) + b"".join(more))


def request(
    contexts: Sequence[Context] = CONTEXTS,
    *,
    called: bytes = b"CTNODE",
    calling: bytes = b"HOSTILE",
    version: int = 1,
    application: bytes = item(0x10, APPLICATION),
    user: bytes | None = None,
    more: bytes = b"",
) -> bytes:
    """Write an A-ASSOCIATE-RQ; titles longer than their field move everything behind them."""
    head = struct.pack(">HH", version, 0) + called.ljust(16) + calling.ljust(16) + bytes(32)
    items = application + b"".join(context_item(*context) for context in contexts)
    return pdu(ASSOCIATE_RQ, head + items + (user_item() if user is None else user) + more)


def header(kind: int, length: int) -> bytes:
    return struct.pack(">BBL", kind, 0, length)


GARBAGE_STARTS = (HTTP, TLS_HELLO, PROXY, b"SSH-2.0-x\r\n", bytes(100), b"\xff" * 100)


def command_elements(data: bytes | bytearray) -> list[tuple[int, bytes]]:
    """Read the elements of a command set as far as they are sound."""
    found = []
    position = 0
    while position + 8 <= len(data):
        _group, number, length = struct.unpack_from("<HHL", data, position)
        if length > len(data) - position - 8:
            break
        found.append((number, bytes(data[position + 8 : position + 8 + length])))
        position += 8 + length
    return found


def write_command(elements: Sequence[tuple[int, bytes]]) -> bytes:
    """Write elements in the order in which they are given, however wrong it is."""
    return b"".join(struct.pack("<HHL", 0, number, len(value)) + value for number, value in elements)
