"""What the numbers say about a mask: each reason has a scan that earns it, and one that does not."""

import numpy as np
import pytest
from pydicom import Dataset

from ctnode.config import LungMask
from ctnode.ct.grid import Grid, Volume
from ctnode.ct.judge import judge
from ctnode.ct.lungs import segment
from ctnode.ct.phantom import LEFT, RIGHT, chest
from ctnode.ct.sides import Sides
from ctnode.words import LungStatus, VolumeStatus

pytestmark = pytest.mark.unit

SHAPE, SPACING = (75, 96, 96), (3.6, 4.0, 4.0)
WHOLE = Sides(np.zeros((1, 1, 1), dtype=np.uint8), None, unsure=False, crossing=False)
USUAL = {
    "right_ml": 2500.0, "left_ml": 2200.0, "right_left_ratio": 1.14, "mean_hu": -830.0, "mask_share_pct": 12.0,
    "cut_cm2": 0.0, "cut_thickness_mm": 0.0, "added_dense_share": 0.02, "wall_gap_ml": 5.0, "enclosed_mass_ml": 10.0,
    "base_difference_mm": 5.0,
    "back_missing_mm": 0.0, "gas_pocket_ml": 0.0, "threshold_clamped": 0.0, "trachea_found": 1.0,
    "trachea_mean_hu": -990.0, "fov_cut_cm2": 0.0, "lowest_plane_cm2": 0.0, "highest_plane_cm2": 0.0,
}  # fmt: skip


def volume_of(voxels, grid):
    uids = ("",) * len(voxels)
    return Volume(voxels, grid, None, "HU", VolumeStatus.EXACT, (), Dataset(), uids, "0" * 64)


@pytest.fixture(scope="module")
def supine():
    return chest(SHAPE, SPACING, 1)


def test_usual_numbers_are_ok():
    assert judge(USUAL, WHOLE, LungMask()) == (LungStatus.OK, ())


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("right_ml", 2.0, "only one lung"),
        ("right_left_ratio", 0.7, "right to left"),
        ("right_left_ratio", 2.0, "right to left"),
        ("right_ml", 9000.0, "total volume"),
        ("mean_hu", -500.0, "mean of"),
        ("mean_hu", -940.0, "mean of"),
        ("cut_cm2", 90.0, "touch"),
        ("cut_thickness_mm", 40.0, "touch"),
        ("added_dense_share", 0.2, "dense tissue"),
        ("wall_gap_ml", 80.0, "ribs"),
        ("enclosed_mass_ml", 90.0, "left out"),
        ("base_difference_mm", 70.0, "above the other"),
        ("back_missing_mm", 40.0, "at the back"),
        ("gas_pocket_ml", 400.0, "plain gas"),
        ("threshold_clamped", 1.0, "threshold"),
        ("mask_share_pct", 80.0, "of the volume"),
        ("trachea_found", 0.0, "no trachea"),
        ("trachea_mean_hu", -900.0, "calibration"),
    ],
)
def test_each_unusual_number_is_suspect_and_named(name, value, words):
    status, reasons = judge({**USUAL, name: value}, WHOLE, LungMask())
    assert status is LungStatus.SUSPECT
    assert any(words in reason for reason in reasons), reasons


@pytest.mark.parametrize("name", ["fov_cut_cm2", "lowest_plane_cm2", "highest_plane_cm2"])
def test_a_cut_is_truncated_and_comes_before_what_is_suspect(name):
    status, reasons = judge({**USUAL, name: 3.0, "trachea_found": 0.0}, WHOLE, LungMask())
    assert status is LungStatus.TRUNCATED
    assert "cut" in reasons[0]
    assert reasons[-1] == "no trachea was found"


def test_a_trachea_without_a_core_is_not_judged_by_its_air():
    assert judge({**USUAL, "trachea_mean_hu": float("nan")}, WHOLE, LungMask())[0] is LungStatus.OK


def test_an_unsure_side_is_told():
    for crossing, words in ((False, "its side is"), (True, "it may be both")):
        sides = Sides(WHOLE.labels, None, unsure=True, crossing=crossing)
        _, reasons = judge(USUAL, sides, LungMask())
        assert any(words in reason for reason in reasons)


def test_the_numbers_of_an_ordinary_chest(supine):
    voxels, _, grid = supine
    found = segment(volume_of(voxels, grid))
    assert found.status is LungStatus.OK, found.reasons
    quality = found.quality
    assert quality["trachea_found"] == 1.0
    assert -1010.0 < quality["trachea_mean_hu"] < -970.0
    assert 0.5 < quality["left_solidity"] < quality["right_solidity"] < 1.0
    assert quality["wall_gap_ml"] < 20.0
    assert quality["enclosed_mass_ml"] < 20.0
    assert quality["height_mm"] == pytest.approx(225.0, abs=12.0)


def test_dense_lung_at_the_wall_is_noticed(supine):
    voxels, truth, grid = supine
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    lateral = np.argwhere(truth[38] == RIGHT)[:, 1].min()
    lump = ((z - 38) * SPACING[0]) ** 2 + ((y - 48) * SPACING[1]) ** 2 + ((x - lateral) * SPACING[2]) ** 2 < 40.0**2
    found = segment(volume_of(np.where(lump & (truth == RIGHT), np.int16(40), voxels), grid))
    assert found.status is LungStatus.SUSPECT
    assert any("ribs" in reason for reason in found.reasons), found.quality


def test_a_mass_at_the_mediastinum_is_noticed(supine):
    voxels, truth, grid = supine
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    medial = np.argwhere(truth[46] == LEFT)[:, 1].min()
    lump = ((z - 46) * SPACING[0]) ** 2 + ((y - 52) * SPACING[1]) ** 2 + ((x - medial - 6) * SPACING[2]) ** 2 < 32.0**2
    found = segment(volume_of(np.where(lump & (truth == LEFT), np.int16(40), voxels), grid))
    assert any("left out" in reason for reason in found.reasons), found.quality


def test_fluid_behind_a_lung_is_noticed(supine):
    voxels, truth, grid = supine
    z, y, _ = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    fluid = (truth == LEFT) & (y > 52) & (z < 34)
    found = segment(volume_of(np.where(fluid, np.int16(15), voxels), grid))
    assert found.status is LungStatus.SUSPECT
    assert any("at the back" in reason for reason in found.reasons), found.quality


def test_plain_gas_in_a_lung_is_noticed(supine):
    voxels, truth, grid = supine
    _, y, _ = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    free = (truth == RIGHT) & (y < 36)
    found = segment(volume_of(np.where(free, np.int16(-1000), voxels), grid))
    assert any("plain gas" in reason for reason in found.reasons), found.quality


def test_air_that_measures_wrong_is_noticed(supine):
    voxels, _, grid = supine
    found = segment(volume_of((voxels + 90).astype(np.int16), grid))
    assert any("calibration" in reason for reason in found.reasons), found.quality


def test_a_couch_cut_by_the_circle_of_reconstruction_is_no_lung():
    voxels, truth, grid = chest((75, 128, 128), (3.6, 3.3, 3.3), 1)
    middle = 63.5
    circle = np.hypot(np.arange(128)[:, None] - middle, np.arange(128)[None, :] - middle) > 60.0
    for fill in (-1024, -2000):
        filled = np.where(circle, np.int16(fill), voxels)
        found = segment(volume_of(filled, grid))
        assert found.status is LungStatus.OK, found.reasons
        lung = np.isin(found.labels, (RIGHT, LEFT))
        overlap = 2.0 * np.count_nonzero(lung & np.isin(truth, (RIGHT, LEFT)))
        assert overlap / (lung.sum() + np.isin(truth, (RIGHT, LEFT)).sum()) > 0.98


def test_the_fill_of_a_scanner_is_never_lung_where_it_cuts_one():
    voxels, truth, grid = chest((60, 128, 128), (4.5, 2.6, 2.6), 1, table=False)
    circle = np.hypot(np.arange(128)[:, None] - 63.5, np.arange(128)[None, :] - 63.5) > 48.0
    found = segment(volume_of(np.where(circle, np.int16(-2000), voxels), grid))
    assert found.status is LungStatus.TRUNCATED
    assert not found.labels[:, circle].any()
    seen = np.isin(truth, (RIGHT, LEFT)) & ~circle
    lung = np.isin(found.labels, (RIGHT, LEFT))
    assert 2.0 * np.count_nonzero(lung & seen) / (lung.sum() + seen.sum()) > 0.97


@pytest.mark.parametrize("planes", [1, 2])
def test_too_little_of_the_patient_shows_no_lungs(planes):
    voxels, _, grid = chest((planes, 96, 96), (2.0, 4.0, 4.0), 1)
    found = segment(volume_of(voxels, Grid(voxels.shape, grid.affine)))
    assert found.status is LungStatus.NO_LUNGS
    assert "too little" in found.reasons[0]
