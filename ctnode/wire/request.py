"""The A-ASSOCIATE-RQ, looked over before a parser that trusts it takes it apart (PS3.8 9.3.2, Annex D; PS3.7 D.3.3).

pynetdicom reads four thousand presentation contexts of one ID for seconds, and what it does not know it raises on. So
the request is walked first, item by item within its bounds and numbers; what the standard says to ignore is left out,
and the presentation contexts are read on the way.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from pynetdicom.presentation import PresentationContext

from ctnode.wire.command import Malformed
from ctnode.wire.negotiation import proposed_context
from ctnode.wire.peers import BY_USER, CALLED_UNKNOWN, CALLING_UNKNOWN, PERMANENT, Reject

# Odd numbers from 1 to 255 (PS3.8 9.3.2.2).
CONTEXT_LIMIT: Final = 128
# All items of a request; 128 contexts with 64 transfer syntaxes each are within.
ITEM_LIMIT: Final = 1 << 14
DICOM_APPLICATION: Final = b"1.2.840.10008.3.1.1.1"

_FIXED: Final = struct.Struct(">HH16s16s32s")
_ITEM: Final = struct.Struct(">BBH")
_PDU_HEADER: Final = struct.Struct(">BBL")
_A_ASSOCIATE_RQ: Final = 0x01
_APPLICATION: Final = 0x10
_CONTEXT: Final = 0x20
_ABSTRACT: Final = 0x30
_TRANSFER: Final = 0x40
_USER: Final = 0x50
_KNOWN_USER_ITEMS: Final = frozenset(range(0x51, 0x59))
_APPLICATION_UNKNOWN: Final = 2
_PRINTABLE: Final = frozenset(range(0x20, 0x7F)) - {ord("\\")}


class _Walk:
    """Walks items and counts them all together."""

    def __init__(self) -> None:
        self._left = ITEM_LIMIT

    def items(self, data: memoryview) -> list[tuple[int, memoryview, memoryview]]:
        """Return type, value and whole bytes of the items that fill ``data``."""
        found = []
        position, end = 0, len(data)
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise Malformed("the request has too many items")
            if end - position < _ITEM.size:
                raise Malformed("an item of the request is cut off")
            kind, _reserved, length = _ITEM.unpack_from(data, position)
            whole = _ITEM.size + length
            if whole > end - position:
                raise Malformed("the length of an item of the request cannot be")
            found.append((kind, data[position + _ITEM.size : position + whole], data[position : position + whole]))
            position += whole
        return found


@dataclass(frozen=True, slots=True)
class Reviewed:
    """A request in parts.

    Attributes
    ----------
    head
        All but the presentation contexts, as pynetdicom can read it.
    contexts
        The presentation contexts in the order of the request.
    rejection
        The answer where the head is not acceptable.
    """

    head: bytearray
    contexts: tuple[PresentationContext, ...]
    rejection: Reject | None


def review(pdu: memoryview) -> Reviewed:
    """Look over a whole A-ASSOCIATE-RQ PDU.

    Raises
    ------
    Malformed
        If it cannot be what it says: cut off, lengths that lie, context IDs that are even or used twice, names that
        are none.
    """
    body = pdu[_PDU_HEADER.size :]
    if len(body) < _FIXED.size:
        raise Malformed("the request is cut off")
    version, _reserved, called, calling, _rest = _FIXED.unpack_from(body)
    walk = _Walk()
    kept: list[memoryview | bytes] = []
    contexts: dict[int, PresentationContext] = {}
    applications: list[bytes] = []
    users = 0
    for kind, value, item in walk.items(body[_FIXED.size :]):
        if kind == _APPLICATION:
            applications.append(bytes(value).rstrip(b"\0 "))
            kept.append(item)
        elif kind == _CONTEXT:
            context = _read_context(value, walk)
            if contexts.setdefault(value[0], context) is not context:
                raise Malformed("a presentation context ID is used twice")
        elif kind == _USER:
            users += 1
            known = b"".join(whole for number, _, whole in walk.items(value) if number in _KNOWN_USER_ITEMS)
            kept.append(_ITEM.pack(_USER, 0, len(known)) + known)
    if len(applications) != 1 or users != 1 or not contexts:
        raise Malformed("the request lacks an item or has it twice")
    rejection = _judge(called, calling, applications[0])
    # Only bit 0 of the version is tested (PS3.8 9.3.2); titles may come with NULs for spaces.
    head = _FIXED.pack(version & 1, 0, _padded(called), _padded(calling), bytes(32))
    items = b"".join(kept)
    whole = bytearray(_PDU_HEADER.pack(_A_ASSOCIATE_RQ, 0, len(head) + len(items)) + head + items)
    return Reviewed(whole, tuple(contexts.values()), rejection)


def _read_context(value: memoryview, walk: _Walk) -> PresentationContext:
    if len(value) < 4:
        raise Malformed("a presentation context is cut off")
    if value[0] % 2 == 0:
        raise Malformed("a presentation context ID is even")
    names: dict[int, list[bytes]] = {_ABSTRACT: [], _TRANSFER: []}
    for kind, content, _ in walk.items(value[4:]):
        names.setdefault(kind, []).append(bytes(content))
    if len(names) > 2 or len(names[_ABSTRACT]) != 1 or not names[_TRANSFER]:
        raise Malformed("a presentation context lacks a syntax")
    return proposed_context(value[0], names[_ABSTRACT][0], names[_TRANSFER])


def _judge(called: bytes, calling: bytes, application: bytes) -> Reject | None:
    if application != DICOM_APPLICATION:
        return Reject(PERMANENT, BY_USER, _APPLICATION_UNKNOWN, "the application context is not DICOM's")
    if not _is_title(calling):
        return Reject(PERMANENT, BY_USER, CALLING_UNKNOWN, "the calling AE title is none")
    if not _is_title(called):
        return Reject(PERMANENT, BY_USER, CALLED_UNKNOWN, "the called AE title is none")
    return None


def _is_title(raw: bytes) -> bool:
    text = raw.rstrip(b"\0 ")
    return bool(text.strip()) and _PRINTABLE.issuperset(text)


def _padded(raw: bytes) -> bytes:
    return raw.rstrip(b"\0 ").ljust(16) if _is_title(raw) else b"?".ljust(16)
