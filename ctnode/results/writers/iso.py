"""``ct_iso.nii.gz``: the volume on the grid that ``[pipeline]`` asks for."""

from pathlib import Path
from typing import Final

import numpy as np

from ctnode.results.case import Case, Stage
from ctnode.results.nifti import write_nifti

AFTER: Final = Stage.RESAMPLED


def available(case: Case) -> bool:
    """Return whether there is a resampled volume."""
    return case.resampled is not None


def write(case: Case) -> tuple[Path, ...]:
    """Write ``ct_iso.nii.gz``."""
    assert case.resampled is not None
    assert case.iso_grid is not None
    path = case.path("ct_iso.nii.gz")
    isotropic = len(set(np.round(case.iso_grid.spacing_mm, 6))) == 1
    what = "CT in HU, isotropic" if isotropic else "CT in HU, resampled"
    write_nifti(path, case.resampled, case.iso_grid, description=what)
    return (path,)
