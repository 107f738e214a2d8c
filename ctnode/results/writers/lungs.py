"""``lungs.nii.gz`` with ``lungs.png``, and the masks that go with it."""

from pathlib import Path
from typing import Final

from ctnode.results.case import Case, Stage
from ctnode.results.nifti import write_nifti
from ctnode.results.png import write_lungs

AFTER: Final = Stage.LUNGS

_LABELS: Final = "0 background, 1 right lung, 2 left lung, 3 airway"
_INSIDE: Final = "dense inside: 1 the right lung, 2 the left lung"


def available(case: Case) -> bool:
    """Return whether lungs were found."""
    return case.mask is not None


def write(case: Case) -> tuple[Path, ...]:
    """Write the masks on their grids and the picture of their contours."""
    lungs = case.mask
    assert lungs is not None
    paths = [case.path("lungs.nii.gz"), case.path("lungs.png")]
    write_nifti(paths[0], lungs.labels, case.volume.grid, description=_LABELS)
    write_lungs(paths[1], case.volume, lungs)
    if lungs.structures is not None:
        paths.append(case.path("lungs_structures.nii.gz"))
        write_nifti(paths[-1], lungs.structures, case.volume.grid, description=_INSIDE)
    if case.wanted.iso and case.iso_grid is not None:
        from ctnode.ct.resample import resample_labels

        one_hot = case.settings.labels == "one-hot"
        labels = resample_labels(lungs.labels, case.volume.grid, case.iso_grid, one_hot=one_hot)
        paths.append(case.path("lungs_iso.nii.gz"))
        write_nifti(paths[-1], labels, case.iso_grid, description=_LABELS)
    return tuple(paths)
