"""What the index knows of an instance: read from file meta and data set with the bounded scanner."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ctnode.archive import elements
from ctnode.words import BadInstance, is_product

SOP_CLASS: Final = 0x00080016
SOP_INSTANCE: Final = 0x00080018
STUDY: Final = 0x0020000D
SERIES: Final = 0x0020000E
UID_TAGS: Final = frozenset({SOP_CLASS, SOP_INSTANCE, STUDY, SERIES})

_IMAGE_TYPE: Final = 0x00080008
_MODALITY: Final = 0x00080060
_MANUFACTURER: Final = 0x00080070
_MODEL: Final = 0x00081090
_CONTRIBUTING: Final = 0x0018A001
_PATIENT_NAME: Final = 0x00100010
_PATIENT_ID: Final = 0x00100020
_PATIENT_ISSUER: Final = 0x00100021
_PATIENT_BIRTH: Final = 0x00100030
_SOFTWARE: Final = 0x00181020
_INSTANCE_NUMBER: Final = 0x00200013
_ACQUISITION: Final = 0x00200012
_POSITION: Final = 0x00200032
_ORIENTATION: Final = 0x00200037
_FRAME_OF_REFERENCE: Final = 0x00200052
_IMAGES_IN_ACQUISITION: Final = 0x00201002
_CONCATENATION: Final = 0x00209161
_IN_CONCATENATION: Final = 0x00209162
_CONCATENATION_TOTAL: Final = 0x00209163
_FRAMES: Final = 0x00280008
_ROWS: Final = 0x00280010
_COLUMNS: Final = 0x00280011
_INDEXED: Final = UID_TAGS | {
    _IMAGE_TYPE, _MODALITY, _MANUFACTURER, _MODEL, _SOFTWARE, _CONTRIBUTING, _PATIENT_NAME,
    _PATIENT_ID, _PATIENT_ISSUER, _PATIENT_BIRTH,
    _ACQUISITION, _INSTANCE_NUMBER, _POSITION, _ORIENTATION, _FRAME_OF_REFERENCE, _IMAGES_IN_ACQUISITION,
    _CONCATENATION, _IN_CONCATENATION, _CONCATENATION_TOTAL, _FRAMES, _ROWS, _COLUMNS,
}  # fmt: skip

PREAMBLE_BYTES: Final = 128
# Group 0002 is explicit little endian in every file (PS3.10 7.1).
_META_ELEMENT: Final = struct.Struct("<HH2sH").unpack_from
_LENGTH32: Final = struct.Struct("<L").unpack_from
_LONG_META_VRS: Final = frozenset({b"OB", b"OW", b"UN", b"UR", b"UT"})
# The name as a value of its own inside the equipment that contributed, in whatever encoding.
_NAMED: Final = re.compile(rb"(?<![a-z0-9])ctnode(?![a-z0-9])", re.IGNORECASE)
_META_LIMIT_BYTES: Final = 1 << 16
# Nearly every header ends within this; a read of so much costs less than a mapping.
_FIRST_LOOK_BYTES: Final = 1 << 14


@dataclass(frozen=True, slots=True)
class Uids:
    """The four UIDs that name an instance."""

    sop_class: str
    sop_instance: str
    study: str
    series: str


@dataclass(frozen=True, slots=True)
class Header:
    """The elements of an instance that the node decides on.

    ``patient_key`` is a digest, not an identity. ``position_mm`` is the projection of ImagePositionPatient on the
    slice normal in millimetres, None where the image has none. ``concatenation`` is the UID of the multi-frame image
    that it is a part of, empty where it is none.
    """

    uids: Uids
    transfer_syntax: str
    digest: str
    dataset_bytes: int
    modality: str
    patient_key: str
    frame_of_reference: str
    rows: int
    columns: int
    frames: int
    instance_number: int | None
    position_mm: float | None
    is_localizer: bool
    is_own_result: bool
    acquisition: int | None = None
    images_in_acquisition: int | None = None
    concatenation: str = ""
    in_concatenation: int | None = None
    concatenation_total: int | None = None


@dataclass(frozen=True, slots=True)
class Meta:
    """The file meta information of a Part 10 file: the elements the node reads, and where the data set begins."""

    transfer_syntax: str
    sop_class: str
    sop_instance: str
    own_digest: bytes
    dataset_start: int


def text(value: bytes) -> str:
    """Decode a value of the default repertoire, without its padding."""
    return value.decode("latin-1").strip(" \0")


def uid(value: bytes) -> str:
    """Decode a UID without its trailing padding; an inner NUL stays to be seen."""
    return value.decode("latin-1").rstrip(" \0")


def read_uids(data: elements.Buffer, transfer_syntax: str, *, whole: bool) -> Uids:
    """Read the four UIDs from the beginning of an encoded data set.

    Raises
    ------
    ShortBuffer
        If ``data`` is only a part and ends before them.
    BadInstance
        If the bytes are no data set.
    """
    if transfer_syntax == elements.DEFLATED_LITTLE:
        data = elements.inflate(data)
    return _uids(elements.scan(data, transfer_syntax, UID_TAGS, whole=whole))


def _uids(found: dict[int, bytes]) -> Uids:
    return Uids(
        sop_class=uid(found.get(SOP_CLASS, b"")),
        sop_instance=uid(found.get(SOP_INSTANCE, b"")),
        study=uid(found.get(STUDY, b"")),
        series=uid(found.get(SERIES, b"")),
    )


def read_meta(data: elements.Buffer) -> Meta | None:
    """Read the file meta information (PS3.10 7.1); None where the bytes have no preamble.

    Raises
    ------
    BadInstance
        If there is a preamble but no sound group 0002 behind it.
    """
    if len(data) < PREAMBLE_BYTES + 4 or bytes(data[PREAMBLE_BYTES : PREAMBLE_BYTES + 4]) != b"DICM":
        return None
    position = PREAMBLE_BYTES + 4
    found: dict[int, bytes] = {}
    end = len(data)
    limit = min(end, _META_LIMIT_BYTES)
    while position + 8 <= end:
        group, element, vr, length = _META_ELEMENT(data, position)
        if group != 0x0002:
            break
        position += 8
        if vr in _LONG_META_VRS:
            if position + 4 > end:
                raise BadInstance("the file meta information is cut off")
            (length,) = _LENGTH32(data, position)
            position += 4
        if position + length > limit:
            raise BadInstance("the file meta information is cut off or too long")
        found[element] = bytes(data[position : position + length])
        position += length
    transfer_syntax = uid(found.get(0x0010, b""))
    if not transfer_syntax:
        raise BadInstance("the file meta information names no transfer syntax")
    return Meta(
        transfer_syntax, uid(found.get(0x0002, b"")), uid(found.get(0x0003, b"")), found.get(0x0102, b""), position
    )


def identity(digest: bytes | str, transfer_syntax: str) -> str:
    """Return what makes two instances the same: the digest of the data set and its encoding."""
    text_digest = digest if isinstance(digest, str) else digest.hex()
    return f"{text_digest}:{transfer_syntax}"


def read_header(path: Path) -> Header:
    """Read what the index needs from a file of the journal or the store.

    Raises
    ------
    BadInstance
        If the file is none of ours or its data set cannot be scanned.
    OSError
        If the file cannot be read.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(file).st_size
        if size == 0:
            raise BadInstance("the file is empty")
        head = os.pread(file, min(size, _FIRST_LOOK_BYTES), 0)
        try:
            return _header(head, size, whole=len(head) == size)
        except elements.ShortBuffer:
            with mmap.mmap(file, size, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
                return _header(view, size, whole=True)
    finally:
        os.close(file)


def _header(view: elements.Buffer, size: int, *, whole: bool) -> Header:
    meta = _meta(view, whole=whole)
    start = meta.dataset_start
    if meta.transfer_syntax == elements.DEFLATED_LITTLE:
        if not whole:
            raise elements.ShortBuffer("what is deflated is read whole")
        with memoryview(view)[start:] as deflated:
            # Released even when an exception holds the frame: a mapping with open views cannot be closed.
            inflated = elements.inflate(deflated)
        found = elements.scan(inflated, meta.transfer_syntax, _INDEXED)
    else:
        found = elements.scan(view, meta.transfer_syntax, _INDEXED, start=start, whole=whole)
    big = meta.transfer_syntax == elements.EXPLICIT_BIG
    return Header(
        uids=_uids(found),
        transfer_syntax=meta.transfer_syntax,
        digest=meta.own_digest.hex(),
        dataset_bytes=size - start,
        modality=text(found.get(_MODALITY, b""))[:16],
        patient_key=_patient_key(found),
        frame_of_reference=uid(found.get(_FRAME_OF_REFERENCE, b""))[:64],
        rows=_unsigned_short(found.get(_ROWS, b""), big=big),
        columns=_unsigned_short(found.get(_COLUMNS, b""), big=big),
        frames=max(_integer(found.get(_FRAMES, b"")) or 1, 1),
        instance_number=_integer(found.get(_INSTANCE_NUMBER, b"")),
        position_mm=_position_mm(found),
        is_localizer="LOCALIZER" in text(found.get(_IMAGE_TYPE, b"")).upper().split("\\"),
        is_own_result=is_own(found),
        acquisition=_integer(found.get(_ACQUISITION, b"")),
        images_in_acquisition=_integer(found.get(_IMAGES_IN_ACQUISITION, b"")),
        concatenation=uid(found.get(_CONCATENATION, b""))[:64],
        in_concatenation=_count(found.get(_IN_CONCATENATION, b""), big=big),
        concatenation_total=_count(found.get(_CONCATENATION_TOTAL, b""), big=big),
    )


def is_own(found: dict[int, bytes]) -> bool:
    """Return whether a ctnode made it: each of the marks is enough, since a PACS may coerce the others."""
    named = any(is_product(text(found.get(tag, b""))) for tag in (_MANUFACTURER, _MODEL, _SOFTWARE))
    return named or _NAMED.search(found.get(_CONTRIBUTING, b"")) is not None


def _meta(view: elements.Buffer, *, whole: bool) -> Meta:
    try:
        meta = read_meta(view)
    except BadInstance as error:
        if whole:
            raise
        raise elements.ShortBuffer(str(error)) from None
    if meta is None:
        raise BadInstance("the file has no preamble")
    if len(meta.own_digest) != hashlib.sha256().digest_size:
        raise BadInstance("the file carries no digest of its data set")
    return meta


def _patient_key(found: dict[int, bytes]) -> str:
    """Return a digest that tells patients apart: by ID and issuer, else by name and birth date."""
    parts = [text(found.get(tag, b"")) for tag in (_PATIENT_ID, _PATIENT_ISSUER)]
    if parts[0]:
        return patient_key(*parts)
    return _digest("", *(text(found.get(tag, b"")) for tag in (_PATIENT_NAME, _PATIENT_BIRTH)))


def patient_key(patient_id: str, issuer: str) -> str:
    """Return the digest that stands for a Patient ID of an issuer in the index."""
    return _digest(patient_id, issuer)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:32]


def _unsigned_short(value: bytes, *, big: bool) -> int:
    return int(struct.unpack(">H" if big else "<H", value[:2])[0]) if len(value) >= 2 else 0


def _count(value: bytes, *, big: bool) -> int | None:
    """Return an unsigned short that counts from 1; None where there is none."""
    return _unsigned_short(value, big=big) or None


def _integer(value: bytes) -> int | None:
    try:
        number = int(text(value).partition("\\")[0])
    except ValueError:
        return None
    # PS3.5 6.2: IS is a signed 32-bit integer.
    return number if abs(number) <= 1 << 31 else None


def _numbers(value: bytes) -> list[float]:
    try:
        return [float(part) for part in text(value).split("\\")]
    except ValueError:
        return []


def _position_mm(found: dict[int, bytes]) -> float | None:
    position, axes = _numbers(found.get(_POSITION, b"")), _numbers(found.get(_ORIENTATION, b""))
    if len(position) != 3 or len(axes) != 6:
        return None
    (a, b, c), (d, e, f) = axes[:3], axes[3:]
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    projected = sum(p * n for p, n in zip(position, normal, strict=True))
    return projected if abs(projected) < 1e6 else None
