"""A volume as CT Image Storage files of an obviously fictional patient, for the demonstration, tests and benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)
from pydicom.valuerep import format_number_as_ds

from ctnode.ct.grid import Grid

CT_IMAGE_STORAGE: Final = UID("1.2.840.10008.5.1.4.1.1.2")
_WRITTEN_AS_IS: Final = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)

Edit = Callable[[int, Dataset], None]


def write_series(
    directory: Path,
    voxels: npt.NDArray[np.int16] | npt.NDArray[np.float32],
    grid: Grid,
    *,
    study_uid: str,
    series_uid: str,
    transfer_syntax: str = ExplicitVRLittleEndian,
    per_slice_rescale: Sequence[tuple[float, float]] | None = None,
    signed: bool = False,
    bits_stored: int = 16,
    edit: Edit | None = None,
) -> list[Path]:
    """Write one file for each slice and return their paths in the order of slices.

    Parameters
    ----------
    directory
        An existing folder; files are ``0000.dcm`` and so on.
    voxels
        ``(z, y, x)`` HU.
    grid
        Where the voxels lie, LPS; without shear.
    transfer_syntax
        Native little endian, RLE, JPEG-LS or JPEG 2000 lossless.
    per_slice_rescale
        Slope and intercept of each slice (default: 1 and -1024, signed: 1 and 0).
    signed, bits_stored
        How stored values are written, in 16 bits each.
    edit
        Called with slice index and data set before compression, to make a series that is not as it should be.

    Raises
    ------
    ValueError
        If a value does not fit the stored bits.
    """
    paths = []
    for index, image in enumerate(voxels):
        slope, intercept = per_slice_rescale[index] if per_slice_rescale else (1.0, 0.0 if signed else -1024.0)
        stored = np.rint((image.astype(np.float64) - intercept) / slope)
        low, high = (-(1 << bits_stored - 1), (1 << bits_stored - 1) - 1) if signed else (0, (1 << bits_stored) - 1)
        if stored.min() < low or stored.max() > high:
            raise ValueError(f"slice {index}: {stored.min()} to {stored.max()} do not fit {low} to {high}")
        dataset = _header(index, grid, study_uid, series_uid)
        dataset.Rows, dataset.Columns = image.shape
        dataset.BitsStored, dataset.HighBit = bits_stored, bits_stored - 1
        dataset.PixelRepresentation = int(signed)
        dataset.RescaleSlope = format_number_as_ds(float(slope))
        dataset.RescaleIntercept = format_number_as_ds(float(intercept))
        dataset.PixelData = stored.astype(np.int16 if signed else np.uint16).tobytes()
        dataset["PixelData"].VR = "OW"
        if edit is not None:
            edit(index, dataset)
        path = directory / f"{index:04d}.dcm"
        _save(dataset, UID(transfer_syntax), path)
        paths.append(path)
    return paths


def _save(dataset: Dataset, transfer_syntax: UID, path: Path) -> None:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if transfer_syntax in _WRITTEN_AS_IS:
        dataset.file_meta.TransferSyntaxUID = transfer_syntax
    else:
        dataset.compress(transfer_syntax, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)


def _header(index: int, grid: Grid, study_uid: str, series_uid: str) -> Dataset:
    spacing_mm = grid.spacing_mm
    directions = grid.directions
    position_mm = grid.to_lps_mm((0, 0, index))
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SOPClassUID = CT_IMAGE_STORAGE
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[series_uid, str(index)])
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = "20200101"
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = "120000"
    dataset.AccessionNumber = ""
    dataset.Modality = "CT"
    dataset.Manufacturer = "SYNTHETIC"
    dataset.ManufacturerModelName = "phantom"
    dataset.ReferringPhysicianName = ""
    dataset.PatientName = "PHANTOM^CHEST"
    dataset.PatientID = "PHANTOM"
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "O"
    dataset.BodyPartExamined = "CHEST"
    dataset.SliceThickness = format_number_as_ds(spacing_mm[0])
    dataset.KVP = "120"
    dataset.PatientPosition = "HFS"
    dataset.StudyInstanceUID = study_uid
    dataset.SeriesInstanceUID = series_uid
    dataset.StudyID = "1"
    dataset.SeriesNumber = 1
    dataset.AcquisitionNumber = 1
    dataset.InstanceNumber = index + 1
    dataset.ImagePositionPatient = [format_number_as_ds(float(value)) for value in position_mm]
    dataset.ImageOrientationPatient = [format_number_as_ds(float(value)) for value in directions[:, :2].T.flat]
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[study_uid])
    dataset.PositionReferenceIndicator = ""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelSpacing = [format_number_as_ds(spacing_mm[1]), format_number_as_ds(spacing_mm[2])]
    dataset.BitsAllocated = 16
    dataset.RescaleType = "HU"
    return dataset
