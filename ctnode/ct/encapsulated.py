"""Encapsulated pixels: which fragments make which frame, and what a codestream says of itself (PS3.5 A.4)."""

from __future__ import annotations

import os
import struct
from functools import lru_cache
from pathlib import Path
from typing import Final

from ctnode.ct.source import Frame
from ctnode.words import Refusal

_ITEM: Final = b"\xfe\xff\x00\xe0"
_END: Final = b"\xfe\xff\xdd\xe0"
# Where a codestream begins: SOI of the JPEG family, SOC and SIZ of JPEG 2000.
_BEGINS: Final = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")

_Pieces = tuple[tuple[int, int], ...]


def codestream(frame: Frame) -> bytes:
    """Return the compressed bytes of one frame.

    Raises
    ------
    Refusal
        Code ``BAD_PIXELS`` if the fragments do not make as many frames as the header says.
    """
    pieces = _pieces_of_frames(frame.path, frame.digest, frame.pixel_offset, frame.frames)
    if isinstance(pieces, str):
        raise Refusal(f"{frame.name} {pieces}", code="BAD_PIXELS")
    with frame.path.open("rb") as file:
        parts = [os.pread(file.fileno(), length, offset) for offset, length in pieces[frame.index]]
    if [len(part) for part in parts] != [length for _, length in pieces[frame.index]]:
        raise Refusal(f"{frame.name} is cut off inside its pixels", code="BAD_PIXELS")
    return b"".join(parts)


@lru_cache(maxsize=16)
def _pieces_of_frames(path: Path, _digest: str, start: int, frames: int) -> tuple[_Pieces, ...] | str:
    """Return (offset, length) of the pieces of each frame, or what is wrong; read once for all frames of a file."""
    with path.open("rb") as file:
        items = _items(file.fileno(), start)
        if isinstance(items, str):
            return items
        table, fragments = items[0], items[1:]
        if frames == 1:
            return (tuple(fragments),) if fragments else "has no pixels in its fragments"
        if len(fragments) == frames:
            return tuple((fragment,) for fragment in fragments)
        offsets = os.pread(file.fileno(), table[1], table[0])
        if len(offsets) == 4 * frames and len(fragments) > frames:
            # The table counts from the tag of the first fragment, 8 bytes before its value.
            first = fragments[0][0]
            begins = {first + offset for offset in struct.unpack(f"<{frames}I", offsets)}
        else:
            begins = {offset for offset, _ in fragments if os.pread(file.fileno(), 4, offset).startswith(_BEGINS)}
    groups: list[list[tuple[int, int]]] = []
    for fragment in fragments:
        if fragment[0] in begins:
            groups.append([])
        if not groups:
            return "has fragments before its first frame"
        groups[-1].append(fragment)
    if len(groups) != frames:
        return f"has fragments that make {len(groups)} frames where its header says {frames}"
    return tuple(map(tuple, groups))


def _items(descriptor: int, position: int, *, most: int = 1 << 20) -> list[tuple[int, int]] | str:
    size = os.fstat(descriptor).st_size
    items: list[tuple[int, int]] = []
    while len(items) < most:
        head = os.pread(descriptor, 8, position)
        # A missing delimiter at the very end is tolerated: everything before it is whole.
        if head[:4] == _END or (not head and items):
            return items or "has no items in its pixels"
        if len(head) < 8 or head[:4] != _ITEM:
            return "has damaged encapsulated pixels"
        length = struct.unpack_from("<I", head, 4)[0]
        if position + 8 + length > size:
            return "is cut off inside its pixels"
        items.append((position + 8, length))
        position += 8 + length
    return f"has more than {most} fragments"


def codestream_size(codestream: bytes) -> tuple[int, int, int] | None:
    """Return ``(rows, columns, samples)`` that a JPEG, JPEG-LS or JPEG 2000 codestream declares, None if none.

    A few bytes can declare a picture that fills the memory, and the decoders allocate what they declare.
    """
    if codestream[:4] == b"\xff\x4f\xff\x51" and len(codestream) >= 42:  # ISO 15444-1 A.5.1: SIZ
        right, bottom, left, top = struct.unpack_from(">4I", codestream, 8)
        samples = struct.unpack_from(">H", codestream, 40)[0]
        return bottom - top, right - left, samples
    position = 2
    while position + 10 <= len(codestream) and codestream[position] == 0xFF:  # ISO 10918-1 B.2.2: SOFn
        marker = codestream[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns, samples = struct.unpack_from(">2HB", codestream, position + 5)
            return rows, columns, samples
        position += 2 + struct.unpack_from(">H", codestream, position + 2)[0]
    return None
