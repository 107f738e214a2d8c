"""``slices.zip``: each slice without loss as 16-bit PNG."""

from pathlib import Path
from typing import Final

from ctnode.results.arrays import png_offset_hu, write_png_slices
from ctnode.results.case import Case, Stage

AFTER: Final = Stage.VOLUME


def available(case: Case) -> bool:
    """Return whether the values are whole numbers that 16 bits hold."""
    return png_offset_hu(case.volume.voxels) is not None


def write(case: Case) -> tuple[Path, ...]:
    """Write ``slices.zip``."""
    path = case.path("slices.zip")
    offset_hu = png_offset_hu(case.volume.voxels)
    assert offset_hu is not None
    write_png_slices(path, case.volume.voxels, offset_hu)
    return (path,)
