"""The options of [lungs], each seen in the mask or in the status."""

import numpy as np
import pytest
from pydantic import ValidationError
from pydicom import Dataset

from ctnode.config import LungMask
from ctnode.ct.grid import Volume
from ctnode.ct.lungs import segment
from ctnode.ct.options import dilated, inner_structures
from ctnode.ct.phantom import AIRWAY, LEFT, RIGHT, chest
from ctnode.words import LungStatus, VolumeStatus

pytestmark = pytest.mark.unit


def volume_of(voxels, grid, padding=None):
    uids = ("",) * len(voxels)
    return Volume(voxels, grid, padding, "HU", VolumeStatus.EXACT, (), Dataset(), uids, "0" * 64)


@pytest.fixture(scope="module")
def small():
    voxels, _, grid = chest((56, 88, 88), (5.0, 4.3, 4.3), 1)
    return volume_of(voxels, grid)


@pytest.fixture(scope="module")
def usual(small):
    return segment(small)


def lung(found):
    return np.isin(found.labels, (RIGHT, LEFT))


def test_no_settings_are_the_defaults(small, usual):
    assert np.array_equal(segment(small, LungMask()).labels, usual.labels)
    assert usual.structures is None


def test_the_threshold_of_the_user_is_used(small, usual):
    classic = segment(small, LungMask(threshold=-320.0))
    assert classic.threshold_hu == classic.quality["threshold_hu"] == -320.0
    assert usual.threshold_hu < -320.0
    assert lung(classic).sum() > lung(usual).sum()
    # A number that was asked for is never called out of the ordinary.
    assert segment(small, LungMask(threshold=-250.0)).quality["threshold_clamped"] == 0.0


def test_structures_are_the_difference_of_filled_and_not_filled(small, usual):
    bare = segment(small, LungMask(fill_structures=False, structures=True))
    filled = segment(small, LungMask(structures=True))
    assert np.array_equal(filled.labels, usual.labels)
    assert np.array_equal(filled.structures, bare.structures)
    difference = np.where(filled.labels != bare.labels, filled.labels, 0)
    assert np.array_equal(difference, filled.structures)
    assert np.count_nonzero(filled.structures) > 100
    assert set(np.unique(filled.structures)) == {0, RIGHT, LEFT}
    assert (small.voxels[filled.structures > 0] >= filled.threshold_hu).all()
    assert (small.voxels[lung(bare)] < bare.threshold_hu).all()


def test_inner_structures_leave_the_airway_out(small):
    labels = np.zeros(small.voxels.shape, dtype=np.uint8)
    labels[10, 10, 10:13] = RIGHT, LEFT, AIRWAY
    voxels = np.full(small.voxels.shape, -400, dtype=np.int16)
    found = inner_structures(volume_of(voxels, small.grid), labels, -400.0)
    assert found[10, 10, 10:13].tolist() == [RIGHT, LEFT, 0]
    assert not inner_structures(volume_of(voxels, small.grid), labels, -399.0).any()


def test_closing_takes_in_nodules_at_the_wall_and_none_takes_none(small, usual):
    bare = segment(small, LungMask(closing_mm=0.0))
    assert lung(bare).sum() < lung(usual).sum()
    assert not np.any(lung(bare) & ~lung(usual))


def test_dilation_grows_by_millimetres_and_never_over_what_is_labelled(small):
    grid = small.grid
    labels = np.zeros(small.voxels.shape, dtype=np.uint8)
    labels[20, 40, 40], labels[20, 40, 44], labels[20, 41, 40] = RIGHT, LEFT, AIRWAY
    padding = np.zeros(labels.shape, dtype=bool)
    padding[20, 40, 39] = True
    grown = dilated(volume_of(small.voxels, grid, padding), labels, 8.7)
    away = np.argwhere(grown == RIGHT) - (20, 40, 40)
    assert np.linalg.norm(away * grid.spacing_mm, axis=1).max() <= 8.7
    assert grown[20, 40, 41] == grown[20, 40, 42] == RIGHT
    assert grown[20, 40, 43] == grown[20, 40, 46] == LEFT
    assert grown[21, 40, 40] == RIGHT
    assert grown[22, 40, 40] == 0
    assert grown[20, 41, 40] == AIRWAY
    assert grown[20, 40, 39] == 0
    assert dilated(small, labels, 0.0) is labels
    empty = np.zeros_like(labels)
    assert dilated(small, empty, 5.0) is empty


def test_a_dilated_mask_is_the_one_that_is_measured(small, usual):
    wide = segment(small, LungMask(dilation_mm=6.0))
    assert wide.quality["right_ml"] > 1.1 * usual.quality["right_ml"]
    assert not np.any(lung(usual) & ~lung(wide))


@pytest.mark.parametrize("settings", [LungMask(least_share_pct=50.0), LungMask(most_share_pct=2.0)])
def test_an_implausible_share_of_the_volume_is_suspect(small, usual, settings):
    assert usual.status is LungStatus.OK
    found = segment(small, settings)
    assert found.status is LungStatus.SUSPECT
    assert ["of the volume" in reason for reason in found.reasons] == [True]


@pytest.mark.parametrize(
    "wrong",
    [{"threshold": "low"}, {"threshold": 40.0}, {"closing_mm": -1.0}, {"dilation_mm": 99.0}, {"most_share_pct": 101.0}],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError):
        LungMask(**wrong)
