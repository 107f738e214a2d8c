"""The grid and the volume: the two records that every step of the science takes and gives.

Arrays are ``(z, y, x)`` in C order. An affine maps the voxel ``(i, j, k)`` = (column, row, slice) centre to LPS
millimetres (PS3.3 C.7.6.2.1.1); RAS exists only inside the NIfTI writer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from ctnode.words import Issue, VolumeStatus

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Grid:
    """Where the voxels of an array lie.

    Parameters
    ----------
    shape
        ``(nz, ny, nx)``.
    affine
        ``(4, 4)`` float64, voxel ``(i, j, k)`` centres to LPS millimetres.
    """

    shape: tuple[int, int, int]
    affine: FloatArray

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Return the distances of neighbouring voxels along ``(z, y, x)`` in millimetres."""
        steps = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(steps[2]), float(steps[1]), float(steps[0])

    @property
    def directions(self) -> FloatArray:
        """Return ``(3, 3)`` unit columns: the LPS direction of growing i, j, k."""
        directions: FloatArray = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return directions

    @property
    def voxel_ml(self) -> float:
        """Return the volume of one voxel in millilitres."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def to_lps_mm(self, ijk: npt.ArrayLike) -> FloatArray:
        """Map ``(..., 3)`` voxel coordinates ``(i, j, k)`` to ``(..., 3)`` LPS millimetres."""
        points = np.asarray(ijk, dtype=np.float64)
        mapped: FloatArray = points @ self.affine[:3, :3].T + self.affine[:3, 3]
        return mapped


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image that a volume was made of, as derived objects refer to it.

    ``frame`` counts from 1 in a multi-frame image and is 0 in others; ``position_mm`` is LPS of the first pixel.
    """

    sop_class: str
    sop_uid: str
    frame: int
    rows: int
    columns: int
    position_mm: tuple[float, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Volume:
    """A CT volume and all that is known about its worth.

    Parameters
    ----------
    voxels
        ``(z, y, x)`` C-contiguous; int16 where every rounded value fits and the slopes are integral, else float32;
        values in ``unit``. Padding is -1024.
    grid
        Where the voxels lie; its affine has no shear.
    padding
        ``(z, y, x)`` bool, true where the scanner measured nothing (outside, not air); None: nowhere.
    unit
        ``HU``, or what RescaleType says; anything but HU is never quantified.
    status, issues
        EXACT or REPAIRED, and each deviation.
    header
        The first slice's data set without pixels: the source of patient, study and equipment attributes.
    sop_uids
        SOP Instance UID of each slice in the order of z ('' where a slice was made by repair).
    input_digest
        SHA-256 over the sorted digests of all source data sets, hex.
    technique
        Values that may stand in ``ct.json``: dcm2niix BIDS names (``KVP``, ``ConvolutionKernel``, ...), no identity.
    sources
        The images it was made of, in the order of space.
    """

    voxels: npt.NDArray[np.int16] | npt.NDArray[np.float32]
    grid: Grid
    padding: npt.NDArray[np.bool_] | None
    unit: str
    status: VolumeStatus
    issues: tuple[Issue, ...]
    header: Dataset
    sop_uids: tuple[str, ...]
    input_digest: str
    technique: Mapping[str, object] = field(default_factory=dict)
    sources: tuple[SourceImage, ...] = ()
