"""The bytes of one DICOM file: group 0002, the data set up to its pixels, and values that cannot hurt.

Whatever is read here may be hostile: deflated data sets are inflated within bounds, and a value that pydicom cannot
convert costs only its own attribute.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import struct
import zlib
from collections.abc import Sequence
from datetime import timedelta, timezone
from typing import IO, Final

import pydicom
from pydicom import Dataset, dcmread
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag

from ctnode.words import Refusal

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
NATIVE: Final = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED})
UNDEFINED_LENGTH: Final = 0xFFFFFFFF

_CHUNK_BYTES: Final = 1 << 20
_META_LIMIT_BYTES: Final = 1 << 20
_LONG_VRS: Final = frozenset(
    {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UN", b"UT", b"UC", b"UR", b"SV", b"UV"}
)


class Layers:
    """Data sets one above the other: an attribute comes from the first that has it (PS3.3 C.7.6.16).

    The functional groups of a frame lie over the shared ones, and those over the data set.
    """

    def __init__(self, *layers: Dataset) -> None:
        self._layers = layers

    def get(self, keyword: str) -> object:
        """Return the value of ``keyword``, None where no layer has it."""
        for layer in self._layers:
            if keyword in layer:
                value: object = layer.get(keyword)
                return value
        return None

    def __contains__(self, keyword: str) -> bool:
        return any(keyword in layer for layer in self._layers)


Attributes = Dataset | Layers


def inflate(file: IO[bytes], start: int, most_bytes: int) -> bytes:
    """Return the first ``most_bytes`` (or fewer, where it ends) of the deflated data set that begins at ``start``.

    Raises
    ------
    Refusal
        Code ``UNREADABLE`` if the stream is damaged or cut off.
    """
    file.seek(start)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = stream.decompress(file.read(), most_bytes)
    except zlib.error:
        raise Refusal("a deflated data set is damaged", code="UNREADABLE") from None
    if not stream.eof and len(data) < most_bytes:
        raise Refusal("a deflated data set is cut off", code="UNREADABLE")
    return data


def read_meta(file: IO[bytes]) -> tuple[int, str, str]:
    """Return where the data set begins, transfer syntax and media storage SOP class ('' without group 0002)."""
    file.seek(0)
    head = file.read(132)
    position = 132 if head[128:132] == b"DICM" else 0
    uids = {b"\x10\x00": "", b"\x02\x00": ""}
    while position < _META_LIMIT_BYTES:
        file.seek(position)
        element = file.read(12)
        if len(element) < 8 or element[:2] != b"\x02\x00":
            break
        if element[4:6] in _LONG_VRS and len(element) == 12:
            size, length = 12, struct.unpack_from("<I", element, 8)[0]
        else:
            size, length = 8, struct.unpack_from("<H", element, 6)[0]
        if element[2:4] in uids:
            file.seek(position + size)
            uids[element[2:4]] = file.read(min(length, 64)).rstrip(b"\0 ").decode("ascii", "replace")
        position += size + length
    return position, uids[b"\x10\x00"], uids[b"\x02\x00"]


def digest_of(file: IO[bytes], start: int) -> str:
    """Return the SHA-256 of everything from ``start`` on, hex."""
    file.seek(start)
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        digest.update(view[:count])
    return digest.hexdigest()


def _at_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return tag in (0x7FE00008, 0x7FE00009, 0x7FE00010)


def parse(file: IO[bytes], start: int, syntax: str, *, header_bytes: int = 64 << 20) -> tuple[Dataset, int, int]:
    """Return the data set up to the pixels, the offset of their value and its length (-1: none)."""
    if syntax == DEFLATED:
        # A header needs little of what a hostile file can inflate to; only a longer one is given more.
        stream: IO[bytes] = io.BytesIO(inflate(file, start, header_bytes))
        dataset: Dataset = read_dataset(stream, False, True, stop_when=_at_pixels)  # type: ignore[arg-type]
        implicit, little = False, True
        if stream.tell() + 12 > header_bytes:
            raise Refusal(f"the header of a deflated data set is longer than {header_bytes} bytes", code="UNREADABLE")
    else:
        stream = file
        stream.seek(0)
        dataset = dcmread(stream, stop_before_pixels=True, force=True)
        implicit, little = (bool(flag) for flag in dataset.original_encoding)
    order = "<" if little else ">"
    element = stream.tell()
    head = stream.read(12)
    if len(head) < 8 or struct.unpack_from(order + "HH", head) != (0x7FE0, 0x0010):
        return dataset, 0, -1
    if implicit:
        return dataset, element + 8, struct.unpack_from(order + "I", head, 4)[0]
    if head[4:6] in _LONG_VRS and len(head) == 12:
        return dataset, element + 12, struct.unpack_from(order + "I", head, 8)[0]
    return dataset, element + 8, struct.unpack_from(order + "H", head, 6)[0]


def readable(dataset: Attributes, keyword: str) -> object:
    """Return the value of an attribute, None where it is missing or cannot be converted.

    pydicom converts lazily, so a bad value raises here, and only its own attribute is lost.
    """
    try:
        value: object = dataset.get(keyword)
    except Exception:  # noqa: BLE001 - pydicom raises whatever it likes on hostile bytes
        return None
    return value


def text(dataset: Attributes, keyword: str) -> str:
    """Return a text or a number as text, several values joined by backslashes; '' for anything else."""
    value = readable(dataset, keyword)
    if value is None or isinstance(value, (Dataset, bytes)):
        return ""
    if isinstance(value, (str, int, float)):
        return str(value).strip()
    if isinstance(value, Sequence) and all(isinstance(part, (str, int, float)) for part in value):
        return "\\".join(str(part).strip() for part in value)
    return ""


def numbers(dataset: Attributes, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return exactly ``count`` finite numbers, else None."""
    value = readable(dataset, keyword)
    if count == 1 and isinstance(value, (int, float, str)):
        value = [value]
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or len(value) != count:
        return None
    try:
        found = tuple(float(part) for part in value)
    except (TypeError, ValueError):
        return None
    return found if all(map(math.isfinite, found)) else None


def number(dataset: Attributes, keyword: str) -> float | None:
    """Return one finite number, else None."""
    found = numbers(dataset, keyword, 1)
    return found[0] if found else None


def integer(dataset: Attributes, keyword: str) -> int | None:
    """Return one whole number, else None."""
    found = number(dataset, keyword)
    return int(found) if found is not None and found == int(found) else None


def zone(offset: str) -> timezone | None:
    """Return the zone of ``+HHMM`` or ``-HHMM`` (PS3.3 C.12.1.1.8), None for anything else."""
    found = re.fullmatch(r"([+-])(\d\d)([0-5]\d)", offset)
    if found is None:
        return None
    minutes = int(found[1] + "1") * (int(found[2]) * 60 + int(found[3]))
    return timezone(timedelta(minutes=minutes)) if -12 * 60 <= minutes <= 14 * 60 else None


def first_item(dataset: Attributes, keyword: str) -> Dataset | None:
    """Return the first item of a sequence, None where there is none."""
    value = readable(dataset, keyword)
    if isinstance(value, pydicom.Sequence) and value:
        item: Dataset = value[0]
        return item
    return None
