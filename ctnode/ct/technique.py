"""The technique of a scan under dcm2niix's BIDS names; nothing that names a person, a place or a day.

Units are dcm2niix's too: ExposureTime is in seconds (DICOM: milliseconds), XRayExposure in mAs. What dcm2niix has no
name for (KVP, SpiralPitchFactor, GantryDetectorTilt, ...) keeps its DICOM keyword. Free text that people type (study,
series, protocol) is apart, in ``descriptions``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from pydicom.multival import MultiValue

from ctnode.ct.dataset import Attributes, readable

_TECHNIQUE: Final = {
    "Modality": "Modality",
    "Manufacturer": "Manufacturer",
    "ManufacturerModelName": "ManufacturersModelName",
    "SoftwareVersions": "SoftwareVersions",
    "BodyPartExamined": "BodyPart",
    "PatientPosition": "PatientPosition",
    "SeriesNumber": "SeriesNumber",
    "AcquisitionNumber": "AcquisitionNumber",
    "ScanOptions": "ScanOptions",
    "KVP": "KVP",
    "XRayTubeCurrent": "XRayTubeCurrent",
    "ExposureTime": "ExposureTime",
    "Exposure": "XRayExposure",
    "ConvolutionKernel": "ConvolutionKernel",
    "SliceThickness": "SliceThickness",
    "SpacingBetweenSlices": "SpacingBetweenSlices",
    "SpiralPitchFactor": "SpiralPitchFactor",
    "ReconstructionDiameter": "ReconstructionDiameter",
    "GantryDetectorTilt": "GantryDetectorTilt",
    "ImageType": "ImageType",
    "ImageOrientationPatient": "ImageOrientationPatientDICOM",
}
_DESCRIPTIONS: Final = {
    "StudyDescription": "StudyDescription",
    "SeriesDescription": "SeriesDescription",
    "ProtocolName": "ProtocolName",
    "ImageComments": "ImageComments",
}
_MILLISECONDS: Final = frozenset({"ExposureTime"})


def technique(header: Attributes, *, longest_text: int = 64) -> dict[str, object]:
    """Return the technique of the scan under dcm2niix's BIDS names; a value that cannot be read is left out."""
    return _named(header, _TECHNIQUE, longest_text)


def descriptions(header: Attributes, *, longest_text: int = 1024) -> dict[str, object]:
    """Return what people wrote of study and series, under dcm2niix's names; it may name the patient."""
    return _named(header, _DESCRIPTIONS, longest_text)


def _named(header: Attributes, names: Mapping[str, str], longest_text: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for keyword, name in names.items():
        value = readable(header, keyword)
        if isinstance(value, MultiValue):
            parts = [_plain(part, longest_text) for part in value]
            found[name] = None if None in parts else parts
        elif value is not None and value != "":
            plain = _plain(value, longest_text)
            found[name] = plain / 1000 if keyword in _MILLISECONDS and isinstance(plain, (int, float)) else plain
    return {name: value for name, value in found.items() if value is not None}


def _plain(value: object, longest_text: int) -> object:
    if isinstance(value, (int, float)):
        number = float(value)
        return None if not np.isfinite(number) else int(number) if number.is_integer() else number
    return str(value)[:longest_text] if isinstance(value, str) else None
