"""What may leave for the outside: the attributes, and of the texts among them the values.

Attributes that are not named here do not leave, whatever PS3.15 Annex E says of them. Times of day, numbers and code
strings of those that are named leave as they are; the free texts among them are TECHNICAL, or one of few known values.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from pydicom.config import IGNORE
from pydicom.uid import UID

# Of images and of what ctnode makes of them: acquisition, geometry and encoding.
_BOTH: Final = """
SpecificCharacterSet ImageType SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID
FrameOfReferenceUID StudyDate SeriesDate AcquisitionDate ContentDate InstanceCreationDate StudyTime SeriesTime
AcquisitionTime ContentTime InstanceCreationTime AcquisitionDateTime Modality ConversionType Manufacturer
ManufacturerModelName SoftwareVersions BurnedInAnnotation BodyPartExamined ScanOptions SliceThickness KVP
SpacingBetweenSlices DataCollectionDiameter ReconstructionDiameter DistanceSourceToDetector
DistanceSourceToPatient GantryDetectorTilt TableHeight RotationDirection ExposureTime XRayTubeCurrent Exposure
FilterType GeneratorPower FocalSpots ConvolutionKernel PatientPosition RevolutionTime SingleCollimationWidth
TotalCollimationWidth TableSpeed TableFeedPerRotation SpiralPitchFactor CTDIvol SeriesNumber AcquisitionNumber
InstanceNumber PatientOrientation Laterality ImagePositionPatient ImageOrientationPatient SliceLocation
SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames FrameIncrementPointer Rows
Columns PixelSpacing PixelAspectRatio BitsAllocated BitsStored HighBit PixelRepresentation
SmallestImagePixelValue LargestImagePixelValue PixelPaddingValue PixelPaddingRangeLimit WindowCenter
WindowWidth RescaleIntercept RescaleSlope RescaleType LossyImageCompression LossyImageCompressionRatio
LossyImageCompressionMethod PixelData ExtendedOffsetTable ExtendedOffsetTableLengths PresentationLUTShape
VOILUTFunction ReferencedSeriesSequence ReferencedInstanceSequence ReferencedSOPSequence ReferencedSOPClassUID
ReferencedSOPInstanceUID ReferencedFrameNumber SourceImageSequence DerivationImageSequence
DerivationCodeSequence PurposeOfReferenceCodeSequence ReferencedImageSequence CodeValue CodingSchemeDesignator
CodeMeaning SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence PlanePositionSequence
PlaneOrientationSequence PixelMeasuresSequence FrameContentSequence DimensionIndexValues StackID
InStackPositionNumber DimensionOrganizationSequence DimensionOrganizationUID DimensionIndexSequence
DimensionIndexPointer FunctionalGroupPointer DimensionOrganizationType AnatomicRegionSequence
AnatomicRegionModifierSequence CTImageFrameTypeSequence FrameType PixelPresentation VolumetricProperties
VolumeBasedCalculationTechnique PixelValueTransformationSequence FrameVOILUTSequence CTAcquisitionTypeSequence
CTReconstructionSequence CTGeometrySequence CTExposureSequence CTXRayDetailsSequence CTTableDynamicsSequence
FrameAnatomySequence FrameLaterality
"""
LISTED: Final = frozenset(_BOTH.split())
# Of what ctnode makes alone: segments, measurements, and what came before.
_OWN: Final = """
SegmentIdentificationSequence ReferencedSegmentNumber SegmentationType SegmentationFractionalType
MaximumFractionalValue SegmentSequence SegmentNumber SegmentLabel SegmentAlgorithmType SegmentAlgorithmName
SegmentedPropertyCategoryCodeSequence SegmentedPropertyTypeCodeSequence
SegmentedPropertyTypeModifierCodeSequence RecommendedDisplayCIELabValue TrackingUID SegmentsOverlap
ContentLabel ValueType ContinuityOfContent RelationshipType ConceptNameCodeSequence ConceptCodeSequence
ContentSequence ContentTemplateSequence MappingResource TemplateIdentifier MeasuredValueSequence NumericValue
FloatingPointValue MeasurementUnitsCodeSequence UID CompletionFlag VerificationFlag
CurrentRequestedProcedureEvidenceSequence SeriesDescription RelatedSeriesSequence PredecessorDocumentsSequence
"""
OWN_LISTED: Final = LISTED | frozenset(_OWN.split())
# Texts that say how an image was made; they leave as they are.
TECHNICAL: Final = frozenset(
    {"Manufacturer", "ManufacturerModelName", "SoftwareVersions", "ConvolutionKernel", "FilterType"}
)
# What our segments say of themselves.
OWN_TEXTS: Final = frozenset({"ctnode", "Right lung", "Left lung", "Airway structure"})
OWN_DESCRIPTION: Final = re.compile(r"ctnode [a-z ]{1,40}(, revision [0-9]{1,6})?")
# Codes of our objects that the dictionary lacks, or has under a longer name.
OWN_MEANINGS: Final = {
    ("UCUM", "[hnsf'U]"): "Hounsfield unit", ("UCUM", "g"): "gram", ("UCUM", "mL"): "milliliter",
    ("SCT", "3341006"): "Right lung", ("SCT", "44029006"): "Left lung", ("SCT", "74101002"): "Both lungs",
    ("SCT", "118565006"): "Volume", ("SCT", "373098007"): "Mean", ("SCT", "373099004"): "Median",
    ("SCT", "123037004"): "Anatomical Structure", ("SCT", "77477000"): "Computed tomography",
    ("RFC5646", "en-US"): "English (United States)",
}  # fmt: skip
# PS3.3 C.11.1.1.2.
RESCALE_TYPES: Final = frozenset(["OD", "HU", "US", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT"])
# PS3.5 6.2; what is none is somebody's text.
CODE_STRING: Final = re.compile(r"[A-Z0-9_ ]{0,16}")
TIME: Final = re.compile(r"([01][0-9]|2[0-3])([0-5][0-9]([0-5][0-9]|60)?(\.[0-9]{1,6})?)?")
_SHORT_NUMBER: Final = re.compile(r"[0-9]{1,4}")


def is_of_the_standard(uid: str) -> bool:
    """Return whether a UID is one of PS3.6, which identifies nobody."""
    return UID(uid, validation_mode=IGNORE).name != uid


def is_plain_label(text: str) -> bool:
    """Return whether a label is a small number."""
    return _SHORT_NUMBER.fullmatch(text) is not None


@cache
def _meanings() -> dict[tuple[str, str], str]:
    # Here, for it takes a third of a second that only external destinations need.
    from pydicom.sr.codedict import codes

    found: dict[tuple[str, str], str] = {}
    for scheme in codes.schemes():
        for code in getattr(codes, scheme).concepts.values():
            found[code.scheme_designator, code.value] = code.meaning
    return found


def meaning_of(scheme: str, value: str) -> str | None:
    """Return what a code of PS3.16, or of our objects, means; None for others."""
    return OWN_MEANINGS.get((scheme, value)) or _meanings().get((scheme, value))
