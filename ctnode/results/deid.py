"""De-identification by allow-list: an object for the outside is built anew from what may leave, nothing is taken away.

The Basic Application Level Confidentiality Profile of PS3.15 Annex E with the options Retain Longitudinal Temporal
Information with Modified Dates and Retain Device Identity in part (manufacturer and model). What is not listed here,
private attributes and text in structured reports above all, does not leave, at any depth. UIDs, subject and dates are
mapped with HMAC-SHA-256 under the key of the profile: the same source gives the same object, and originals and results
of one project still belong together.
"""

from __future__ import annotations

import hashlib
import hmac
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Final

import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID

from ctnode import __version__
from ctnode.ops.durable import write_durable
from ctnode.words import Refusal

REFUSED: Final = "NOT_DEIDENTIFIED"
# Days by which the dates of a subject are moved into the past.
_LONGEST_SHIFT_DAYS: Final = 3650
_STANDARD_UIDS: Final = "1.2.840.10008."
# Pixels of these are images of a scanner; those of Secondary Capture may show a name, unless ctnode drew them.
_IMAGES: Final = frozenset({"1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"})
_OWN: Final = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
        "1.2.840.10008.5.1.4.1.1.88.22",  # Enhanced SR
        "1.2.840.10008.5.1.4.1.1.88.33",  # Comprehensive SR
        "1.2.840.10008.5.1.4.1.1.88.34",  # Comprehensive 3D SR
    }
)
_TEXT_ITEMS: Final = frozenset({"TEXT", "PNAME", "DATE", "TIME", "DATETIME"})
# Attributes of these VRs say something only about the acquisition or the encoding when they stand in the list below.
_LISTED: Final = """
SpecificCharacterSet ImageType SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID
StudyDate SeriesDate AcquisitionDate ContentDate InstanceCreationDate StudyTime SeriesTime AcquisitionTime
ContentTime InstanceCreationTime AcquisitionDateTime TimezoneOffsetFromUTC Modality ConversionType Manufacturer
ManufacturerModelName SoftwareVersions BurnedInAnnotation BodyPartExamined ScanOptions SliceThickness KVP
SpacingBetweenSlices DataCollectionDiameter ReconstructionDiameter DistanceSourceToDetector
DistanceSourceToPatient GantryDetectorTilt TableHeight RotationDirection ExposureTime XRayTubeCurrent Exposure
FilterType GeneratorPower FocalSpots ConvolutionKernel PatientPosition RevolutionTime SingleCollimationWidth
TotalCollimationWidth TableSpeed TableFeedPerRotation SpiralPitchFactor CTDIvol SeriesNumber AcquisitionNumber
InstanceNumber PatientOrientation Laterality ImagePositionPatient ImageOrientationPatient SliceLocation
PositionReferenceIndicator SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames
FrameIncrementPointer Rows Columns PixelSpacing PixelAspectRatio BitsAllocated BitsStored HighBit
PixelRepresentation SmallestImagePixelValue LargestImagePixelValue PixelPaddingValue PixelPaddingRangeLimit
WindowCenter WindowWidth RescaleIntercept RescaleSlope RescaleType LossyImageCompression
LossyImageCompressionRatio LossyImageCompressionMethod PixelData ExtendedOffsetTable ExtendedOffsetTableLengths
PresentationLUTShape VOILUTFunction ReferencedSeriesSequence ReferencedInstanceSequence ReferencedSOPSequence
ReferencedSOPClassUID ReferencedSOPInstanceUID ReferencedFrameNumber SourceImageSequence DerivationImageSequence
DerivationCodeSequence PurposeOfReferenceCodeSequence ReferencedImageSequence CodeValue CodingSchemeDesignator
CodingSchemeVersion CodeMeaning SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
PlanePositionSequence PlaneOrientationSequence PixelMeasuresSequence FrameContentSequence DimensionIndexValues
StackID InStackPositionNumber SegmentIdentificationSequence ReferencedSegmentNumber
DimensionOrganizationSequence DimensionOrganizationUID DimensionIndexSequence DimensionIndexPointer
FunctionalGroupPointer DimensionOrganizationType SegmentationType SegmentationFractionalType
MaximumFractionalValue SegmentSequence SegmentNumber SegmentLabel SegmentAlgorithmType SegmentAlgorithmName
SegmentedPropertyCategoryCodeSequence SegmentedPropertyTypeCodeSequence
SegmentedPropertyTypeModifierCodeSequence AnatomicRegionSequence AnatomicRegionModifierSequence
RecommendedDisplayCIELabValue TrackingUID SegmentsOverlap ContentLabel CTImageFrameTypeSequence FrameType
PixelPresentation VolumetricProperties VolumeBasedCalculationTechnique PixelValueTransformationSequence
FrameVOILUTSequence CTAcquisitionTypeSequence CTReconstructionSequence CTGeometrySequence CTExposureSequence
CTXRayDetailsSequence CTTableDynamicsSequence FrameAnatomySequence FrameLaterality ValueType ContinuityOfContent
RelationshipType ConceptNameCodeSequence ConceptCodeSequence ContentSequence ContentTemplateSequence
MappingResource TemplateIdentifier MeasuredValueSequence NumericValue FloatingPointValue
MeasurementUnitsCodeSequence UID CompletionFlag VerificationFlag CurrentRequestedProcedureEvidenceSequence
"""
_ALLOWED: Final = frozenset(_LISTED.split())
# Type 1 and 2 attributes of the patient, study and equipment that Annex E empties.
_EMPTIED: Final = (
    "PatientBirthDate", "PatientSex", "ReferringPhysicianName", "StudyID", "AccessionNumber",
)  # fmt: skip
_METHODS: Final = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
)


@dataclass(frozen=True, slots=True)
class Profile:
    """A project and its key; who has the key can link subjects again, nobody else."""

    project: str
    key: bytes = field(repr=False)

    def mapped_uid(self, uid: str) -> str:
        """Return the UID that stands for ``uid`` outside, under 2.25 (PS3.5 B.2); those of the standard stay."""
        if not uid or uid.startswith(_STANDARD_UIDS):
            return uid
        return f"2.25.{int.from_bytes(self._mac('uid', uid)[:16], 'big')}"

    def subject(self, patient: str) -> str:
        """Return the ID of a subject in the project."""
        return f"{self.project}-{self._mac('subject', patient).hex()[:16]}"

    def shift(self, patient: str) -> timedelta:
        """Return by how much the dates of a patient move into the past; the same for all of them."""
        return timedelta(days=1 + int.from_bytes(self._mac("dates", patient)[:8], "big") % _LONGEST_SHIFT_DAYS)

    def _mac(self, what: str, value: str) -> bytes:
        message = "\x1f".join((self.project, what, value)).encode("utf-8", "surrogatepass")
        return hmac.digest(self.key, message, hashlib.sha256)


def deidentify(source: Dataset, profile: Profile) -> Dataset:
    """Return a new data set that holds of ``source`` only what may leave.

    Raises
    ------
    Refusal
        If the object is of a class whose content cannot be judged, or its pixels may show who the patient is.
    """
    _require_harmless(source)
    patient = _text(source, "PatientID")
    key = "\x1f".join((patient, _text(source, "IssuerOfPatientID"))) if patient else _text(source, "StudyInstanceUID")
    made = _allowed(source, profile, profile.shift(key))
    for keyword in _EMPTIED:
        setattr(made, keyword, None)
    made.PatientID = made.PatientName = profile.subject(key)
    made.PatientIdentityRemoved = "YES"
    made.LongitudinalTemporalInformationModified = "MODIFIED"
    made.DeidentificationMethod = f"ctnode {__version__}, allow-list"
    made.DeidentificationMethodCodeSequence = [_code(*method) for method in _METHODS]
    return made


def deidentify_file(source: Path, target: Path, profile: Profile) -> None:
    """Write the de-identified form of a Part 10 file, in the same transfer syntax.

    Raises
    ------
    Refusal
        As ``deidentify``, or if the file cannot be read.
    """
    try:
        dataset = pydicom.dcmread(source)
        made = deidentify(dataset, profile)
        syntax = dataset.file_meta.TransferSyntaxUID
        made.file_meta = FileMetaDataset()
        made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
        made.file_meta.TransferSyntaxUID = syntax
        made.file_meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, made, enforce_file_format=True)
    except (Refusal, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - pydicom raises whatever it likes on hostile bytes, RecursionError too
        raise Refusal(f"the object cannot be de-identified: {type(error).__name__}", code=REFUSED) from None
    write_durable(target, buffer.getvalue())


def _require_harmless(source: Dataset) -> None:
    sop_class = _text(source, "SOPClassUID")
    is_own = _text(source, "Manufacturer").lower() == "ctnode"
    if sop_class not in _IMAGES and not (is_own and sop_class in _OWN):
        raise Refusal("no profile for objects of this SOP class that ctnode did not make", code=REFUSED)
    if _text(source, "BurnedInAnnotation").upper() == "YES":
        raise Refusal("the pixels hold burned-in annotation", code=REFUSED)
    if sop_class in _IMAGES and {"SECONDARY", "SCREEN SAVE"} & set(_texts(source, "ImageType")):
        raise Refusal("a secondary image may show annotation in its pixels", code=REFUSED)


def _allowed(source: Dataset, profile: Profile, shift: timedelta) -> Dataset:
    made = Dataset()
    for tag in source.keys():  # noqa: SIM118 - a Dataset iterates over elements, and those decode
        keyword = pydicom.datadict.keyword_for_tag(tag)
        if tag.is_private or keyword not in _ALLOWED:
            continue
        element = source[tag]
        if element.VR == "SQ":
            items = [_allowed(item, profile, shift) for item in element.value or [] if _may_stay(keyword, item)]
            made.add(DataElement(tag, "SQ", items))
        elif pydicom.datadict.dictionary_VR(tag) != element.VR and element.VR not in _binary_vrs(tag):
            continue
        else:
            made.add(_mapped(element, profile, shift))
    if _text(source, "CodingSchemeDesignator").startswith("99") and "CodeMeaning" in made:
        # A private scheme (PS3.16 8): its meanings are whatever somebody typed.
        made.CodeMeaning = "private code"
    return made


def _binary_vrs(tag: int) -> set[str]:
    """Return the VRs that the dictionary lets an ambiguous attribute have, such as US or SS."""
    return set(pydicom.datadict.dictionary_VR(tag).split(" or "))


def _may_stay(keyword: str, item: Dataset) -> bool:
    return keyword != "ContentSequence" or _text(item, "ValueType") not in _TEXT_ITEMS


def _mapped(element: DataElement, profile: Profile, shift: timedelta) -> DataElement:
    value = element.value
    if element.VR == "UI":
        many = [value] if isinstance(value, str) else list(value or [])
        mapped = [profile.mapped_uid(str(uid)) for uid in many]
        value = mapped[0] if len(mapped) == 1 else mapped
    elif element.VR in {"DA", "DT"}:
        value = _moved(str(value or ""), shift)
    return DataElement(element.tag, element.VR, value)


def _moved(text: str, shift: timedelta) -> str:
    """Return a date moved into the past, with the time of day behind it; what is none becomes empty."""
    try:
        moved = date(int(text[:4]), int(text[4:6]), int(text[6:8])) - shift
    except (ValueError, OverflowError):
        return ""
    rest = text[8:]
    return f"{moved:%Y%m%d}{rest}" if all(one in "0123456789.+-" for one in rest) else f"{moved:%Y%m%d}"


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()


def _texts(dataset: Dataset, keyword: str) -> Sequence[str]:
    value = dataset.get(keyword) or []
    return [str(one).upper() for one in ([value] if isinstance(value, str) else value)]
