"""``derived.zip``: the resampled volume as a series of CT images."""

from pathlib import Path
from typing import Final

import numpy as np

from ctnode.ct.volume import HU
from ctnode.results.case import Case, Stage
from ctnode.results.derived import write_derived
from ctnode.results.objects import Origin

AFTER: Final = Stage.RESAMPLED


def available(case: Case) -> bool:
    """Return whether there is a resampled volume in whole HU."""
    return case.resampled is not None and case.resampled.dtype == np.int16 and case.volume.unit == HU


def write(case: Case) -> tuple[Path, ...]:
    """Write ``derived.zip``."""
    assert case.resampled is not None
    assert case.iso_grid is not None
    path = case.path("derived.zip")
    origin = Origin(case.study, case.series, case.revision, case.made_at, case.settings_digest)
    voxels = case.resampled.astype(np.int16, copy=False)
    write_derived(path, case.volume, voxels, case.iso_grid, origin, number=case.number)
    return (path,)
