"""Dilation, erosion and opening by a ball: what the distances between voxel centres say."""

import edt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctnode.ct.ball import dilated, eroded, opened

pytestmark = pytest.mark.unit

STEP = st.sampled_from([0.6, 0.7, 1.0, 1.5, 1.953125, 2.5, 8.0])
SPACING = st.tuples(STEP, STEP, STEP)


@st.composite
def masks(draw):
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 19)))
    seed, share = draw(st.integers(0, 9999)), draw(st.sampled_from([0.0, 0.02, 0.2, 0.9, 1.0]))
    return np.random.default_rng(seed).random(shape) < share


def within(mask, spacing_mm, radius_mm):
    """Where the nearest voxel of ``mask`` is at most the radius away, one pair of voxels at a time."""
    members = np.argwhere(mask) * spacing_mm
    every = np.indices(mask.shape).reshape(3, -1).T * spacing_mm
    distance = np.linalg.norm(every[:, None] - members[None], axis=2)
    return (distance.min(axis=1, initial=np.inf) <= radius_mm * (1.0 + 1e-6)).reshape(mask.shape)


@settings(deadline=None, max_examples=150)
@given(mask=masks(), spacing_mm=SPACING, radius_mm=st.sampled_from([0.3, 1.0, 3.0, 4.2, 9.0, 30.0]))
def test_a_dilated_mask_is_what_lies_within_the_radius(mask, spacing_mm, radius_mm):
    before = mask.copy()
    np.testing.assert_array_equal(dilated(mask, spacing_mm, radius_mm), within(mask, spacing_mm, radius_mm))
    np.testing.assert_array_equal(mask, before)


@settings(deadline=None, max_examples=150)
@given(mask=masks(), spacing_mm=SPACING, radius_mm=st.sampled_from([1.1, 3.1, 5.3]))
def test_an_eroded_mask_is_what_lies_deeper_than_the_radius(mask, spacing_mm, radius_mm):
    # No distance on these grids comes near one of the radii, so rounding to float32 decides nothing.
    depth = edt.edt(mask, anisotropy=spacing_mm, black_border=False)
    np.testing.assert_array_equal(eroded(mask, spacing_mm, radius_mm), depth > radius_mm)


def test_a_voxel_on_the_sphere_is_within_it_however_its_distance_was_rounded():
    point = np.zeros((1, 1, 13), dtype=bool)
    point[0, 0, 6] = True
    assert dilated(point, (1.0, 1.0, 0.1), 0.3).sum() == 7
    assert dilated(point, (1.0, 1.0, 0.7), 2.1).sum() == 7


def test_an_opening_keeps_what_a_ball_fits_into_and_drops_what_is_thin():
    mask = np.zeros((15, 15, 30), dtype=bool)
    mask[2:13, 2:13, 2:13] = True
    mask[7, 7, 13:] = True
    found = opened(mask, (1.0, 1.0, 1.0), 2.0)
    assert found[7, 7, 12]
    assert not found[:, :, 14:].any()
    assert not (found & ~mask).any()
    assert not opened(mask, (1.0, 1.0, 1.0), 9.0).any()
