"""The lung mask as DICOM Segmentation (PS3.3 A.51, Label Map A.51.B): one frame for each source slice that holds some.

The functional groups of the frames are encoded here, since there are hundreds of them and each is alike; all else goes
through pydicom. Frames lie on the source slices: where the volume was repaired, the mask is sampled back onto them.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pydicom.valuerep import format_number_as_ds

from ctnode import __version__
from ctnode.ct.dataset import text
from ctnode.ct.grid import SourceImage, Volume
from ctnode.ct.lungs import Lungs
from ctnode.ops.durable import replacing
from ctnode.results.objects import (
    Origin,
    code,
    compression,
    derived_uid,
    describe,
    file_meta,
    frame_of_reference,
    patient_and_study,
    referenced,
)

BINARY_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.66.4"
LABELMAP_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.66.7"
SERIES_NUMBER: Final = 902
SAMPLED_BACK: Final = "mask sampled back onto the source slices"

# Number, SNOMED CT code, meaning, CIELab of the colours in the pictures as PS3.3 C.10.7.1.1 scales it.
SEGMENTS: Final = (
    (1, "3341006", "Right lung", (46662, 37094, 50637)),
    (2, "44029006", "Left lung", (46334, 29427, 24209)),
    (3, "89187006", "Airway structure", (58530, 31040, 51158)),
)
_Labels = npt.NDArray[np.uint8]


def write_seg(path: Path, volume: Volume, lungs: Lungs, origin: Origin, *, labelmap: bool = False) -> None:
    """Write the mask of ``lungs`` to ``path``, fsynced; BINARY, or LABELMAP which fewer viewers know.

    Raises
    ------
    ValueError
        If the mask is empty.
    """
    frames = _frames(volume, lungs.labels, labelmap=labelmap)
    if not frames:
        raise ValueError("a segmentation without any voxel has no frame")
    dataset = _header(volume, origin, len(frames), labelmap=labelmap)
    dataset.file_meta = file_meta(dataset)
    head = io.BytesIO()
    pydicom.dcmwrite(head, dataset, enforce_file_format=True)
    pixels = _packed_on(frames, labelmap=labelmap)
    length = sum(part.size for part in pixels)
    with replacing(path, mode=0o644) as file:
        file.write(head.getvalue())
        file.write(_sequence(0x52009230, *map(_frame_item, frames)))
        file.write(_head(0x7FE00010, b"OB", length + length % 2))
        # Frame by frame, so that the whole is never held twice.
        for part in pixels:
            file.write(np.ascontiguousarray(part).data)
        file.write(b"\x00" * (length % 2))


def sources_of(volume: Volume) -> tuple[SourceImage, ...]:
    """Return the images of ``volume``; its own slices without UIDs where it does not know them."""
    if volume.sources:
        return volume.sources
    slices, rows, columns = volume.grid.shape
    return tuple(
        SourceImage("", "", 0, rows, columns, tuple(volume.grid.to_lps_mm((0, 0, k)).tolist())) for k in range(slices)
    )


def is_mapped(volume: Volume) -> bool:
    """Return whether each slice of ``volume`` is a source image as it was."""
    sources = sources_of(volume)
    same = len(sources) == len(volume.sop_uids) and sources[0].rows == volume.grid.shape[1]
    return same and all(image.sop_uid == uid for image, uid in zip(sources, volume.sop_uids, strict=True))


def _on_source(volume: Volume, labels: _Labels, image: SourceImage) -> _Labels:
    """Return the labels ``(rows, columns)`` on one source slice, from the nearest voxels of the grid."""
    inverse = np.linalg.inv(volume.grid.affine)
    column, row, place = (round(value) for value in (inverse @ (*image.position_mm, 1.0))[:3].tolist())
    shape = image.rows, image.columns
    if (row, column) == (0, 0) and 0 <= place < len(labels) and labels.shape[1:] == shape:
        whole: _Labels = labels[place]
        return whole
    plane = np.zeros(shape, dtype=np.uint8)
    if 0 <= place < len(labels):
        part = labels[place, max(row, 0) : row + image.rows, max(column, 0) : column + image.columns]
        top, left = max(-row, 0), max(-column, 0)
        plane[top : top + part.shape[0], left : left + part.shape[1]] = part
    return plane


# Number of the source image from 1, the image, the segment (0: all, in a label map), and the pixels.
_Frame = tuple[int, SourceImage, int, _Labels]


def _frames(volume: Volume, labels: _Labels, *, labelmap: bool) -> tuple[_Frame, ...]:
    """Return the frames that hold anything, by segment and then by image."""
    frames: list[_Frame] = []
    for number, image in enumerate(sources_of(volume), start=1):
        plane = _on_source(volume, labels, image)
        if labelmap:
            if plane.any():
                frames.append((number, image, 0, plane))
            continue
        for segment, *_ in SEGMENTS:
            mask = plane == segment
            if mask.any():
                # Packed at once where a frame ends with a byte, so that never more than bits are held.
                packed = np.packbits(mask, bitorder="little") if mask.size % 8 == 0 else mask.view(np.uint8)
                frames.append((number, image, segment, packed))
    return tuple(sorted(frames, key=lambda frame: frame[2]))


def _packed_on(frames: Sequence[_Frame], *, labelmap: bool) -> list[_Labels]:
    """Return the parts of Pixel Data in their order; bits run on over the ends of frames (PS3.5 8.1.1)."""
    parts = [pixels for *_, pixels in frames]
    image = frames[0][1]
    if labelmap or image.rows * image.columns % 8 == 0:
        return parts
    return [np.packbits(np.concatenate([part.ravel() for part in parts]), bitorder="little")]


def _header(volume: Volume, origin: Origin, count: int, *, labelmap: bool) -> Dataset:
    """Return everything before the functional groups of the frames."""
    dataset = patient_and_study(volume.header, origin.study)
    describe(dataset, origin, volume, "seg", LABELMAP_STORAGE if labelmap else BINARY_STORAGE, "SEG")
    dataset.DeviceSerialNumber = "none"
    dataset.SeriesNumber = SERIES_NUMBER
    dataset.SeriesDescription = "ctnode lung segmentation"
    dataset.BodyPartExamined = "CHEST"
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.BurnedInAnnotation = "NO"
    compression(dataset, volume)
    dataset.ContentLabel = "LUNGS"
    dataset.ContentDescription = "" if is_mapped(volume) else SAMPLED_BACK
    dataset.ContentCreatorName = None
    dataset.FrameOfReferenceUID = frame_of_reference(volume.header, origin)
    dataset.PositionReferenceIndicator = None
    _references(dataset, volume, origin)
    image = sources_of(volume)[0]
    bits = 8 if labelmap else 1
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.NumberOfFrames = count
    dataset.Rows, dataset.Columns = image.rows, image.columns
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = 0
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.SegmentationType = "LABELMAP" if labelmap else "BINARY"
    dataset.SegmentsOverlap = "NO"
    background = [_background()] if labelmap else []
    dataset.SegmentSequence = [*background, *(_segment(*segment) for segment in SEGMENTS)]
    if labelmap:
        dataset.add_new("PixelPaddingValue", "US", 0)
    _dimensions(dataset, origin.identity(volume), labelmap=labelmap)
    dataset.SharedFunctionalGroupsSequence = [_shared(volume)]
    return dataset


def _references(dataset: Dataset, volume: Volume, origin: Origin) -> None:
    """Add the Common Instance Reference (PS3.3 C.12.2), which viewers use to find the images."""
    classes = {image.sop_uid: image.sop_class for image in volume.sources}
    series = text(volume.header, "SeriesInstanceUID") or origin.series
    if not classes or "" in classes or not UID(series).is_valid:
        return
    item = Dataset()
    item.SeriesInstanceUID = series
    item.ReferencedInstanceSequence = [referenced(sop_class, sop_uid) for sop_uid, sop_class in classes.items()]
    dataset.ReferencedSeriesSequence = [item]


def _segment(number: int, value: str, meaning: str, lab: tuple[int, int, int]) -> Dataset:
    algorithm = Dataset()
    algorithm.AlgorithmFamilyCodeSequence = [code("123104", "DCM", "Morphological Operations")]
    algorithm.AlgorithmVersion = __version__
    algorithm.AlgorithmName = "ctnode"
    item = Dataset()
    item.SegmentNumber = number
    item.SegmentLabel = meaning
    item.SegmentedPropertyCategoryCodeSequence = [code("123037004", "SCT", "Anatomical Structure")]
    item.SegmentedPropertyTypeCodeSequence = [code(value, "SCT", meaning)]
    item.SegmentAlgorithmType = "AUTOMATIC"
    item.SegmentAlgorithmName = "ctnode"
    item.SegmentationAlgorithmIdentificationSequence = [algorithm]
    item.RecommendedDisplayCIELabValue = list(lab)
    return item


def _background() -> Dataset:
    item = _segment(0, "125040", "Background", (0, 32896, 32896))
    item.SegmentedPropertyCategoryCodeSequence = [code("91723000", "SCT", "Anatomical structure")]
    item.SegmentedPropertyTypeCodeSequence = [code("125040", "DCM", "Background")]
    return item


def _dimensions(dataset: Dataset, identity: str, *, labelmap: bool) -> None:
    uid = derived_uid("seg", "dimensions", identity)
    organization = Dataset()
    organization.DimensionOrganizationUID = uid
    dataset.DimensionOrganizationSequence = [organization]
    pointers = [(0x0062000B, 0x0062000A, "Segment"), (0x00200032, 0x00209113, "Position")][int(labelmap) :]
    dataset.DimensionIndexSequence = []
    for pointer, group, label in pointers:
        item = Dataset()
        item.DimensionOrganizationUID = uid
        item.DimensionIndexPointer = pointer
        item.FunctionalGroupPointer = group
        item.DimensionDescriptionLabel = label
        dataset.DimensionIndexSequence.append(item)


def _shared(volume: Volume) -> Dataset:
    slice_mm, row_mm, column_mm = volume.grid.spacing_mm
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [_decimal(value) for value in volume.grid.directions[:, :2].T.flat]
    measures.SliceThickness = measures.SpacingBetweenSlices = _decimal(slice_mm)
    measures.PixelSpacing = [_decimal(row_mm), _decimal(column_mm)]
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelMeasuresSequence = [measures]
    return shared


def _decimal(value: float) -> str:
    return str(format_number_as_ds(float(value) + 0.0))


def _frame_item(frame: _Frame) -> bytes:
    """Return the functional groups of one frame, encoded (PS3.3 C.7.6.16.2)."""
    number, image, segment, _ = frame
    index = struct.pack("<II", segment, number) if segment else struct.pack("<I", number)
    position = "\\".join(map(_decimal, image.position_mm)).encode("ascii")
    groups = [
        _sequence(0x00209111, _element(0x00209157, b"UL", index)),
        _sequence(0x00209113, _element(0x00200032, b"DS", position)),
    ]
    if image.sop_uid:
        source = [
            _element(0x00081150, b"UI", image.sop_class.encode("ascii")),
            _element(0x00081155, b"UI", image.sop_uid.encode("ascii")),
        ]
        if image.frame:
            source.append(_element(0x00081160, b"IS", str(image.frame).encode("ascii")))
        source += [_element(0x0028135A, b"CS", b"YES"), _sequence(0x0040A170, _SOURCE_IMAGE)]
        groups.insert(
            0, _sequence(0x00089124, _sequence(0x00082112, b"".join(source)) + _sequence(0x00089215, _SEGMENTATION))
        )
    if segment:
        groups.append(_sequence(0x0062000A, _element(0x0062000B, b"US", struct.pack("<H", segment))))
    return b"".join(groups)


_LONG: Final = frozenset({b"OB", b"SQ"})


def _element(tag: int, vr: bytes, value: bytes) -> bytes:
    """Encode one element in Explicit VR Little Endian (PS3.5 7.1.2)."""
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    return _head(tag, vr, len(value)) + value


def _head(tag: int, vr: bytes, length: int) -> bytes:
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    return head + (struct.pack("<xxI", length) if vr in _LONG else struct.pack("<H", length))


def _sequence(tag: int, *items: bytes) -> bytes:
    content = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)
    return _element(tag, b"SQ", content)


def _code(value: bytes, scheme: bytes, meaning: bytes) -> bytes:
    parts = ((0x00080100, b"SH", value), (0x00080102, b"SH", scheme), (0x00080104, b"LO", meaning))
    return b"".join(_element(*part) for part in parts)


_SOURCE_IMAGE: Final = _code(b"121322", b"DCM", b"Source image for image processing operation")
_SEGMENTATION: Final = _code(b"113076", b"DCM", b"Segmentation")
