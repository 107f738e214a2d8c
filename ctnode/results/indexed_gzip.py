"""Gzip files out of which any part can be read without what stands before it.

They are ordinary gzip files of one member (RFC 1952), so that every reader takes them: between chunks the compressor
forgets what it has seen (a full flush), and an extra field in the header, which readers pass over, holds the length
and the CRC of each. dictzip does the same, for chunks of up to 64 kB.

The same content gives the same bytes, which ISA-L alone does not promise. Where its levels 1 and 2 have no history they
hash the address of their own state in place of the third byte and those after it (``.write_first_byte`` in
``igzip_icf_body_h1_gr_bt.asm`` shifts a register that nobody has filled), so that chance decides, once in thousands of
chunks, whether an early match is found. Bytes that are flushed alone take another way, and then there is a history: so
each chunk begins with a few of them.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any, Final

from isal import isal_zlib

MOST_CHUNKS: Final = 8_000
# Level 1 of ISA-L: about 300 MB/s; higher levels gain few per cent on CT.
_LEVEL: Final = 1
# Flushed ahead of a chunk's rest: at most 16, which are left to the other way, and more than 3, or there is no history.
_AHEAD: Final = 8
# Deflate with an extra field; neither name nor time of writing: the same content gives the same bytes.
_HEADER: Final = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff"
_NAME: Final = b"PL"
_EXTRA: Final = struct.Struct("<H2sHII")
_RAW: Final = -15
_TRAILER_BYTES: Final = 8
_BadDeflate: Any = isal_zlib.error


class Damaged(Exception):
    """A chunk is not what the index says."""


@dataclass(frozen=True, slots=True)
class Index:
    """Where the chunks lie.

    Parameters
    ----------
    starts
        Where each chunk begins in the file, and where the last one ends.
    checks
        CRC-32 of each chunk when it is unpacked.
    head_bytes, chunk_bytes
        Length of the first chunk, and of each of the others but the last, when they are unpacked.
    """

    starts: tuple[int, ...]
    checks: tuple[int, ...]
    head_bytes: int
    chunk_bytes: int


def write_indexed(file: IO[bytes], head: bytes, chunks: Iterable[bytes], *, count: int, chunk_bytes: int) -> None:
    """Write ``head`` and then ``count`` chunks of ``chunk_bytes`` (the last may be shorter) into a seekable file.

    Raises
    ------
    ValueError
        If there are more chunks than the header has room for, or not ``count`` of them.
    """
    if count >= MOST_CHUNKS:
        raise ValueError(f"{count} chunks, and room for less than {MOST_CHUNKS}")
    table_bytes = 8 * (count + 1)
    begin = file.tell()
    file.write(_HEADER + bytes(_EXTRA.size + table_bytes))
    table, check, size = list[int](), 0, 0
    for chunk in itertools.chain((head,), chunks):
        packed = _packed(chunk)
        file.write(packed)
        table += len(packed), isal_zlib.crc32(chunk)
        check, size = isal_zlib.crc32(chunk, check), size + len(chunk)
    if len(table) != 2 * (count + 1):
        raise ValueError(f"{len(table) // 2 - 1} chunks where {count} were announced")
    file.write(_packer().flush() + struct.pack("<II", check, size & 0xFFFFFFFF))
    end = file.tell()
    file.seek(begin + len(_HEADER))
    room = _EXTRA.size - 2 + table_bytes
    file.write(_EXTRA.pack(room, _NAME, room - 4, len(head), chunk_bytes))
    file.write(struct.pack(f"<{len(table)}I", *table))
    file.seek(end)


def _packer() -> Any:
    return isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _RAW)


def _packed(chunk: bytes) -> bytes:
    """Return the chunk as blocks of deflate up to a full flush: the same bytes wherever it stands in whichever file."""
    packer, content = _packer(), memoryview(chunk)
    ahead: bytes = packer.compress(content[:_AHEAD]) + packer.flush(isal_zlib.Z_SYNC_FLUSH)
    rest: bytes = packer.compress(content[_AHEAD:]) + packer.flush(isal_zlib.Z_FULL_FLUSH)
    return ahead + rest


def read_index(descriptor: int) -> Index | None:
    """Return the index of a file; None of one that has none, or none that fits it."""
    head = os.pread(descriptor, len(_HEADER) + _EXTRA.size, 0)
    if not head.startswith(_HEADER) or len(head) < len(_HEADER) + _EXTRA.size:
        return None
    room, name, length, head_bytes, chunk_bytes = _EXTRA.unpack_from(head, len(_HEADER))
    if name != _NAME or room != length + 4 or length < 16 or length % 8 or not chunk_bytes:
        return None
    packed = os.pread(descriptor, length - 8, len(head))
    if len(packed) != length - 8:
        return None
    table = struct.unpack(f"<{len(packed) // 4}I", packed)
    starts = tuple(itertools.accumulate(table[::2], initial=len(head) + len(packed)))
    if starts[-1] + _TRAILER_BYTES >= os.fstat(descriptor).st_size:
        return None
    return Index(starts, table[1::2], head_bytes, chunk_bytes)


def read_chunk(descriptor: int, index: Index, number: int) -> bytes:
    """Return a chunk, unpacked; 0 is the head.

    Raises
    ------
    Damaged
        If it is not what was written.
    """
    start, end = index.starts[number : number + 2]
    most = index.chunk_bytes if number else index.head_bytes
    try:
        made = bytes(isal_zlib.decompressobj(_RAW).decompress(os.pread(descriptor, end - start, start), most))
    except _BadDeflate:
        raise Damaged("the file is damaged") from None
    if isal_zlib.crc32(made) != index.checks[number]:
        raise Damaged("the file is damaged")
    return made
