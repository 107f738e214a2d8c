"""The technique of a scan under dcm2niix's BIDS names; nothing that names a person, a place or a day.

Units are dcm2niix's too: ExposureTime is in seconds (DICOM: milliseconds), XRayExposure in mAs. What dcm2niix has no
name for (KVP, SpiralPitchFactor, GantryDetectorTilt, ...) keeps its DICOM keyword. Free text that people type (study,
series, protocol) is apart, in ``descriptions``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydicom.multival import MultiValue

from ctnode.ct.dataset import Attributes, number, numbers, readable

_TEXTS: Final = {
    "Modality": "Modality",
    "Manufacturer": "Manufacturer",
    "ManufacturerModelName": "ManufacturersModelName",
    "SoftwareVersions": "SoftwareVersions",
    "BodyPartExamined": "BodyPart",
    "PatientPosition": "PatientPosition",
    "ScanOptions": "ScanOptions",
    "ConvolutionKernel": "ConvolutionKernel",
    "ImageType": "ImageType",
}
_NUMBERS: Final = {
    "SeriesNumber": "SeriesNumber",
    "AcquisitionNumber": "AcquisitionNumber",
    "KVP": "KVP",
    "XRayTubeCurrent": "XRayTubeCurrent",
    "ExposureTime": "ExposureTime",
    "Exposure": "XRayExposure",
    "SliceThickness": "SliceThickness",
    "SpacingBetweenSlices": "SpacingBetweenSlices",
    "SpiralPitchFactor": "SpiralPitchFactor",
    "ReconstructionDiameter": "ReconstructionDiameter",
    "GantryDetectorTilt": "GantryDetectorTilt",
}
_MILLISECONDS: Final = frozenset({"ExposureTime"})
_DESCRIPTIONS: Final = {
    "StudyDescription": "StudyDescription",
    "SeriesDescription": "SeriesDescription",
    "ProtocolName": "ProtocolName",
    "ImageComments": "ImageComments",
}


def technique(header: Attributes, *, longest_text: int = 64) -> dict[str, object]:
    """Return the technique of the scan under dcm2niix's BIDS names; a value of another kind than it should is left out.

    Texts are text or lists of it, numbers finite; ``ImageOrientationPatientDICOM`` is a list of six.
    """
    found = _texts(header, _TEXTS, longest_text)
    for keyword, name in _NUMBERS.items():
        value = number(header, keyword)
        if value is not None:
            found[name] = _short(value / 1000 if keyword in _MILLISECONDS else value)
    orientation = numbers(header, "ImageOrientationPatient", 6)
    if orientation is not None:
        found["ImageOrientationPatientDICOM"] = [_short(value) for value in orientation]
    return found


def descriptions(header: Attributes, *, longest_text: int = 1024) -> dict[str, object]:
    """Return what people wrote of study and series, under dcm2niix's names; it may name the patient."""
    return _texts(header, _DESCRIPTIONS, longest_text)


def _texts(header: Attributes, names: Mapping[str, str], longest_text: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for keyword, name in names.items():
        value = readable(header, keyword)
        if isinstance(value, str) and value:
            found[name] = value[:longest_text]
        elif isinstance(value, MultiValue) and value and all(isinstance(part, str) for part in value):
            found[name] = [part[:longest_text] for part in value]
    return found


def _short(value: float) -> float:
    return int(value) if value.is_integer() else value
