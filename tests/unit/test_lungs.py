"""Lungs of synthetic chests, whose truth is known for every voxel, and of things that have none."""

import numpy as np
import pytest
from pydicom import Dataset

from ctnode.ct.coarse import anatomical_axes
from ctnode.ct.grid import Grid, Volume
from ctnode.ct.lungs import segment
from ctnode.ct.phantom import AIRWAY, LEFT, RIGHT, chest
from ctnode.words import LungStatus, VolumeStatus

pytestmark = pytest.mark.unit

SHAPE, SPACING = (112, 128, 128), (2.5, 3.0, 3.0)


def volume_of(voxels, grid, *, padding=None, unit="HU"):
    return Volume(
        voxels=np.ascontiguousarray(voxels),
        grid=grid,
        padding=padding,
        unit=unit,
        status=VolumeStatus.EXACT,
        issues=(),
        header=Dataset(),
        sop_uids=("",) * len(voxels),
        input_digest="0" * 64,
    )


def dice(found, truth):
    return 2.0 * np.count_nonzero(found & truth) / (np.count_nonzero(found) + np.count_nonzero(truth))


def assert_lungs(found, truth, *, least=0.98):
    for side in (RIGHT, LEFT):
        assert dice(found.labels == side, truth == side) >= least, side


def turned(voxels, labels, grid, order, flips):
    """The same chest stored in another order: axes permuted and reversed, the affine following."""
    move = np.eye(4)
    for axis, flip in enumerate(flips):
        if flip:
            column = 2 - axis
            move[column, column], move[column, 3] = -1.0, voxels.shape[axis] - 1
    affine = grid.affine @ move
    where = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    columns = [2 - order[2 - column] for column in range(3)]
    affine[:, :3] = affine[:, columns]
    voxels, labels = voxels[where].transpose(order), labels[where].transpose(order)
    return np.ascontiguousarray(voxels), np.ascontiguousarray(labels), Grid(voxels.shape, affine)


@pytest.fixture(scope="module")
def supine():
    return chest(SHAPE, SPACING, 1)


def water(shape=(60, 96, 96), spacing=(4.0, 4.0, 4.0), axes=(160.0, 110.0)):
    """A water-filled ellipse along the patient, in air."""
    _, ny, nx = shape
    affine = np.diag([spacing[2], spacing[1], spacing[0], 1.0])
    y = (np.arange(ny) - (ny - 1) / 2)[:, None] * spacing[1]
    x = (np.arange(nx) - (nx - 1) / 2)[None, :] * spacing[2]
    inside = (x / axes[0]) ** 2 + (y / axes[1]) ** 2 < 1.0
    noise = np.random.default_rng(0).normal(0.0, 15.0, shape)
    return (np.where(inside, 0.0, -1000.0) + noise).astype(np.int16), Grid(shape, affine)


def ball(voxels, grid, center_zyx, radius_mm, hu):
    """Paint a ball into ``voxels``; the centre is in voxels."""
    axes = [
        (np.arange(size) - middle) * step
        for size, middle, step in zip(voxels.shape, center_zyx, grid.spacing_mm, strict=True)
    ]
    square = axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None, :] ** 2
    voxels[square < radius_mm**2] = hu


def test_a_chest_is_the_same_bytes_for_the_same_seed():
    first, again, other = (chest((8, 64, 64), (20.0, 6.0, 6.0), seed) for seed in (3, 3, 4))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
    assert first[0].dtype == np.int16
    assert first[1].dtype == np.uint8


def test_the_right_lung_of_the_phantom_lies_on_the_right_and_is_larger(supine):
    _, labels, grid = supine
    centers = {}
    for side in (RIGHT, LEFT):
        z, y, x = (float(part.mean()) for part in np.nonzero(labels == side))
        centers[side] = grid.to_lps_mm((x, y, z))
    assert centers[RIGHT][0] < -40.0  # LPS: x grows to the left
    assert centers[LEFT][0] > 40.0
    assert np.count_nonzero(labels == RIGHT) > np.count_nonzero(labels == LEFT)


def test_an_ordinary_chest_is_ok(supine):
    voxels, truth, grid = supine
    found = segment(volume_of(voxels, grid))
    assert (found.status, found.reasons) == (LungStatus.OK, ())
    assert_lungs(found, truth)
    assert dice(found.labels == AIRWAY, truth == AIRWAY) > 0.9
    assert found.labels.dtype == np.uint8
    assert -600.0 <= found.threshold_hu <= -300.0


@pytest.mark.parametrize(
    ("order", "flips"),
    [
        ((0, 1, 2), (True, False, False)),  # feet first: slices from head to feet
        ((0, 1, 2), (False, True, True)),  # prone, as the scanner stores it
        ((0, 1, 2), (False, False, True)),  # mirrored columns
        ((0, 1, 2), (False, True, False)),  # mirrored rows
        ((0, 1, 2), (True, True, True)),
        ((1, 0, 2), (False, True, False)),  # a coronal stack, rows from head to feet
        ((2, 0, 1), (False, True, False)),  # a sagittal stack
    ],
)
def test_sides_come_from_the_affine_and_never_from_the_order_of_the_array(supine, order, flips):
    voxels, truth, grid = turned(*supine, order, flips)
    found = segment(volume_of(voxels, grid))
    assert found.status is LungStatus.OK, found.reasons
    assert_lungs(found, truth)


def test_a_mirrored_affine_swaps_the_sides(supine):
    voxels, truth, grid = supine
    mirrored = Grid(grid.shape, np.diag([-1.0, 1.0, 1.0, 1.0]) @ grid.affine)
    found = segment(volume_of(voxels, mirrored))
    assert dice(found.labels == LEFT, truth == RIGHT) > 0.98


def test_an_oblique_stack_keeps_its_sides(supine):
    voxels, truth, grid = supine
    angle = np.deg2rad(20.0)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    found = segment(volume_of(voxels, Grid(grid.shape, turn @ grid.affine)))
    assert_lungs(found, truth)


def test_the_axes_of_an_ordinary_stack_are_its_own():
    assert anatomical_axes(Grid((2, 3, 4), np.eye(4))) == ((0, 1, 2), (False, False, False))


@pytest.mark.parametrize(
    ("spacing", "shape", "options"),
    [
        ((8.0, 1.6, 1.6), (36, 240, 240), {}),  # thick slices
        ((5.0, 3.0, 3.0), (56, 128, 128), {"table": False}),
        ((2.5, 3.0, 3.0), (112, 128, 128), {"noise_hu": 60.0}),  # low dose
        ((4.0, 4.1, 4.1), (72, 96, 96), {}),  # coarser than the work grid
        ((1.25, 1.4, 1.4), (224, 256, 256), {}),  # finer, odd factors
    ],
)
def test_other_scanners_see_the_same_lungs(spacing, shape, options):
    voxels, truth, grid = chest(shape, spacing, 2, **options)
    found = segment(volume_of(voxels, grid))
    assert found.status is LungStatus.OK, found.reasons
    assert_lungs(found, truth)


def test_a_float_volume_gives_the_same_mask(supine):
    voxels, _, grid = supine
    whole = segment(volume_of(voxels, grid))
    floats = segment(volume_of(voxels.astype(np.float32), grid))
    assert np.array_equal(whole.labels, floats.labels)


def test_padding_is_outside_and_never_lung(supine):
    voxels, truth, grid = supine
    rows, columns = (np.arange(128) - 63.5)[:, None], (np.arange(128) - 63.5)[None, :]
    padding = np.broadcast_to(rows**2 + columns**2 > 63.0**2, grid.shape).copy()
    padded = np.where(padding, np.int16(-1024), voxels)
    found = segment(volume_of(padded, grid, padding=padding))
    assert found.status is LungStatus.OK, found.reasons
    assert not found.labels[padding].any()
    assert_lungs(found, truth)


def test_touching_lungs_are_cut_apart(supine):
    voxels, truth, grid = supine
    voxels = voxels.copy()
    # An anterior junction: the lungs meet over 30 x 12 mm with nothing but a line of -700 HU between them.
    bridge = (slice(70, 82), slice(40, 44), slice(46, 82))
    voxels[bridge] = np.where(truth[bridge] > 0, voxels[bridge], -850)
    voxels[70:82, 40:44, 64] = -700
    found = segment(volume_of(voxels, grid))
    assert 1.0 < found.quality["cut_cm2"] < 20.0
    assert found.quality["cut_thickness_mm"] > 0.0
    assert_lungs(found, truth)


def test_nodules_at_the_wall_belong_to_the_lung():
    voxels, truth, grid = chest((60, 192, 192), (1.5, 2.0, 2.0), 1)
    lateral = int(np.flatnonzero((truth[30] == RIGHT).any(axis=0))[0])
    row = int(np.median(np.nonzero(truth[30, :, lateral] == RIGHT)[0]))
    before = voxels.copy()
    ball(voxels, grid, (30, row, lateral + 2), 6.0, 40)
    nodule = (voxels != before) & (truth == RIGHT)
    found = segment(volume_of(voxels, grid))
    # A ball that rolls along the wall leaves a meniscus; by threshold alone all of the nodule would be missing.
    assert np.count_nonzero(found.labels[nodule] == RIGHT) >= 0.8 * np.count_nonzero(nodule)


def test_bowel_gas_below_the_lungs_stays_out(supine):
    voxels, truth, grid = supine
    voxels = voxels.copy()
    ball(voxels, grid, (6, 48, 84), 24.0, -1000)
    found = segment(volume_of(voxels, grid))
    assert found.quality["rejected_gas_ml"] > 20.0
    assert_lungs(found, truth)


def test_one_lung_is_suspect_and_has_its_side(supine):
    voxels, truth, grid = supine
    voxels = np.where(truth == LEFT, np.int16(30), supine[0])
    found = segment(volume_of(voxels, grid))
    assert found.status is LungStatus.SUSPECT
    assert "only one lung was found" in found.reasons
    assert dice(found.labels == RIGHT, truth == RIGHT) > 0.98
    assert not (found.labels == LEFT).any()


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (slice(30, None), "lower end"),
        (slice(None, 70), "upper end"),
        (slice(50, 56), "lower end"),
    ],
)
def test_lungs_cut_by_the_first_or_last_slice_are_truncated(supine, part, words):
    voxels, _, grid = supine
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (part.start or 0)
    found = segment(volume_of(voxels[part], Grid(voxels[part].shape, affine)))
    assert found.status is LungStatus.TRUNCATED
    assert any(words in reason for reason in found.reasons)


def test_upper_and_lower_end_are_the_patients_whatever_the_order_of_slices(supine):
    voxels, truth, grid = supine
    part, _, cut = turned(voxels[:70], truth[:70], Grid((70, 128, 128), grid.affine), (0, 1, 2), (True, False, False))
    found = segment(volume_of(part, cut))
    assert any("upper end" in reason for reason in found.reasons)
    assert not any("lower end" in reason for reason in found.reasons)


def test_lungs_cut_by_the_field_of_view_are_truncated(supine):
    voxels, _, grid = supine
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, 0] * 30
    found = segment(volume_of(voxels[:, :, 30:], Grid((112, 128, 98), affine)))
    assert found.status is LungStatus.TRUNCATED
    assert any("field of view" in reason for reason in found.reasons)


def empty_room():
    noise = np.random.default_rng(0).normal(-1000.0, 20.0, (40, 64, 64)).astype(np.int16)
    return noise, Grid(noise.shape, np.diag([4.0, 4.0, 4.0, 1.0]))


def head():
    voxels, grid = water((50, 64, 64), (4.0, 4.0, 4.0), (75.0, 95.0))
    for middle in (26, 38):
        ball(voxels, grid, (12, 20, middle), 16.0, -1000)  # sinuses
    return voxels, grid


def abdomen():
    voxels, grid = water()
    for z, y, x in ((15, 40, 30), (20, 36, 60), (30, 38, 48), (40, 40, 34)):
        ball(voxels, grid, (z, y, x), 30.0, -990)  # 110 ml of gas each
    return voxels, grid


def abdomen_with_stool():
    voxels, grid = water()
    z, y, x = np.ogrid[:60, :96, :96]
    bubbly = (abs(z - 30) < 12) & ((y - 44) ** 2 + (x - 30) ** 2 < 36)
    noise = np.random.default_rng(1).normal(-250.0, 120.0, voxels.shape)
    return np.where(bubbly, noise, voxels).astype(np.int16), grid


def legs():
    voxels, grid = water(axes=(60.0, 60.0))
    shifted = np.roll(voxels, 20, axis=2)
    return np.maximum(shifted, np.roll(voxels, -20, axis=2)), grid


def solid():
    return np.full((30, 40, 40), 20, dtype=np.int16), Grid((30, 40, 40), np.diag([5.0, 5.0, 5.0, 1.0]))


def foam_in_the_room():
    voxels, grid = empty_room()
    voxels[8:32, 12:52, 12:52] = -850
    return voxels, grid


@pytest.mark.parametrize("made", [empty_room, water, head, abdomen, abdomen_with_stool, legs, solid, foam_in_the_room])
def test_what_has_no_lungs_gets_none(made):
    found = segment(volume_of(*made()))
    assert found.status is LungStatus.NO_LUNGS, found.quality
    assert len(found.reasons) == 1
    assert not found.labels.any()
    assert np.isnan(found.threshold_hu)


def test_what_is_not_in_hu_is_not_looked_at(supine):
    voxels, _, grid = supine
    found = segment(volume_of(voxels, grid, unit="US"))
    assert found.status is LungStatus.NOT_RUN
    assert "not HU" in found.reasons[0]
    assert not found.labels.any()


def test_the_volume_is_left_as_it_was(supine):
    voxels, _, grid = supine
    before = voxels.copy()
    segment(volume_of(voxels, grid))
    assert np.array_equal(voxels, before)
