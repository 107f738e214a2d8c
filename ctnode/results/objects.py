"""What all DICOM objects of a run share: patient and study of the source, our equipment, UIDs and times that repeat.

UIDs are UUIDv5 under 2.25 of what the object is made of, times come from the revision: a re-run gives the same bytes.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, cast

from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID, ExplicitVRLittleEndian

from ctnode import __version__
from ctnode.ct.dataset import readable, text, zone
from ctnode.ct.grid import Volume

_NAMESPACE: Final = uuid.UUID("7c1f3b0a-51f8-5f0e-9a35-5f3d0c9b7a11")

# Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1): Type 2 attributes are written empty where the source has
# none, Type 3 ones only where it has them.
_TYPE_2: Final = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
_TYPE_3: Final = (
    "SpecificCharacterSet",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "IssuerOfAccessionNumberSequence",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "StudyDescription",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "TimezoneOffsetFromUTC",
)
_METHODS: Final = frozenset({"DeidentificationMethod", "DeidentificationMethodCodeSequence"})


@dataclass(frozen=True, eq=False, slots=True)
class Origin:
    """What an object belongs to: ``study``, ``series`` and ``revision`` of the source, our settings, our time."""

    study: str
    series: str
    revision: int
    made_at: datetime
    settings_digest: str

    def identity(self, volume: Volume) -> str:
        """Return what the UIDs of objects made of ``volume`` depend on."""
        parts = (self.study, self.series, str(self.revision), volume.input_digest, __version__, self.settings_digest)
        return "|".join(parts)


def derived_uid(*parts: str) -> str:
    """Return a UID under 2.25 (PS3.5 B.2) that depends on ``parts`` alone."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, '|'.join(parts)).int}"


def patient_and_study(header: Dataset, study: str) -> Dataset:
    """Return a data set with the source's patient and study: its bytes, whether or not they fit its character set.

    An archive shows them for our objects as it shows them for the images, so it files both under one patient. Text of
    our own has to be ASCII, which every character set holds; a VR that depends on others has to be given.
    """
    dataset = Dataset()
    for keyword in _TYPE_3:
        if (element := _as_it_is(header, keyword)) is not None:
            dataset[keyword] = element
    copied(dataset, header, _TYPE_2)
    # PS3.3 C.7.1.1 wants a method where an identity was removed; many sources leave it out.
    if dataset.get("PatientIdentityRemoved") == "YES" and not any(method in dataset for method in _METHODS):
        dataset.DeidentificationMethod = "Not stated by the source"
    # Data sets without UIDs are grouped under a name that is none; their report still needs a valid one.
    named = study if UID(study).is_valid else derived_uid("study", study)
    dataset.StudyInstanceUID = text(header, "StudyInstanceUID") or named
    # It is written in the encoding that it has, so bytes stay as they are.
    charset = dataset.get("SpecificCharacterSet", default_encoding)
    dataset.set_original_encoding(False, True, convert_encodings(charset))
    return dataset


def _as_it_is(header: Dataset, keyword: str) -> DataElement | RawDataElement | None:
    """Return an element with the bytes of the source, None where it has no value."""
    if keyword not in header:
        return None
    # An empty element of a VR that does not exist would be converted as if its value had not been read yet.
    element = cast(DataElement | RawDataElement, header.get_item(keyword, keep_deferred=True))
    vr = dictionary_VR(keyword)
    if isinstance(element, RawDataElement) and vr != "SQ":
        value = (element.value or b"").rstrip(b" \0")
        if not value:
            return None
        # Of even length; a text ends with a blank (PS3.5 6.2).
        value += b" " * (len(value) % 2)
        return RawDataElement(element.tag, vr, len(value), value, 0, False, True)
    return header[keyword] if readable(header, keyword) is not None and not header[keyword].is_empty else None


def copied(dataset: Dataset, header: Dataset, keywords: Iterable[str]) -> None:
    """Add attributes of the source as they are, and empty where it has no value (Type 2)."""
    for keyword in keywords:
        if (element := _as_it_is(header, keyword)) is not None:
            dataset[keyword] = element
        else:
            setattr(dataset, keyword, None)


def frame_of_reference(header: Dataset, origin: Origin) -> str:
    """Return that of the source, or one that depends on its series where the source has none."""
    if has_frame_of_reference(header):
        return text(header, "FrameOfReferenceUID")
    return derived_uid("frame", origin.study, origin.series)


def has_frame_of_reference(header: Dataset) -> bool:
    """Return whether the source says in which frame of reference it lies."""
    found = text(header, "FrameOfReferenceUID")
    return bool(found) and UID(found).is_valid


def compression(dataset: Dataset, volume: Volume) -> None:
    """Say whether the pixels that the object comes from were ever compressed with loss (PS3.3 C.7.6.1.1.5)."""
    lossy = any(issue.code == "LOSSY" for issue in volume.issues)
    dataset.LossyImageCompression = "01" if lossy else "00"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if lossy and (element := _as_it_is(volume.header, keyword)) is not None:
            dataset[keyword] = element


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """Return the item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def referenced(sop_class: str, sop_uid: str) -> Dataset:
    """Return the item that refers to one instance."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_uid
    return item


def local(dataset: Dataset, moment: datetime) -> datetime:
    """Return ``moment`` in the zone of all times in ``dataset`` (PS3.3 C.12.1.1.8), unchanged where none is said."""
    offset = zone(text(dataset, "TimezoneOffsetFromUTC"))
    return moment if offset is None or moment.tzinfo is None else moment.astimezone(offset)


def references(dataset: Dataset, volume: Volume, origin: Origin) -> None:
    """Add the Common Instance Reference (PS3.3 C.12.2), which viewers use to find the images."""
    classes = {image.sop_uid: image.sop_class for image in volume.sources}
    series = text(volume.header, "SeriesInstanceUID") or origin.series
    if not classes or "" in classes or not UID(series).is_valid:
        return
    item = Dataset()
    item.SeriesInstanceUID = series
    item.ReferencedInstanceSequence = [referenced(sop_class, sop_uid) for sop_uid, sop_class in classes.items()]
    dataset.ReferencedSeriesSequence = [item]


def equipment(dataset: Dataset, made_at: datetime) -> None:
    """Add the general equipment and, as a mark that outlives coercion, the contributing equipment (PS3.3 C.12.1)."""
    for item in (dataset, part := Dataset()):
        item.Manufacturer = "ctnode"
        item.ManufacturerModelName = "ctnode"
        item.SoftwareVersions = __version__
    part.ContributionDateTime = local(dataset, made_at).strftime("%Y%m%d%H%M%S.%f")
    part.ContributionDescription = "CT processing"
    part.PurposeOfReferenceCodeSequence = [code("109102", "DCM", "Processing Equipment")]
    dataset.ContributingEquipmentSequence = [part]


def describe(dataset: Dataset, origin: Origin, volume: Volume, kind: str, sop_class: str, modality: str) -> None:
    """Add series, equipment and SOP common of an object of ``kind``; its number and text are the caller's."""
    identity = origin.identity(volume)
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = derived_uid(kind, "instance", identity)
    dataset.SeriesInstanceUID = derived_uid(kind, "series", identity)
    dataset.Modality = modality
    dataset.InstanceNumber = 1
    equipment(dataset, origin.made_at)
    moment = local(dataset, origin.made_at)
    date, time = moment.strftime("%Y%m%d"), moment.strftime("%H%M%S.%f")
    dataset.SeriesDate = dataset.ContentDate = dataset.InstanceCreationDate = date
    dataset.SeriesTime = dataset.ContentTime = dataset.InstanceCreationTime = time


def file_meta(dataset: Dataset) -> FileMetaDataset:
    """Return the file meta information of an Explicit VR Little Endian object."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    meta.ImplementationVersionName = f"CTNODE_{__version__}"[:16]
    return meta
