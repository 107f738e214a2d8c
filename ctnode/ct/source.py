"""One file of a series: its header as a frozen record, where its pixels lie, and the digest of its data set.

A file is read once: the header through pydicom, every byte after group 0002 through SHA-256 in chunks. Pixels are
not kept; ``ctnode.ct.decode`` reads them later from the place that is noted here, straight into the volume.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from pydicom import Dataset, dcmread
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag

from ctnode.words import Issue, Refusal, Severity

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
NATIVE: Final = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED})
UNDEFINED_LENGTH: Final = 0xFFFFFFFF

# What tells two images of one position apart, in the order in which it is tried (rule R4).
DISCRIMINATORS: Final = (
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "TriggerTime",
    "NominalPercentageOfCardiacPhase",
    "KVP",
    "ConvolutionKernel",
    "SliceThickness",
)

_CHUNK_BYTES: Final = 1 << 20
_META_LIMIT_BYTES: Final = 1 << 20
_LONG_VRS: Final = frozenset(
    {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UN", b"UT", b"UC", b"UR", b"SV", b"UV"}
)


@dataclass(frozen=True, slots=True)
class Frame:
    """What selection, geometry and decoding have to know about one image.

    Lengths are in millimetres in the patient coordinate system (LPS); a value that is missing, not finite or not
    readable is None or ''. ``pixel_offset`` counts from the start of the file, for deflated files from the start of
    the inflated data set; ``pixel_length`` is ``UNDEFINED_LENGTH`` for encapsulated pixels, -1 where there are none.
    ``digest`` is the SHA-256 over the data set after group 0002, hex.
    """

    path: Path
    digest: str
    sop_class: str
    sop_uid: str
    study_uid: str
    series_uid: str
    frame_of_reference: str
    modality: str
    transfer_syntax: str
    little_endian: bool
    frames: int
    rows: int
    columns: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    orientation: tuple[float, ...] | None
    position_mm: tuple[float, ...] | None
    pixel_spacing_mm: tuple[float, ...] | None
    slope: float | None
    intercept: float | None
    rescale_type: str
    has_lut: bool
    padding: int | None
    padding_limit: int | None
    lossy: bool
    image_type: tuple[str, ...]
    discriminators: tuple[str, ...]
    taken_at: str
    pixel_offset: int
    pixel_length: int

    @property
    def name(self) -> str:
        """Return what issues call this image: its SOP Instance UID, else a piece of its digest."""
        return self.sop_uid or f"sha256:{self.digest[:12]}"


def read_frames(paths: Sequence[Path], *, threads: int = 2) -> tuple[list[Frame], list[Issue]]:
    """Read the headers of ``paths``; both lists come in an order that does not depend on that of ``paths``."""
    with ThreadPoolExecutor(threads) as pool:
        read = list(pool.map(_frame_or_issue, paths))
    frames = [item for item in read if isinstance(item, Frame)]
    faults = [item for item in read if isinstance(item, Issue)]
    return (
        sorted(frames, key=lambda frame: (frame.sop_uid, frame.digest)),
        sorted(faults, key=lambda issue: issue.action),
    )


def _frame_or_issue(path: Path) -> Frame | Issue:
    try:
        return read_frame(path)
    except Refusal as fault:
        return Issue(fault.code, Severity.WARNING, fault.message)


def read_frame(path: Path) -> Frame:
    """Read one file.

    Raises
    ------
    Refusal
        Code ``UNREADABLE`` for whatever is no data set; the message names the file by a piece of its digest, since
        the order and the names of files are nothing that a result may depend on.
    """
    try:
        with path.open("rb") as file:
            start, syntax, media_class = _read_meta(file)
            if start >= os.fstat(file.fileno()).st_size:
                raise Refusal("a file ends before its data set begins", code="UNREADABLE")
            digest = _digest(file, start)
            try:
                dataset, offset, length = _parse(file, start, syntax)
                return _frame(path, digest, (syntax, media_class), dataset, offset, length)
            except Exception as fault:  # noqa: BLE001 - pydicom raises whatever it likes on hostile bytes, RecursionError too
                raise Refusal(
                    f"sha256:{digest[:12]} is not a readable data set: {type(fault).__name__}", code="UNREADABLE"
                ) from None
    except OSError as fault:
        raise Refusal(f"a file cannot be read: {fault.strerror}", code="UNREADABLE") from None


def read_header(frame: Frame) -> Dataset:
    """Return the data set of ``frame`` without its pixels."""
    with frame.path.open("rb") as file:
        start, syntax, _ = _read_meta(file)
        return _parse(file, start, syntax)[0]


def inflated(path: Path, *, limit_bytes: int = 1 << 30) -> bytes:
    """Return the inflated data set of a deflated file, never more than ``limit_bytes``.

    Raises
    ------
    Refusal
        Code ``UNREADABLE`` if there is more, or if the stream is broken.
    """
    with path.open("rb") as file:
        start, *_ = _read_meta(file)
        file.seek(start)
        return _inflate(file, limit_bytes)


def _inflate(file: IO[bytes], limit_bytes: int) -> bytes:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = stream.decompress(file.read(), limit_bytes)
    except zlib.error:
        raise Refusal("a deflated data set is damaged", code="UNREADABLE") from None
    if not stream.eof:
        raise Refusal(f"a deflated data set is cut off or larger than {limit_bytes} bytes", code="UNREADABLE")
    return data


def _read_meta(file: IO[bytes]) -> tuple[int, str, str]:
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


def _digest(file: IO[bytes], start: int) -> str:
    file.seek(start)
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        digest.update(view[:count])
    return digest.hexdigest()


def _at_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return tag in (0x7FE00008, 0x7FE00009, 0x7FE00010)


def _parse(file: IO[bytes], start: int, syntax: str) -> tuple[Dataset, int, int]:
    """Return the data set up to the pixels, the offset of their value and its length (-1: none)."""
    if syntax == DEFLATED:
        file.seek(start)
        stream: IO[bytes] = io.BytesIO(_inflate(file, 1 << 30))
        dataset: Dataset = read_dataset(stream, False, True, stop_when=_at_pixels)  # type: ignore[arg-type]
        implicit, little = False, True
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


def _frame(path: Path, digest: str, meta: tuple[str, str], dataset: Dataset, offset: int, length: int) -> Frame:
    syntax, media_class = meta
    if not (media_class or "SOPClassUID" in dataset or "Modality" in dataset or "Rows" in dataset):
        raise ValueError("no DICOM")
    implicit, little = dataset.original_encoding if syntax != DEFLATED else (False, True)
    if not syntax:
        syntax = IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE if little else EXPLICIT_BIG
    bits_allocated = _integer(dataset, "BitsAllocated") or 0
    bits_stored = _integer(dataset, "BitsStored") or bits_allocated
    high_bit = _integer(dataset, "HighBit")
    return Frame(
        path=path,
        digest=digest,
        sop_class=_text(dataset, "SOPClassUID") or media_class,
        sop_uid=_text(dataset, "SOPInstanceUID"),
        study_uid=_text(dataset, "StudyInstanceUID"),
        series_uid=_text(dataset, "SeriesInstanceUID"),
        frame_of_reference=_text(dataset, "FrameOfReferenceUID"),
        modality=_text(dataset, "Modality"),
        transfer_syntax=syntax,
        little_endian=bool(little),
        frames=_integer(dataset, "NumberOfFrames") or 1,
        rows=_integer(dataset, "Rows") or 0,
        columns=_integer(dataset, "Columns") or 0,
        samples=_integer(dataset, "SamplesPerPixel") or 1,
        photometric=_text(dataset, "PhotometricInterpretation"),
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        high_bit=bits_stored - 1 if high_bit is None else high_bit,
        signed=_integer(dataset, "PixelRepresentation") == 1,
        orientation=_numbers(dataset, "ImageOrientationPatient", 6),
        position_mm=_numbers(dataset, "ImagePositionPatient", 3),
        pixel_spacing_mm=_numbers(dataset, "PixelSpacing", 2),
        slope=_number(dataset, "RescaleSlope"),
        intercept=_number(dataset, "RescaleIntercept"),
        rescale_type=_text(dataset, "RescaleType").upper(),
        has_lut="ModalityLUTSequence" in dataset,
        padding=_integer(dataset, "PixelPaddingValue"),
        padding_limit=_integer(dataset, "PixelPaddingRangeLimit"),
        lossy=_text(dataset, "LossyImageCompression") == "01",
        image_type=tuple(part.strip().upper() for part in _text(dataset, "ImageType").split("\\")),
        discriminators=tuple(_text(dataset, keyword) for keyword in DISCRIMINATORS),
        taken_at=_taken_at(dataset),
        pixel_offset=offset,
        pixel_length=length,
    )


def readable(dataset: Dataset, keyword: str) -> object:
    """Return the value of an attribute, None where it is missing or cannot be converted.

    pydicom converts lazily, so a bad value raises here, and only its own attribute is lost.
    """
    try:
        value: object = dataset.get(keyword)
    except Exception:  # noqa: BLE001 - pydicom raises whatever it likes on hostile bytes
        return None
    return value


def _text(dataset: Dataset, keyword: str) -> str:
    value = readable(dataset, keyword)
    if value is None or isinstance(value, (Dataset, bytes)):
        return ""
    if isinstance(value, (str, int, float)):
        return str(value).strip()
    if isinstance(value, Sequence) and all(isinstance(part, (str, int, float)) for part in value):
        return "\\".join(str(part).strip() for part in value)
    return ""


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    value = readable(dataset, keyword)
    if count == 1 and isinstance(value, (int, float, str)):
        value = [value]
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or len(value) != count:
        return None
    try:
        numbers = tuple(float(part) for part in value)
    except (TypeError, ValueError):
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _number(dataset: Dataset, keyword: str) -> float | None:
    numbers = _numbers(dataset, keyword, 1)
    return numbers[0] if numbers else None


def _integer(dataset: Dataset, keyword: str) -> int | None:
    number = _number(dataset, keyword)
    return int(number) if number is not None and number == int(number) else None


def _taken_at(dataset: Dataset) -> str:
    """Return ``YYYYMMDDHHMMSS`` of the acquisition or, without it, of the content; '' if neither is whole."""
    stamps = [_text(dataset, "AcquisitionDateTime")]
    stamps += [_text(dataset, f"{kind}Date") + _text(dataset, f"{kind}Time") for kind in ("Acquisition", "Content")]
    return next((stamp[:14] for stamp in stamps if len(stamp) >= 14 and stamp[:14].isdigit()), "")
