"""Order, spacing and affine from positions alone; what is not a regular stack is refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from ctnode.ct.geometry import axes, place
from ctnode.words import Refusal

pytestmark = pytest.mark.unit

AXIAL = (1, 0, 0, 0, 1, 0)


def stack(z, x=0.0, y=0.0):
    z = np.asarray(z, dtype=float)
    return np.column_stack([np.broadcast_to(x, z.shape), np.broadcast_to(y, z.shape), z])


def arrange(positions, orientation=AXIAL, spacing=(0.8, 0.7), **options):
    return place(orientation, np.asarray(positions, dtype=float), spacing, 4, 5, **options)


def refusal_of(positions, **options):
    with pytest.raises(Refusal) as caught:
        arrange(positions, **options)
    return caught.value


def test_slices_are_ordered_along_the_normal_and_the_affine_is_exact():
    found = arrange(stack([10, 0, 5], x=-3, y=7))
    assert found.order == (1, 2, 0)
    assert found.grid.shape == (3, 4, 5)
    np.testing.assert_array_equal(found.grid.affine, [[0.7, 0, 0, -3], [0, 0.8, 0, 7], [0, 0, 5, 0], [0, 0, 0, 1]])
    assert found.issues == ()


def test_the_first_value_of_pixel_spacing_is_the_distance_of_rows():
    affine = arrange(stack([0, 1, 2]), spacing=(2.0, 3.0)).grid.affine
    assert affine[0, 0] == 3.0
    assert affine[1, 1] == 2.0


def test_coronal_slices_are_ordered_along_y_though_all_share_z():
    # Row to the left, column to the feet: the normal points to the back.
    positions = [(0, -2, 9), (0, -6, 9), (0, -4, 9)]
    found = arrange(positions, orientation=(1, 0, 0, 0, 0, -1))
    assert found.order == (1, 2, 0)
    np.testing.assert_allclose(found.grid.affine[:3, 2], (0, 2, 0), atol=1e-12)


def test_rounded_positions_are_regular():
    assert arrange(stack(np.round(np.arange(40) * 0.703, 1))).grid.spacing_mm[0] == pytest.approx(0.703, abs=0.003)


@pytest.mark.parametrize(
    ("z", "code"),
    [
        ([0], "SINGLE_SLICE"),
        ([0, 1], "TOO_FEW_SLICES"),
        ([0, 1, 1, 2], "SAME_POSITION"),
        ([0, 1, 2, 4, 5, 6], "MISSING_SLICES"),
        ([0, 1, 2, 3, 4, 6], "MISSING_SLICES"),
        ([0, 1, 2, 3.4, 5, 7], "UNEQUAL_SPACING"),
        ([0, 5, 10, 15, 25, 35, 45], "UNEQUAL_SPACING"),
        ([0, 1, 2, 3.2, 4, 5], "UNEQUAL_SPACING"),
    ],
)
def test_an_irregular_stack_is_refused(z, code):
    assert refusal_of(stack(z)).code == code


def test_missing_slices_are_counted_and_placed():
    assert str(refusal_of(stack([0, 2, 4, 10, 12, 14]))) == "2 of 8 slices are missing, after slice 2"


@pytest.mark.parametrize("degrees", [0.2, 2.0, -15.0])
def test_a_tilted_stack_is_refused(degrees):
    z = np.arange(30) * 2.0
    assert refusal_of(stack(z, y=np.tan(np.radians(degrees)) * z)).code == "TILT"


def test_a_small_angle_over_a_long_stack_is_a_tilt_too():
    z = np.arange(400) * 1.0
    assert refusal_of(stack(z, y=np.tan(np.radians(0.09)) * z)).code == "TILT"


def test_a_drift_under_half_a_pixel_is_noted():
    z = np.arange(10) * 10.0
    assert [issue.code for issue in arrange(stack(z, x=z / 900)).issues] == ["SMALL_DRIFT"]


def test_rounded_positions_of_a_short_stack_are_no_tilt():
    assert arrange([(0, 0, 0), (0.01, 0, 0.6), (0.01, 0, 1.2)]).issues == ()


def test_slices_on_a_curve_are_refused():
    z = np.arange(20) * 2.0
    assert refusal_of(stack(z, x=(z - 19) ** 2 / 100)).code == "CURVED"


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0.1, 1, 0), (0.9, 0, 0, 0, 1, 0), (1, 0, 0, 1, 0, 0)])
def test_cosines_that_are_no_directions_are_refused(orientation):
    with pytest.raises(Refusal) as caught:
        axes(orientation)
    assert caught.value.code == "BAD_ORIENTATION"


def test_tolerances_can_be_named():
    z = [0, 1, 2, 3.2, 4, 5]
    assert arrange(stack(z), regularity_mm=0.3, regularity_part=0.3).grid.spacing_mm[0] == 1.0
