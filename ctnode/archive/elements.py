"""A bounded scanner of top-level DICOM elements: reads an allow-list, skips all else by length, decodes nothing.

A full parser can be hung or made to recurse by a small hostile file; this one keeps no tree, walks undefined lengths
with an explicit stack of limited depth, and never reads past its buffer (PS3.5 7.1 to 7.5).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Set as AbstractSet
from typing import Final

from ctnode.words import BadInstance

Buffer = bytes | bytearray | memoryview

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
DEFLATED_LITTLE: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"

PIXEL_GROUP: Final = 0x7FE0
DEPTH_LIMIT: Final = 64
# About half a second; images have hundreds of elements before their pixels, the largest reports some 100,000.
ELEMENT_LIMIT: Final = 500_000
VALUE_LIMIT_BYTES: Final = 4096
INFLATE_LIMIT_BYTES: Final = 4 << 20

UNDEFINED: Final = 0xFFFFFFFF
HEADER_BYTES: Final = 8
_TOO_MANY: Final = f"more than {ELEMENT_LIMIT} elements before the pixels"
ITEM: Final = 0xFFFEE000
ITEM_END: Final = 0xFFFEE00D
SEQUENCE_END: Final = 0xFFFEE0DD
_LONG_VRS: Final = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)


class ShortBuffer(BadInstance):
    """The buffer ends before the wanted elements do; a longer one may hold them."""


class Syntax:
    """How element headers are laid out in one encoding."""

    __slots__ = ("big", "explicit", "header", "length16", "length32", "tag")

    def __init__(self, *, explicit: bool, big: bool) -> None:
        order = ">" if big else "<"
        self.explicit = explicit
        self.big = big
        # The first eight bytes of an element whose length stands in two of them, or which has no VR.
        self.header = struct.Struct(order + ("HH2sH" if explicit else "HH0sL")).unpack_from
        self.tag = struct.Struct(order + "HH").unpack_from
        self.length16 = struct.Struct(order + "H").unpack_from
        self.length32 = struct.Struct(order + "L").unpack_from


# Those of PS3.5 6.2 with a length of two bytes; what an implicit header has in the place of a VR is among them.
_PLAIN_VRS: Final = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
     b"ST", b"TM", b"UI", b"UL", b"US", b""}
)  # fmt: skip


_EXPLICIT_LITTLE = Syntax(explicit=True, big=False)
_EXPLICIT_BIG = Syntax(explicit=True, big=True)
_IMPLICIT = Syntax(explicit=False, big=False)


def syntax_of(transfer_syntax: str) -> Syntax:
    """Return the layout of a transfer syntax."""
    if transfer_syntax == IMPLICIT_LITTLE:
        return _IMPLICIT
    return _EXPLICIT_BIG if transfer_syntax == EXPLICIT_BIG else _EXPLICIT_LITTLE


def inflate(data: Buffer) -> bytes:
    """Return the first megabytes of a deflated data set; the rest stays compressed (PS3.5 A.5)."""
    try:
        return zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(data, INFLATE_LIMIT_BYTES)
    except zlib.error as error:
        raise BadInstance("the deflated data set cannot be inflated") from error


def scan(
    data: Buffer, transfer_syntax: str, wanted: AbstractSet[int], *, start: int = 0, whole: bool = True
) -> dict[int, bytes]:
    """Read the wanted top-level elements of a data set.

    Parameters
    ----------
    data
        The encoded data set from ``start`` on (inflated already, where deflated).
    transfer_syntax
        UID of its encoding.
    wanted
        Tags as ``group << 16 | element``; scanning stops behind the greatest or at the pixels.
    whole
        Whether ``data`` is the whole data set; if not, its end may come too early.

    Returns
    -------
    dict
        Raw values by tag; at most 4096 bytes each.

    Raises
    ------
    ShortBuffer
        If a partial buffer ends first.
    BadInstance
        If the bytes are no data set.
    """
    syntax = syntax_of(transfer_syntax)
    header = syntax.header
    found: dict[int, bytes] = {}
    last = max(wanted)
    position, end, previous = start, len(data), -1
    left = ELEMENT_LIMIT
    while end - position >= HEADER_BYTES:
        left -= 1
        group, number, vr, length = header(data, position)
        tag = group << 16 | number
        value = position + HEADER_BYTES
        if vr not in _PLAIN_VRS:
            tag, length, value = element_at(data, position, syntax)
        if tag > last or group >= PIXEL_GROUP:
            return found
        if tag <= previous:
            raise BadInstance("the data set is not in order of tags")
        if left < 0:
            raise BadInstance(_TOO_MANY)
        previous = tag
        if length == UNDEFINED:
            try:
                unknown = is_unknown(data, position, syntax)
                position, left = skip_undefined(data, value, syntax, left, unknown=unknown)
            except ShortBuffer:
                return _ended(found, whole=whole)
            if tag in wanted:
                found[tag] = bytes(data[value : min(position, value + VALUE_LIMIT_BYTES)])
            continue
        position = value + length
        if position > end:
            return _ended(found, whole=whole)
        if tag in wanted:
            found[tag] = bytes(data[value : min(position, value + VALUE_LIMIT_BYTES)])
    return found if whole else _ended(found, whole=False)


def _count_down(left: int) -> int:
    if left <= 0:
        raise BadInstance(_TOO_MANY)
    return left - 1


def _ended(found: dict[int, bytes], *, whole: bool) -> dict[int, bytes]:
    if whole:
        # What stands before the cut is as it was sent; the cut itself shows when the pixels are decoded.
        return found
    raise ShortBuffer("the data set ends before its UIDs")


def element_at(data: Buffer, position: int, syntax: Syntax) -> tuple[int, int, int]:
    """Return tag, length and position of the value of the element at ``position``."""
    group, element = syntax.tag(data, position)
    tag = group << 16 | element
    if syntax.explicit and group != 0xFFFE:
        vr = bytes(data[position + 4 : position + 6])
        if vr in _LONG_VRS:
            if len(data) < position + 12:
                return tag, len(data), position + 8
            return tag, syntax.length32(data, position + 8)[0], position + 12
        if vr.isalpha() and vr.isupper():
            return tag, syntax.length16(data, position + 6)[0], position + 8
    # Implicit, or an element written implicitly into an explicit data set, as some senders do.
    return tag, syntax.length32(data, position + 4)[0], position + 8


def is_unknown(data: Buffer, position: int, syntax: Syntax) -> bool:
    """Return whether the element at ``position`` has the VR UN."""
    return syntax.explicit and bytes(data[position + 4 : position + 6]) == b"UN"


def skip_undefined(data: Buffer, position: int, syntax: Syntax, left: int, *, unknown: bool) -> tuple[int, int]:
    """Return the position behind a value of undefined length, and how many elements may follow.

    The stack holds, for each open level, its encoding and whether it is an item (else a sequence). UN of undefined
    length is encoded implicitly inside (PS3.5 6.2.2, note 4 there).
    """
    stack: list[tuple[Syntax, bool]] = [(_IMPLICIT if unknown else syntax, False)]
    end = len(data)
    while stack:
        if end - position < 8:
            raise ShortBuffer("the data set ends inside a sequence")
        left = _count_down(left)
        inner, is_item = stack[-1]
        tag, length, value = element_at(data, position, inner)
        if tag in (ITEM_END, SEQUENCE_END):
            if (tag == ITEM_END) != is_item:
                raise BadInstance("sequence delimiters do not match")
            stack.pop()
            position = value
        elif length == UNDEFINED:
            if len(stack) >= DEPTH_LIMIT:
                raise BadInstance(f"sequences are nested deeper than {DEPTH_LIMIT}")
            below = _IMPLICIT if tag != ITEM and is_unknown(data, position, inner) else inner
            stack.append((below, tag == ITEM))
            position = value
        else:
            if value + length > end:
                raise ShortBuffer("the data set ends inside a sequence")
            position = value + length
    return position, left
