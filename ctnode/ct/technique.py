"""The technique of a scan under dcm2niix's BIDS names; nothing that names a person, a place or a day."""

from __future__ import annotations

from typing import Final

import numpy as np
from pydicom.multival import MultiValue

from ctnode.ct.dataset import Attributes, readable

_TECHNIQUE: Final = {
    "Modality": "Modality",
    "Manufacturer": "Manufacturer",
    "ManufacturerModelName": "ManufacturersModelName",
    "BodyPartExamined": "BodyPartExamined",
    "PatientPosition": "PatientPosition",
    "ScanOptions": "ScanOptions",
    "KVP": "KVP",
    "XRayTubeCurrent": "XRayTubeCurrent",
    "ExposureTime": "ExposureTime",
    "Exposure": "XRayExposure",
    "ConvolutionKernel": "ConvolutionKernel",
    "SliceThickness": "SliceThickness",
    "SpiralPitchFactor": "SpiralPitchFactor",
    "ReconstructionDiameter": "ReconstructionDiameter",
    "GantryDetectorTilt": "GantryDetectorTilt",
    "ImageType": "ImageType",
}


def technique(header: Attributes, *, longest_text: int = 64) -> dict[str, object]:
    """Return the technique of the scan under dcm2niix's BIDS names; a value that cannot be read is left out."""
    found: dict[str, object] = {}
    for keyword, name in _TECHNIQUE.items():
        value = readable(header, keyword)
        if isinstance(value, MultiValue):
            found[name] = [_plain(part, longest_text) for part in value]
        elif value is not None and value != "":
            found[name] = _plain(value, longest_text)
    return {name: value for name, value in found.items() if value is not None}


def _plain(value: object, longest_text: int) -> object:
    if isinstance(value, (int, float)):
        number = float(value)
        return None if not np.isfinite(number) else int(number) if number.is_integer() else number
    return str(value)[:longest_text] if isinstance(value, str) else None
