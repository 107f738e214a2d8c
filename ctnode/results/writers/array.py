"""``ct_norm.npy`` and ``ct_norm.json``: the resampled volume ready for a network."""

from pathlib import Path
from typing import Final

from ctnode.ct.volume import HU
from ctnode.results.arrays import write_normalised
from ctnode.results.case import Case, Stage

AFTER: Final = Stage.RESAMPLED


def available(case: Case) -> bool:
    """Return whether there is a resampled volume in HU, which the clipping is given in."""
    return case.resampled is not None and case.volume.unit == HU


def write(case: Case) -> tuple[Path, ...]:
    """Write the array and where it lies."""
    assert case.resampled is not None
    assert case.iso_grid is not None
    path = case.path("ct_norm.npy")
    write_normalised(
        path,
        case.resampled,
        case.iso_grid,
        dtype=case.wanted.array,
        clip_hu=case.wanted.array_clip_hu,
        mean=case.wanted.array_mean,
    )
    return path, path.with_suffix(".json")
