"""Resampling: straight lines exact, no alias, edges where the affine says, nothing wrapped."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from ctnode.ct.grid import Grid
from ctnode.ct.resample import isotropic_grid, resample, resample_labels, sized_grid, spaced_grid, weights
from tests.phantom_series import CORONAL, grid, ramp, world

pytestmark = pytest.mark.unit

METHODS = ("linear", "cubic", "area")


@pytest.mark.parametrize("spacing", [(0.7, 0.8, 1.25), (5.0, 0.6, 0.6), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("edge", [0.5, 1.0, 1.7, 3.0])
@pytest.mark.parametrize("axes", [((1, 0, 0), (0, 1, 0)), CORONAL, ((0.8, 0.6, 0), (-0.6, 0.8, 0))])
@pytest.mark.parametrize("method", METHODS)
def test_a_ramp_stays_a_ramp(spacing, edge, axes, method):
    native = grid((24, 30, 28), spacing, axes)
    target = isotropic_grid(native, edge)
    found = resample(ramp(native), native, target, method=method)
    # Beyond the outermost voxel centres there is nothing to interpolate between; the last value is held.
    voxels = (np.linalg.inv(native.affine) @ np.append(world(target).reshape(-1, 3), np.ones((found.size, 1)), 1).T)[:3]
    inside = ((voxels >= -1e-9) & (voxels <= np.array(native.shape[::-1])[:, None] - 1 + 1e-9)).all(axis=0)
    expected = world(target) @ [1.0, -2.0, 3.0]
    assert np.abs(found - expected).reshape(-1)[inside].max() < 1e-3
    assert inside.mean() > 0.3


def test_the_field_of_view_begins_where_it_began():
    native = grid((10, 20, 20), (5.0, 0.7, 0.6))
    target = isotropic_grid(native, 1.0)
    assert target.spacing_mm == pytest.approx((1.0, 1.0, 1.0), abs=1e-12)
    assert target.shape == (50, 14, 12)
    np.testing.assert_allclose(target.to_lps_mm((-0.5, -0.5, -0.5)), native.to_lps_mm((-0.5, -0.5, -0.5)), atol=1e-9)


# What is left of a sine of 0.45 cycles a sample, shrunk to half, in parts of its RMS; scipy's zoom of order 3: 0.68.
MOST_ALIAS = 0.15


@pytest.mark.parametrize("method", METHODS)
def test_what_the_coarse_grid_cannot_hold_does_not_leak_into_it(method):
    wave = np.sin(2 * np.pi * 0.45 * np.arange(512)).astype(np.float32)
    coarse = weights((np.arange(256) + 0.5) * 2 - 0.5, 512, method) @ wave
    assert coarse.std() < MOST_ALIAS * wave.std()


def test_the_whole_field_of_view_in_any_number_of_voxels():
    native = grid((10, 20, 20), (5.0, 0.7, 0.6))
    target = sized_grid(native, (25, 7, 40))
    assert target.shape == (25, 7, 40)
    for corner in ((-0.5, -0.5, -0.5), (1, 1, 1)):
        share = np.array(corner) if corner[0] < 0 else None
        old = share if share is not None else np.array(native.shape[::-1]) - 0.5
        new = share if share is not None else np.array(target.shape[::-1]) - 0.5
        np.testing.assert_allclose(target.to_lps_mm(new), native.to_lps_mm(old), atol=1e-9)


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, -1, 1), (1, 1, float("nan"))])
def test_a_spacing_that_is_none(spacing):
    with pytest.raises(ValueError, match="spacing"):
        spaced_grid(grid(), spacing)


def test_a_shape_that_is_none():
    with pytest.raises(ValueError, match="shape"):
        sized_grid(grid(), (1, 0, 1))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.4, 3.0))
def test_cubic_never_leaves_the_values_around(seed, edge):
    native = grid((7, 16, 15), (1.5, 0.9, 1.1))
    steps = np.where(np.random.default_rng(seed).random(native.shape) < 0.5, -1000, 3000).astype(np.int16)
    found = resample(steps, native, isotropic_grid(native, edge), method="cubic")
    assert found.min() >= -1000
    assert found.max() <= 3000


def test_cubic_is_sharper_than_linear():
    places = np.arange(0, 63, 0.31)
    wave = np.sin(2 * np.pi * 0.2 * np.arange(64)).astype(np.float32)
    wrong = {
        method: (weights(places, 64, method) @ wave - np.sin(2 * np.pi * 0.2 * places)).std() for method in METHODS
    }
    assert wrong["cubic"] < 0.5 * wrong["linear"]
    assert wrong["area"] == wrong["linear"]


@pytest.mark.parametrize("width", [1.5, 2.0, 3.0, 3.7])
def test_area_is_the_mean_of_the_line_through_the_voxels(width):
    values = np.random.default_rng(5).normal(size=40).astype(np.float32)
    places = (np.arange(int(40 / width)) + 0.5) * width - 0.5
    inner = places[(places - width / 2 >= 1.0) & (places + width / 2 <= 38.0)]
    steps = (np.arange(20_000) + 0.5) / 20_000 - 0.5
    expected = [np.interp(place + steps * width, np.arange(40), values).mean() for place in inner]
    found = (weights(places, 40, "area") @ values)[np.isin(places, inner)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_constants_and_the_same_grid_are_untouched(method):
    native = grid((6, 9, 11), (2.5, 0.8, 0.7))
    constant = np.full(native.shape, -777, np.int16)
    assert (resample(constant, native, isotropic_grid(native, 1.0), method=method) == -777).all()
    noise = np.random.default_rng(1).integers(-32768, 32768, native.shape).astype(np.int16)
    np.testing.assert_array_equal(resample(noise, native, native, method=method), noise)


def test_extreme_values_never_wrap():
    native = grid((4, 40, 40), (1.0, 0.5, 0.5))
    extreme = np.where(np.random.default_rng(2).random(native.shape) < 0.5, -32768, 32767).astype(np.int16)
    target = isotropic_grid(native, 0.8)
    exact = resample(extreme.astype(np.float32), native, target)
    np.testing.assert_allclose(resample(extreme, native, target), np.clip(exact, -32768, 32767), atol=0.51)


@pytest.mark.parametrize("method", METHODS)
def test_threads_do_not_change_a_byte(method):
    native = grid((15, 20, 20), (2.0, 0.7, 0.7))
    noise = np.random.default_rng(3).normal(size=native.shape).astype(np.float32)
    target = isotropic_grid(native, 0.9)
    one, four = (resample(noise, native, target, method=method, threads=count).tobytes() for count in (1, 4))
    assert one == four


def test_enlarging_agrees_with_simpleitk():
    native = grid((12, 20, 22), (3.0, 1.5, 1.25))
    noise = np.random.default_rng(4).normal(0, 300, native.shape).astype(np.float32)
    target = isotropic_grid(native, 1.0)
    like = _itk(np.zeros(target.shape, np.float32), target)
    expected = SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(_itk(noise, native), like, SimpleITK.Transform(), SimpleITK.sitkLinear)
    )
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(resample(noise, native, target)[inner], expected[inner], atol=0.01)


def _itk(voxels: np.ndarray, on: Grid) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing(on.spacing_mm[::-1])
    image.SetOrigin(on.affine[:3, 3].tolist())
    image.SetDirection(on.directions.ravel().tolist())
    return image


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("edge", [1.0, 2.0])
def test_labels_keep_their_volume_and_stay_labels(one_hot, edge):
    native = grid((20, 60, 60), (5.0, 0.8, 0.8))
    points = world(native) - world(native).mean(axis=(0, 1, 2))
    labels = (np.linalg.norm(points / [20, 20, 40], axis=-1) < 1).astype(np.uint8) * 3
    target = isotropic_grid(native, edge)
    found = resample_labels(labels, native, target, one_hot=one_hot)
    assert set(np.unique(found)) == {0, 3}
    assert (found > 0).sum() * target.voxel_ml == pytest.approx((labels > 0).sum() * native.voxel_ml, rel=0.01)


def test_grids_with_other_axes_are_refused():
    with pytest.raises(ValueError, match="axes"):
        resample(np.zeros((8, 12, 10), np.int16), grid(), grid(axes=CORONAL))
