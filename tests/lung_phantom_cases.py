"""The variations of the chest phantom that the lungs are judged by, each with what the answer must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from pydicom import Dataset

from ctnode.ct.grid import Grid, Volume
from ctnode.words import LungStatus, VolumeStatus
from tests.lung_chest import Chest
from tests.lung_phantoms import Scan, circle, grid_of, scan, with_noise

OK, SUSPECT, TRUNCATED = LungStatus.OK, LungStatus.SUSPECT, LungStatus.TRUNCATED
WHOLE, USABLE = frozenset({OK}), frozenset({OK, SUSPECT})


@dataclass(frozen=True)
class Case:
    """One scan of one anatomy.

    ``limit`` marks what no threshold can find: there a Dice of 0.94 is enough, and less if the status says so.
    """

    grid: Grid
    chest: Chest = field(default_factory=Chest)
    noise_hu: float = 18.0
    sharp: bool = False
    statuses: frozenset[LungStatus] = WHOLE
    limit: bool = False
    circle_part: float | None = None
    padding_mask: bool = True
    flips: tuple[bool, bool, bool] = (False, False, False)
    zoom: int = 1
    change: Callable[[np.ndarray, Grid], None] | None = None


ADULT = Chest()
COARSE = grid_of()
SUPINE = Case(COARSE)

CASES: dict[str, Case] = {
    "plain": SUPINE,
    "no_table": Case(COARSE, replace(ADULT, table=False)),
    "arms_down": Case(grid_of(160, 3.4), replace(ADULT, arms_down=True)),
    "padding_circle": Case(grid_of(128, 3.2), circle_part=1.0),
    "stomach_gas_at_diaphragm": Case(COARSE, replace(ADULT, stomach_gas=0.8)),
    "colon_gas_at_diaphragm": Case(COARSE, replace(ADULT, colon_gas=True, stomach_gas=0.6)),
    "touching_lungs": Case(COARSE, replace(ADULT, junction=0.8)),
    "noise_60": Case(COARSE, noise_hu=60.0),
    "slices_8mm": Case(grid_of(160, 2.5, 8.0, (-164.0, 140.0))),
    "feet_first": Case(grid_of(rows=(-1, 0, 0), columns=(0, 1, 0))),
    "upper_cut": Case(grid_of(z=(-160.0, 45.0)), statuses=frozenset({TRUNCATED})),
    "lower_cut": Case(grid_of(z=(-75.0, 140.0)), statuses=frozenset({TRUNCATED})),
}


@lru_cache(maxsize=2)
def _sampled(chest: Chest, key: tuple) -> Scan:
    shape, affine = key
    grid = Grid(shape, np.array(affine).reshape(4, 4))
    small = grid.affine.copy()
    small[:3] /= chest.scale
    made = scan(chest, Grid(shape, small))
    return replace(made, grid=grid)


def make(case: Case) -> tuple[Volume, Scan]:
    """Return the volume as a scanner gives it, and the truth on the same grid."""
    made = _sampled(case.chest, (case.grid.shape, tuple(case.grid.affine.ravel())))
    if case.zoom > 1:
        made = zoomed(made, case.zoom)
    hu, labels, nodules, grid = made.hu, made.labels, made.nodules, made.grid
    if case.change is not None:
        hu = hu.copy()
        case.change(hu, grid)
    voxels = with_noise(hu, case.noise_hu, sharp=case.sharp)
    padding = None
    if case.circle_part is not None:
        padding = circle(grid, case.circle_part)
        voxels[padding] = -1024
        labels, nodules = np.where(padding, 0, labels).astype(np.uint8), nodules & ~padding
    arrays = [voxels, labels, nodules, padding]
    where, affine = flipped(grid, case.flips)
    voxels, labels, nodules, padding = (None if a is None else np.ascontiguousarray(a[where]) for a in arrays)
    grid = Grid(grid.shape, affine)
    return volume_of(voxels, grid, padding if case.padding_mask else None), Scan(hu[where], labels, nodules, grid)


def flipped(grid: Grid, flips):
    """Return the index that reverses axes ``(z, y, x)`` and the affine that follows it."""
    move = np.eye(4)
    for axis, flip in enumerate(flips):
        if flip:
            move[2 - axis, 2 - axis], move[2 - axis, 3] = -1.0, grid.shape[axis] - 1
    return tuple(slice(None, None, -1 if flip else 1) for flip in flips), grid.affine @ move


def zoomed(made: Scan, times: int) -> Scan:
    """Return the scan with ``times`` as many pixels, as a reconstruction on a finer matrix than its resolution."""
    affine = made.grid.affine.copy()
    affine[:3, 3] -= affine[:3, :2].sum(axis=1) * (0.5 - 0.5 / times)
    affine[:3, :2] /= times
    hu = made.hu
    for axis in (1, 2):
        size = hu.shape[axis]
        place = np.clip((np.arange(size * times) + 0.5) / times - 0.5, 0, size - 1)
        low = np.minimum(place.astype(int), size - 2)
        part = (place - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        hu = np.take(hu, low, axis) * (1 - part) + np.take(hu, low + 1, axis) * part
    labels, nodules = (a.repeat(times, axis=1).repeat(times, axis=2) for a in (made.labels, made.nodules))
    return Scan(hu, labels, nodules, Grid(hu.shape, affine))


def volume_of(voxels: np.ndarray, grid: Grid, padding: np.ndarray | None = None) -> Volume:
    """Return ``voxels`` as the exact HU volume that the pipeline would hand over."""
    return Volume(
        voxels=np.ascontiguousarray(voxels),
        grid=grid,
        padding=padding,
        unit="HU",
        status=VolumeStatus.EXACT,
        issues=(),
        header=Dataset(),
        sop_uids=("",) * len(voxels),
        input_digest="0" * 64,
    )
