"""The work grid: what its voxels hold, and the boxes that steps work in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from ctnode.ct.coarse import box_of, coarsen
from ctnode.ct.grid import Grid, Volume
from ctnode.words import VolumeStatus

pytestmark = pytest.mark.unit

STEP = st.sampled_from([0.5, 0.7, 0.9, 1.4, 3.0])


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(2, 7), st.integers(2, 11), st.integers(2, 11)),
    steps=st.tuples(STEP, STEP, STEP),
    seed=st.integers(0, 9999),
    kind=st.sampled_from([np.int16, np.float32]),
)
def test_a_work_voxel_is_the_mean_of_its_block_and_outside_where_one_of_it_is_padding(shape, steps, seed, kind):
    rng = np.random.default_rng(seed)
    voxels = rng.integers(-900, 1500, shape).astype(kind)
    padding = rng.random(shape) < 0.05
    # x and y of LPS grow to the left and to the back, z to the head: the work axes keep the order of the array.
    grid = Grid(shape, np.diag([*steps[::-1], 1.0]))
    volume = Volume(voxels, grid, padding, "HU", VolumeStatus.EXACT, (), Dataset(), ("",) * shape[0], "0" * 64)
    coarse = coarsen(volume)
    for index in np.ndindex(coarse.hu.shape):
        block = tuple(slice(i * factor, (i + 1) * factor) for i, factor in zip(index, coarse.factors, strict=True))
        assert abs(coarse.hu[index] - voxels[block].mean()) <= 0.501
        assert coarse.outside[index] == padding[block].any()


@settings(max_examples=60)
@given(seed=st.integers(0, 9999), share=st.sampled_from([0.01, 0.1, 0.9]))
def test_a_box_holds_its_mask_and_its_neighbours_and_starts_at_even_indices(seed, share):
    rng = np.random.default_rng(seed)
    mask = rng.random((9, 10, 11)) < share
    mask[tuple(rng.integers(mask.shape))] = True
    box = box_of(mask)
    assert mask[box].sum() == mask.sum()
    for axis, part in enumerate(box):
        members = np.nonzero(mask)[axis]
        assert part.start % 2 == 0
        assert max(0, members.min() - 2) <= part.start <= max(0, members.min() - 1)
        assert part.stop == members.max() + 2
