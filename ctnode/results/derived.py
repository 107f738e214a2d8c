"""The resampled volume as a series of CT images (PS3.3 A.3) in one zip, for viewers that read no NIfTI.

It lies in the frame of reference of the source; each image names those of the source that it is made of. By its
equipment no ctnode ever processes it. Images are written one after the other, so that the volume is never held twice.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from ctnode.ct.grid import Grid, Volume
from ctnode.ct.window import LUNG
from ctnode.ops.durable import replacing
from ctnode.results.objects import (
    Origin,
    code,
    compression,
    copied,
    derived_uid,
    describe,
    file_meta,
    frame_of_reference,
    patient_and_study,
    referenced,
)

CT_IMAGE_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
SERIES_NUMBER: Final = 904


def write_derived(
    path: Path, volume: Volume, voxels: npt.NDArray[np.int16], grid: Grid, origin: Origin, *, number: int = 1
) -> None:
    """Write ``voxels``, resampled from ``volume``, to ``path``, fsynced.

    Parameters
    ----------
    path
        ``*.zip``; its files are ``0001.dcm`` and so on, uncompressed and of no date.
    volume
        What they come from: the source of patient, study and references.
    voxels
        ``(z, y, x)`` int16 HU on ``grid``, LPS.
    number
        Counts the volumes of the source's series from 1: each becomes a series of its own.
    """
    kind = f"derived {number}"
    dataset = _header(volume, grid, origin, kind)
    with replacing(path, mode=0o644) as file, zipfile.ZipFile(file, "w") as packed:
        for index, plane in enumerate(voxels):
            _place(dataset, volume, grid, index)
            dataset.SOPInstanceUID = derived_uid(kind, "instance", str(index), origin.identity(volume))
            dataset.add_new("PixelData", "OW", np.ascontiguousarray(plane, dtype="<i2").tobytes())
            dataset.file_meta = file_meta(dataset)
            buffer = io.BytesIO()
            pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
            packed.writestr(zipfile.ZipInfo(f"{index + 1:04d}.dcm"), buffer.getvalue())


def _header(volume: Volume, grid: Grid, origin: Origin, kind: str) -> Dataset:
    """Return what all images share."""
    dataset = patient_and_study(volume.header, origin.study)
    describe(dataset, origin, volume, kind, CT_IMAGE_STORAGE, "CT")
    dataset.SeriesNumber = SERIES_NUMBER
    spacing = " x ".join(f"{step:.2f}" for step in grid.spacing_mm[::-1])
    later = f", revision {origin.revision}" if origin.revision > 1 else ""
    dataset.SeriesDescription = f"ctnode CT {spacing} mm{later}"
    # Type 2C without a body part: it is unknown whether what the images show is paired.
    dataset.Laterality = None
    copied(dataset, volume.header, ("PatientPosition", "PositionReferenceIndicator", "KVP"))
    dataset.AcquisitionNumber = None
    dataset.FrameOfReferenceUID = frame_of_reference(volume.header, origin)
    dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    dataset.DerivationDescription = "Resampled"
    dataset.DerivationCodeSequence = [code("113085", "DCM", "Spatial resampling")]
    dataset.BurnedInAnnotation = "NO"
    compression(dataset, volume)
    slice_mm, row_mm, column_mm = grid.spacing_mm
    dataset.PixelSpacing = [_decimal(row_mm), _decimal(column_mm)]
    dataset.SliceThickness = dataset.SpacingBetweenSlices = _decimal(slice_mm)
    dataset.ImageOrientationPatient = [_decimal(value) for value in grid.directions[:, :2].T.flat]
    dataset.WindowCenter, dataset.WindowWidth = _decimal(LUNG.center_hu), _decimal(LUNG.width_hu)
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "HU"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = grid.shape[1:]
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    return dataset


def _place(dataset: Dataset, volume: Volume, grid: Grid, index: int) -> None:
    """Turn ``dataset`` into the image ``index``."""
    dataset.InstanceNumber = index + 1
    position_mm = grid.to_lps_mm((0, 0, index))
    dataset.ImagePositionPatient = [_decimal(value) for value in position_mm]
    normal = grid.directions[:, 2]
    # A voxel of the resampled grid has its values from no farther than the larger of both steps.
    reach_mm = max(grid.spacing_mm[0], volume.grid.spacing_mm[0])
    near = {
        image.sop_uid: image.sop_class
        for image in volume.sources
        if image.sop_uid and abs(float(normal @ (np.array(image.position_mm) - position_mm))) < reach_mm
    }
    if near:
        dataset.SourceImageSequence = [_source(sop_class, uid) for uid, sop_class in near.items()]
    elif "SourceImageSequence" in dataset:
        del dataset.SourceImageSequence


def _source(sop_class: str, uid: str) -> Dataset:
    item = referenced(sop_class, uid)
    item.PurposeOfReferenceCodeSequence = [code("121322", "DCM", "Source image for image processing operation")]
    return item


def _decimal(value: float) -> str:
    return str(format_number_as_ds(float(value) + 0.0))
