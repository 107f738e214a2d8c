"""The A-ASSOCIATE of the one who calls: the request written, the answer read within bounds (PS3.8 9.3.2 to 9.3.4)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ctnode.archive.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from ctnode.wire.command import Malformed
from ctnode.wire.request import DICOM_APPLICATION

MAX_PDU_BYTES: Final = 131072
PDU_HEADER: Final = struct.Struct(">BBL")
_ITEM: Final = struct.Struct(">BBH")
_CONTEXT: Final = struct.Struct(">BBBB")
_FIXED: Final = struct.Struct(">HH16s16s32s")
_LONG: Final = struct.Struct(">L")

_RQ: Final = 0x01
_APPLICATION: Final = 0x10
_PROPOSED: Final = 0x20
_ANSWERED: Final = 0x21
_ABSTRACT: Final = 0x30
_TRANSFER: Final = 0x40
_USER: Final = 0x50
_MAXIMUM: Final = 0x51
_CLASS: Final = 0x52
_VERSION: Final = 0x55

# PS3.8 Table 9-18.
_ACCEPTED: Final = 0
_RESULTS: Final = {1: "refused", 2: "refused", 3: "SOP class not accepted", 4: "transfer syntax not accepted"}
# PS3.8 Table 9-21.
_REASONS: Final[Mapping[tuple[int, int], str]] = {
    (1, 1): "no reason given",
    (1, 2): "application context name not supported",
    (1, 3): "calling AE title not recognised",
    (1, 7): "called AE title not recognised",
    (2, 1): "no reason given",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}


@dataclass(frozen=True, slots=True)
class Offer:
    """One presentation context that is proposed: a SOP class and the transfer syntaxes in order of preference."""

    sop_class: str
    syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Agreed:
    """One presentation context that was accepted."""

    context_id: int
    sop_class: str
    syntax: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the other side agreed to.

    Parameters
    ----------
    agreed
        The accepted contexts, in the order of the offers.
    refused
        SOP class, first transfer syntax and reason of the others.
    max_pdu
        Largest P-DATA-TF it takes, in bytes; 0 is no limit.
    """

    agreed: tuple[Agreed, ...]
    refused: tuple[tuple[str, str, str], ...]
    max_pdu: int


def associate_rq(called: str, calling: str, offers: Sequence[Offer]) -> bytes:
    """Write an A-ASSOCIATE-RQ PDU; the contexts get the odd numbers from 1 on in the order of ``offers``."""
    items = [_item(_APPLICATION, DICOM_APPLICATION)]
    for number, offer in enumerate(offers):
        syntaxes = b"".join(_item(_TRANSFER, syntax.encode("ascii")) for syntax in offer.syntaxes)
        body = _CONTEXT.pack(2 * number + 1, 0, 0, 0) + _item(_ABSTRACT, offer.sop_class.encode("ascii")) + syntaxes
        items.append(_item(_PROPOSED, body))
    user = (
        _item(_MAXIMUM, _LONG.pack(MAX_PDU_BYTES))
        + _item(_CLASS, IMPLEMENTATION_CLASS_UID.encode("ascii"))
        + _item(_VERSION, IMPLEMENTATION_VERSION.encode("ascii"))
    )
    items.append(_item(_USER, user))
    head = _FIXED.pack(1, 0, called.ljust(16).encode("ascii"), calling.ljust(16).encode("ascii"), bytes(32))
    body = head + b"".join(items)
    return PDU_HEADER.pack(_RQ, 0, len(body)) + body


def read_answer(body: memoryview, offers: Sequence[Offer]) -> Answer:
    """Read the body of an A-ASSOCIATE-AC.

    Raises
    ------
    Malformed
        If it cannot be what it says.
    """
    agreed: dict[int, str] = {}
    reasons: dict[int, int] = {}
    max_pdu = 0
    for kind, value in _items(body[_FIXED.size :]):
        if kind == _ANSWERED:
            if len(value) < _CONTEXT.size:
                raise Malformed("a presentation context of the answer is cut off")
            number, _, result, _ = _CONTEXT.unpack_from(value)
            syntaxes = [bytes(inner) for sub, inner in _items(value[_CONTEXT.size :]) if sub == _TRANSFER]
            reasons[number] = result
            if result == _ACCEPTED and syntaxes:
                agreed[number] = syntaxes[0].rstrip(b"\0 ").decode("ascii", "replace")
        elif kind == _USER:
            for sub, inner in _items(value):
                if sub == _MAXIMUM and len(inner) == _LONG.size:
                    (max_pdu,) = _LONG.unpack(inner)
    taken, refused = [], []
    for place, offer in enumerate(offers):
        number = 2 * place + 1
        if agreed.get(number) in offer.syntaxes:
            taken.append(Agreed(number, offer.sop_class, agreed[number]))
        else:
            why = _RESULTS.get(reasons.get(number, 1), "refused")
            refused.append((offer.sop_class, offer.syntaxes[0], why))
    return Answer(tuple(taken), tuple(refused), max_pdu)


def read_rejection(body: memoryview) -> str:
    """Return what an A-ASSOCIATE-RJ says, in words."""
    if len(body) < 4:
        return "association rejected"
    _, result, source, reason = body[:4]
    how = {1: "permanently", 2: "for now"}.get(result, "")
    why = _REASONS.get((source, reason), f"source {source}, reason {reason}")
    return f"association rejected {how}".rstrip() + f": {why}"


def _item(kind: int, body: bytes) -> bytes:
    return _ITEM.pack(kind, 0, len(body)) + body


def _items(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    position, end = 0, len(data)
    while position < end:
        if end - position < _ITEM.size:
            raise Malformed("an item of the answer is cut off")
        kind, _, length = _ITEM.unpack_from(data, position)
        position += _ITEM.size
        if length > end - position:
            raise Malformed("the length of an item of the answer cannot be")
        yield kind, data[position : position + length]
        position += length
