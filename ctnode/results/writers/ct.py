"""``ct.nii.gz``: the volume on its own grid."""

from pathlib import Path
from typing import Final

from ctnode.results.case import Case, Stage
from ctnode.results.nifti import write_nifti

AFTER: Final = Stage.VOLUME


def available(_case: Case) -> bool:
    """Return True: every volume has its NIfTI file."""
    return True


def write(case: Case) -> tuple[Path, ...]:
    """Write ``ct.nii.gz``."""
    path = case.path("ct.nii.gz")
    write_nifti(path, case.volume.voxels, case.volume.grid, description="CT in HU")
    return (path,)
