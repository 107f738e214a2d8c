"""The same chest, stored or sampled in another way, has the same lungs on the same sides."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from ctnode.ct.grid import Grid, Volume
from ctnode.ct.lungs import segment
from ctnode.ct.phantom import LEFT, RIGHT, chest
from ctnode.words import VolumeStatus

pytestmark = pytest.mark.integration

SHAPE, SPACING = (90, 112, 112), (3.0, 3.4, 3.4)
SLOW = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def lungs_of(voxels, grid):
    volume = Volume(
        np.ascontiguousarray(voxels), grid, None, "HU", VolumeStatus.EXACT, (), Dataset(), ("",) * len(voxels), "0" * 64
    )
    return segment(volume)


@pytest.fixture(scope="module")
def plain():
    voxels, truth, grid = chest(SHAPE, SPACING, 3)
    found = lungs_of(voxels, grid)
    assert found.quality["right_ml"] > found.quality["left_ml"]
    return voxels, truth, grid, found


def assert_same(found, usual):
    for name in ("right_ml", "left_ml"):
        assert found.quality[name] == pytest.approx(usual.quality[name], rel=0.01), name
    assert found.status is usual.status, found.reasons


@SLOW
@given(order=st.permutations(range(3)), flips=st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_another_order_of_the_array_changes_nothing(plain, order, flips):
    voxels, _, grid, usual = plain
    move = np.eye(4)
    for axis, flip in enumerate(flips):
        if flip:
            move[2 - axis, 2 - axis], move[2 - axis, 3] = -1.0, SHAPE[axis] - 1
    affine = grid.affine @ move
    affine[:, :3] = affine[:, [2 - order[2 - column] for column in range(3)]]
    where = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    turned = voxels[where].transpose(order)
    found = lungs_of(turned, Grid(turned.shape, affine))
    assert_same(found, usual)
    back = found.labels.transpose(np.argsort(order))[where]
    for side, other in ((RIGHT, LEFT), (LEFT, RIGHT)):
        assert np.count_nonzero((back == side) & (usual.labels == other)) == 0


@SLOW
@given(
    scale=st.tuples(*[st.floats(0.7, 1.3)] * 3),
    offset=st.tuples(*[st.floats(-1.5, 1.5)] * 3),
)
def test_another_grid_changes_the_volumes_by_less_than_a_hundredth(plain, scale, offset):
    _, _, _, usual = plain
    spacing = tuple(step * factor for step, factor in zip(SPACING, scale, strict=True))
    shape = tuple(round(size / factor) for size, factor in zip(SHAPE, scale, strict=True))
    voxels, truth, grid = chest(shape, spacing, 3, center_mm=offset)
    found = lungs_of(voxels, grid)
    assert_same(found, usual)
    for side, other in ((RIGHT, LEFT), (LEFT, RIGHT)):
        assert np.count_nonzero((found.labels == other) & (truth == side)) < 0.01 * np.count_nonzero(truth == side)
