"""The variations of the chest phantom that the lungs are judged by, each with what the answer must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from pydicom import Dataset

from ctnode.ct.grid import Grid, Volume
from ctnode.words import LungStatus, VolumeStatus
from tests.lung_chest import Chest, Nodule
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


def streaks(hu: np.ndarray, grid: Grid) -> None:
    """Add the streaks of the pacemaker: rays of too bright and too dark that fade with the distance."""
    k, j, i = (np.arange(size, dtype=np.float32) for size in grid.shape)
    x, y, z = (grid.affine[axis, axis] * index + grid.affine[axis, 3] for axis, index in enumerate((i, j, k)))
    dx, dy = x[None, :] - 95.0, y[:, None] + 84.0
    rays = 260.0 * np.cos(9.0 * np.arctan2(dy, dx) + 0.7) * np.exp(-np.hypot(dx, dy) / 60.0)
    for plane in np.flatnonzero(np.abs(z - 80.0) < 18.0):
        hu[plane] = np.maximum(hu[plane] + rays, -1024.0)


ADULT = Chest()
COARSE = grid_of(116, 3.2, 3.2)
SUPINE = Case(COARSE)
TURNED = {"pixels": 112, "pixel_mm": 3.4, "slice_mm": 3.4}
CUT = frozenset({TRUNCATED})
PLEURAL = (
    Nodule((-133.0, 8.0, -20.0), 7.0),
    Nodule((70.0, 91.0, -40.0), 9.0),
    Nodule((-58.0, -75.0, 15.0), 5.0),
    Nodule((-68.0, 0.0, -66.0), 6.0),
    Nodule((128.0, 25.0, 10.0), 8.0),
)
HILAR = (Nodule((-50.0, 6.0, 12.0), 9.0), Nodule((60.0, 30.0, -18.0), 8.0), Nodule((90.0, 20.0, 0.0), 12.0))
RIGHT_DOWN = {"rows": (0, 1, 0), "columns": (-1, 0, 0)}
LEFT_DOWN = {"rows": (0, -1, 0), "columns": (1, 0, 0)}
PRONE = {"rows": (-1, 0, 0), "columns": (0, -1, 0)}
SLAB = (-50.0, 14.0)


def changed(grid: Grid = COARSE, *, case: dict | None = None, **anatomy) -> Case:
    """Return the plain scan on ``grid`` of an adult with another ``anatomy``."""
    return Case(grid, replace(ADULT, **anatomy), **(case or {}))


CASES: dict[str, Case] = {
    "plain": SUPINE,
    "no_table": changed(table=False),
    "arms_down": changed(grid_of(144, 3.8), arms_down=True),
    "blanket": changed(blanket=True),
    "obese": changed(grid_of(136, 3.6), fat=52.0),
    "obese_cut_by_field": changed(grid_of(112, 3.0), fat=52.0, arms_down=True),
    "child": changed(grid_of(128, 1.8, 2.0, (-90.0, 78.0)), scale=0.56, junction=1.6, case={"statuses": USABLE}),
    "youth": changed(grid_of(128, 2.3, 2.5, (-120.0, 104.0)), scale=0.75, fat=6.0),
    "contrast": changed(contrast=True),
    "oesophagus_air": changed(oesophagus_air=True),
    "pacemaker_streaks": changed(pacemaker=True, case={"change": streaks}),
    "expiration": changed(parenchyma=-690.0),
    "emphysema": changed(emphysema=True, parenchyma=-900.0, case={"statuses": USABLE}),
    "touching_lungs": changed(junction=0.8),
    "touching_lungs_5mm_noisy": changed(grid_of(160, 2.4, 5.0), junction=0.6, case={"noise_hu": 40.0}),
    "stomach_gas_at_diaphragm": changed(stomach_gas=0.8),
    "colon_gas_at_diaphragm": changed(colon_gas=True, stomach_gas=0.6),
    "one_lung": changed(no_right_lung=True, case={"statuses": USABLE}),
    # A voxel must be small beside a nodule, or the layer on the pleura alone is more than a twentieth of it.
    "pleural_nodules": changed(grid_of(256, 1.4, 2.0, (-144.0, 124.0)), nodules=PLEURAL),
    "hilar_nodules": changed(nodules=HILAR),
    "small_effusion": changed(effusion=72.0, case={"statuses": USABLE}),
    "large_effusion": changed(effusion=12.0, case={"limit": True}),
    "pneumothorax": changed(pneumothorax=True, case={"limit": True}),
    "consolidation": changed(consolidation=True, case={"limit": True}),
    "noise_40": Case(COARSE, noise_hu=40.0),
    "noise_60": Case(COARSE, noise_hu=60.0),
    "noise_60_sharp": Case(grid_of(136, 2.8, 3.0), noise_hu=60.0, sharp=True),
    "sharp": Case(grid_of(160, 2.3, 3.0), noise_hu=35.0, sharp=True),
    "slices_1mm": Case(grid_of(96, 3.8, 1.0)),
    "slices_5mm": Case(grid_of(160, 2.4, 5.0)),
    "slices_8mm": Case(grid_of(160, 2.4, 8.0, (-164.0, 140.0))),
    "feet_first": Case(grid_of(**TURNED, rows=(-1, 0, 0))),
    "prone": changed(grid_of(**TURNED, **PRONE), down=(0.0, -1.0, 0.0), stomach_gas=0.6),
    "feet_first_prone": changed(grid_of(**TURNED, columns=(0, -1, 0)), down=(0.0, -1.0, 0.0)),
    "right_side_down": changed(grid_of(**TURNED, **RIGHT_DOWN), down=(-1.0, 0.0, 0.0), stomach_gas=0.5),
    "left_side_down": changed(grid_of(**TURNED, **LEFT_DOWN), down=(1.0, 0.0, 0.0), stomach_gas=0.5),
    "tilted": Case(grid_of(116, 3.6, 3.2, (-185.0, 160.0), tilt_deg=(14.0, 0.0))),
    "oblique": Case(grid_of(116, 3.6, 5.0, (-185.0, 160.0), tilt_deg=(-10.0, 12.0))),
    "coronal": Case(grid_of((100, 128), 3.0, 4.0, (-130.0, 150.0), columns=(0, 0, -1), center=(0.0, 0.0, -10.0))),
    "sagittal": Case(
        grid_of((100, 96), 3.0, 4.0, (-190.0, 190.0), rows=(0, 1, 0), columns=(0, 0, -1), center=(0.0, 6.0, -10.0))
    ),
    "flipped_x": Case(grid_of(**TURNED), flips=(False, False, True)),
    "flipped_y": Case(grid_of(**TURNED), flips=(False, True, False)),
    "flipped_z": Case(grid_of(**TURNED), flips=(True, False, False)),
    "flipped_all": Case(grid_of(**TURNED), flips=(True, True, True)),
    "pixels_64": Case(grid_of(64, 6.0, 4.0)),
    "pixels_96_by_160": Case(grid_of((96, 160), 2.7, 3.0)),
    "pixels_512": Case(grid_of(256, 1.5, 8.0, (-164.0, 140.0)), zoom=2),
    "pixels_512_slab": Case(grid_of(512, 0.74, 1.25, (-20.0, -5.0)), statuses=CUT),
    "pixels_1024_slab": Case(grid_of(512, 0.74, 8.0, SLAB), zoom=2, statuses=CUT),
    "chest_abdomen": changed(grid_of(128, 3.0, 5.0, (-400.0, 140.0)), colon_gas=True, stomach_gas=0.5),
    "upper_cut": Case(grid_of(reach=(-160.0, 45.0)), statuses=CUT),
    "lower_cut": Case(grid_of(reach=(-75.0, 140.0)), statuses=CUT),
    "both_ends_cut": Case(grid_of(reach=(-75.0, 45.0)), statuses=CUT),
    "body_cut_by_field": Case(grid_of(100, 3.0)),
    "lungs_cut_by_field": Case(grid_of(104, 3.0, center=(48.0, 6.0, 0.0)), statuses=CUT),
    "padding_circle": Case(grid_of(128, 3.2), circle_part=1.0),
    "padding_circle_without_mask": Case(grid_of(128, 3.2), circle_part=1.0, padding_mask=False),
    "padding_circle_cuts_body": Case(grid_of(128, 2.45), circle_part=1.0),
    "padding_circle_cuts_lungs": Case(grid_of(128, 1.9), circle_part=1.0, statuses=CUT),
}


@lru_cache(maxsize=4)
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
