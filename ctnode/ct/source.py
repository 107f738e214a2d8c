"""The images of a series: each a frozen record of its header, where its pixels lie, and the digest of its data set.

A file is read once: the header through pydicom, every byte after group 0002 through SHA-256 in chunks. Pixels are
not kept; ``ctnode.ct.decode`` reads them later from the place that is noted here, straight into the volume. The unit
is the frame, not the file: an Enhanced or Legacy Converted Enhanced CT gives one record for each of its frames, with
the functional groups of that frame over the shared ones over the data set (PS3.3 C.7.6.16, rules R20 and R25).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Final

import pydicom
from pydicom import Dataset

from ctnode.ct.dataset import (
    DEFLATED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    Layers,
    digest_of,
    first_item,
    integer,
    number,
    numbers,
    parse,
    read_meta,
    readable,
    text,
    zone,
)
from ctnode.words import Issue, Refusal, Severity, is_product

# What tells two images of one position apart, in the order in which it is tried (rule R4), and the attributes that say
# it in single-frame and in multi-frame images.
_TOLD_APART_BY: Final = {
    "AcquisitionNumber": ("FrameAcquisitionNumber", "AcquisitionNumber"),
    "TemporalPositionIdentifier": ("TemporalPositionIdentifier",),
    "TemporalPositionIndex": ("TemporalPositionIndex",),
    "TriggerTime": ("NominalCardiacTriggerDelayTime", "TriggerTime"),
    "NominalPercentageOfCardiacPhase": ("NominalPercentageOfCardiacPhase",),
    "KVP": ("KVP",),
    "EchoNumbers": ("EchoNumbers",),
    "ImageType value 4": (),
    "ConvolutionKernel": ("ConvolutionKernel",),
    "SliceThickness": ("SliceThickness",),
    "AcquisitionTime": ("FrameAcquisitionDateTime", "AcquisitionDateTime", "AcquisitionTime"),
    "ContentTime": ("ContentTime",),
}
DISCRIMINATORS: Final = tuple(_TOLD_APART_BY)


@dataclass(frozen=True, slots=True)
class Frame:
    """What selection, geometry and decoding have to know about one image: a file, or one frame of it.

    Lengths are in millimetres in the patient coordinate system (LPS); a value that is missing, not finite or not
    readable is None or ''. ``pixel_offset`` counts from the start of the file, for deflated files from the start of
    the inflated data set; ``frames`` images share that place, and this one is number ``index`` of them (from 0);
    ``pixel_length`` is ``UNDEFINED_LENGTH`` for encapsulated pixels, -1 where there are none.
    ``concatenation`` is (UID, number of this part, number of parts or 0), ``stack`` the StackID of the frame.
    ``digest`` is the SHA-256 over the data set after group 0002, hex. ``is_own`` says that a ctnode made it, or made
    what it was made of.
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
    index: int
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
    thickness_mm: float | None
    stack: str
    concatenation: tuple[str, int, int] | None
    taken_at: str
    pixel_offset: int
    pixel_length: int
    is_own: bool = False

    @property
    def name(self) -> str:
        """Return what issues call this image: its SOP Instance UID, else a piece of its digest."""
        name = self.sop_uid or f"sha256:{self.digest[:12]}"
        return name if self.frames == 1 else f"{name} frame {self.index + 1}"


def read_frames(paths: Sequence[Path], *, threads: int = 2) -> tuple[list[Frame], list[Issue]]:
    """Read the headers of ``paths``; both lists come in an order that does not depend on that of ``paths``."""
    with ThreadPoolExecutor(threads) as pool:
        read = list(pool.map(_frames_or_issue, paths))
    frames = list(chain.from_iterable(item for item in read if not isinstance(item, Issue)))
    faults = [item for item in read if isinstance(item, Issue)]
    return sorted(frames, key=in_order), sorted(faults, key=lambda issue: issue.action)


def in_order(frame: Frame) -> tuple[str, str, int]:
    """Sort by what an image is, never by where its file lies (rule R26)."""
    return frame.sop_uid, frame.digest, frame.index


def _frames_or_issue(path: Path) -> tuple[Frame, ...] | Issue:
    try:
        return read_file(path)
    except Refusal as fault:
        return Issue(fault.code, Severity.WARNING, fault.message)


def read_file(path: Path) -> tuple[Frame, ...]:
    """Read one file: one record, or for a multi-frame image one for each frame that says where it lies.

    Raises
    ------
    Refusal
        Code ``UNREADABLE`` for whatever is no data set; the message names the file by a piece of its digest, since
        the order and the names of files are nothing that a result may depend on.
    """
    try:
        with path.open("rb") as file:
            start, syntax, media_class = read_meta(file)
            if start >= os.fstat(file.fileno()).st_size:
                raise Refusal("a file ends before its data set begins", code="UNREADABLE")
            digest = digest_of(file, start)
            try:
                dataset, offset, length = parse(file, start, syntax)
                return tuple(_frames(path, digest, (syntax, media_class), dataset, (offset, length)))
            except Exception as fault:  # noqa: BLE001 - pydicom raises whatever it likes on hostile bytes, RecursionError too
                raise Refusal(
                    f"sha256:{digest[:12]} is not a readable data set: {type(fault).__name__}", code="UNREADABLE"
                ) from None
    except OSError as fault:
        raise Refusal(f"a file cannot be read: {fault.strerror}", code="UNREADABLE") from None


def read_header(frame: Frame) -> Dataset:
    """Return the data set of the file of ``frame`` without its pixels."""
    with frame.path.open("rb") as file:
        start, syntax, _ = read_meta(file)
        return parse(file, start, syntax)[0]


def attributes(dataset: Dataset, index: int) -> Layers:
    """Return the attributes of the frame ``index``: its functional groups, the shared ones, the data set."""
    groups = readable(dataset, "PerFrameFunctionalGroupsSequence")
    own = groups[index] if isinstance(groups, pydicom.Sequence) and index < len(groups) else None
    shared = first_item(dataset, "SharedFunctionalGroupsSequence")
    return Layers(*_items(own), *_items(shared), dataset)


def _items(group: Dataset | None) -> Iterator[Dataset]:
    """Yield the one item of each functional group macro."""
    for element in group or ():
        if element.VR == "SQ" and element.value:
            yield element.value[0]


def _frames(
    path: Path, digest: str, meta: tuple[str, str], dataset: Dataset, place: tuple[int, int]
) -> Iterator[Frame]:
    syntax, media_class = meta
    if not (media_class or "SOPClassUID" in dataset or "Modality" in dataset or "Rows" in dataset):
        raise ValueError("no DICOM")
    implicit, little = dataset.original_encoding if syntax != DEFLATED else (False, True)
    if not syntax:
        syntax = IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE if little else EXPLICIT_BIG
    meta = syntax, text(dataset, "SOPClassUID") or media_class
    groups = readable(dataset, "PerFrameFunctionalGroupsSequence")
    # What the file claims decides nothing: the groups are there and can be counted.
    count = len(groups) if isinstance(groups, pydicom.Sequence) else 0
    is_own = _is_own(dataset)
    for index in range(max(1, count)):
        layers = attributes(dataset, index) if count else Layers(dataset)
        yield _frame(path, digest, meta, layers, place, index, little=bool(little), is_own=is_own)


def _frame(
    path: Path,
    digest: str,
    meta: tuple[str, str],
    found: Layers,
    place: tuple[int, int],
    index: int,
    *,
    little: bool,
    is_own: bool,
) -> Frame:
    bits_allocated = integer(found, "BitsAllocated") or 0
    bits_stored = integer(found, "BitsStored") or bits_allocated
    high_bit = integer(found, "HighBit")
    table = first_item(found, "ModalityLUTSequence")
    kind = text(found, "FrameType") or text(found, "ImageType")
    image_type = tuple(part.strip().upper() for part in kind.split("\\"))
    return Frame(
        path=path,
        digest=digest,
        sop_class=meta[1],
        sop_uid=text(found, "SOPInstanceUID"),
        study_uid=text(found, "StudyInstanceUID"),
        series_uid=text(found, "SeriesInstanceUID"),
        frame_of_reference=text(found, "FrameOfReferenceUID"),
        modality=text(found, "Modality"),
        transfer_syntax=meta[0],
        little_endian=little,
        frames=max(1, integer(found, "NumberOfFrames") or 1),
        index=index,
        rows=integer(found, "Rows") or 0,
        columns=integer(found, "Columns") or 0,
        samples=integer(found, "SamplesPerPixel") or 1,
        photometric=text(found, "PhotometricInterpretation"),
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        high_bit=bits_stored - 1 if high_bit is None else high_bit,
        signed=integer(found, "PixelRepresentation") == 1,
        orientation=numbers(found, "ImageOrientationPatient", 6),
        position_mm=numbers(found, "ImagePositionPatient", 3),
        pixel_spacing_mm=numbers(found, "PixelSpacing", 2),
        slope=number(found, "RescaleSlope"),
        intercept=number(found, "RescaleIntercept"),
        rescale_type=(text(found, "RescaleType") if table is None else text(table, "ModalityLUTType")).upper(),
        has_lut=table is not None,
        padding=integer(found, "PixelPaddingValue"),
        padding_limit=integer(found, "PixelPaddingRangeLimit"),
        lossy=text(found, "LossyImageCompression") == "01",
        image_type=image_type,
        discriminators=tuple(
            next((value for keyword in keywords if (value := text(found, keyword))), "")
            if keywords
            else "\\".join(image_type[3:4])
            for keywords in _TOLD_APART_BY.values()
        ),
        thickness_mm=number(found, "SliceThickness"),
        stack=text(found, "StackID"),
        concatenation=_concatenation(found),
        taken_at=_taken_at(found),
        pixel_offset=place[0],
        pixel_length=place[1],
        is_own=is_own,
    )


def _is_own(dataset: Dataset) -> bool:
    """Return whether ctnode is the equipment of an object, or contributed to it (PS3.3 C.7.5.1, C.12.1.1.5)."""
    contributing = readable(dataset, "ContributingEquipmentSequence")
    items = contributing if isinstance(contributing, pydicom.Sequence) else ()
    return any(
        is_product(text(one, keyword))
        for one in (dataset, *items)
        for keyword in ("Manufacturer", "ManufacturerModelName", "SoftwareVersions")
    )


def _concatenation(found: Layers) -> tuple[str, int, int] | None:
    uid = text(found, "ConcatenationUID")
    part = integer(found, "InConcatenationNumber")
    return (uid, part, integer(found, "InConcatenationTotalNumber") or 0) if uid and part is not None else None


def _taken_at(found: Layers) -> str:
    """Return ``YYYYMMDDHHMMSS`` of the acquisition or, without it, of the content; '' if neither is whole.

    In UTC where the value or the data set says how far it is from that, else as it stands.
    """
    stamps = [text(found, "AcquisitionDateTime")]
    stamps += [text(found, f"{kind}Date") + text(found, f"{kind}Time") for kind in ("Acquisition", "Content")]
    for stamp in stamps:
        if len(stamp) >= 14 and stamp[:14].isdigit():
            offset = zone(stamp[-5:]) or zone(text(found, "TimezoneOffsetFromUTC"))
            try:
                moment = datetime.strptime(stamp[:14], "%Y%m%d%H%M%S").replace(tzinfo=offset or UTC).astimezone(UTC)
            except (ValueError, OverflowError):
                continue
            return f"{moment:%Y%m%d%H%M%S}".rjust(14, "0")
    return ""
