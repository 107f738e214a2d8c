"""Order, spacing and affine from positions alone; what is no regular stack is repaired or refused, by name."""

from __future__ import annotations

import numpy as np
import pytest

from ctnode.ct.geometry import axes, place
from ctnode.ct.spacing import Tolerances
from ctnode.words import Refusal, Severity

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


def codes(found):
    return [issue.code for issue in found.issues]


@pytest.mark.parametrize(
    ("z", "expected", "places"),
    [
        ([0, 1], ["TOO_FEW_SLICES"], [0, 1]),
        ([0, 1, 2, 4, 5, 6], ["MISSING_SLICES", "INCOMPLETE"], range(7)),
        ([0, 1, 2, 3, 4, 6], ["MISSING_SLICES", "INCOMPLETE"], range(7)),
        ([*range(9), *range(10, 30)], ["MISSING_SLICES"], range(30)),
        ([*range(50), *range(53, 80)], ["MISSING_SLICES"], range(80)),
        ([*range(100), *range(104, 150)], ["MISSING_SLICES", "INCOMPLETE"], range(150)),
        ([6.0 * k for k in range(60) if k != 30], ["MISSING_SLICES", "INCOMPLETE"], [6.0 * k for k in range(60)]),
        ([5.0 * k for k in range(60) if k != 30], ["MISSING_SLICES"], [5.0 * k for k in range(60)]),
        ([0, 1, 2, 3.4, 5, 7], ["UNEQUAL_SPACING"], range(8)),
        ([0, 5, 10, 15, 25, 35, 45], ["UNEQUAL_SPACING"], [5.0 * k for k in range(10)]),
        ([0, 1, 2, 3.2, 4, 5], ["UNEQUAL_SPACING"], None),
        ([*range(20), *(40.5 + k for k in range(20))], ["UNEQUAL_SPACING", "INCOMPLETE"], None),
    ],
)
def test_an_irregular_stack_is_repaired_and_says_so(z, expected, places):
    found = arrange(stack(z))
    assert codes(found) == expected
    assert all(issue.severity is Severity.WARNING for issue in found.issues)
    if places is not None:
        assert found.grid.shape[0] == len(places)
        np.testing.assert_allclose(np.arange(len(places)) * found.grid.spacing_mm[0], places, atol=1e-9)
    depths = np.array(z, dtype=float)
    if found.plan is not None:
        made = depths[found.plan.lower] * (1 - found.plan.share) + depths[found.plan.upper] * found.plan.share
        np.testing.assert_allclose(made, np.arange(found.grid.shape[0]) * found.grid.spacing_mm[0], atol=0.1)
    assert found.grid.shape[0] <= 2 * len(z)


def test_missing_slices_are_counted_and_placed():
    (missing, _) = arrange(stack([0, 2, 4, 10, 12, 14])).issues
    assert missing.action.startswith("2 of 8 slices are missing")
    assert missing.frames == (3, 4)


def test_more_missing_slices_than_slices_are_refused():
    assert refusal_of(stack([0, 1, 2, 3, 40, 41, 42])).code == "MISSING_SLICES"


@pytest.mark.parametrize("z", [[0, 1, 1, 2], [3, 3]])
def test_slices_at_one_depth_are_refused(z):
    assert refusal_of(stack(z, x=np.arange(len(z)) * 0.01)).code == "SAME_POSITION"


def test_a_slice_alone_is_as_thick_as_it_says():
    found = arrange(stack([7]), thickness_mm=5.0)
    assert codes(found) == ["SINGLE_SLICE"]
    assert found.grid.shape == (1, 4, 5)
    assert found.grid.spacing_mm[0] == 5.0
    for thickness in (None, 0.0, -1.0, 1e-30, float("nan")):
        assert refusal_of(stack([7]), thickness_mm=thickness).code == "SINGLE_SLICE"


def test_thickness_is_no_spacing():
    assert arrange(stack([0, 1, 2, 3]), thickness_mm=5.0).grid.spacing_mm[0] == 1.0


@pytest.mark.parametrize("spacing", [(0.0, 1.0), (-1.0, 1.0), (1.0, 1e6), (1.0, 1e-30)])
def test_spacings_that_no_scanner_has_are_refused(spacing):
    assert refusal_of(stack([0, 1, 2]), spacing=spacing).code == "BAD_SPACING"
    assert refusal_of(stack([0, 1e6, 2e6])).code == "BAD_SPACING"
    assert refusal_of(stack([0, 1e-30, 2e-30])).code == "BAD_SPACING"


@pytest.mark.parametrize("degrees", [0.2, 2.0, -15.0, 30.0])
def test_a_tilted_stack_gets_an_upright_grid_that_holds_it(degrees):
    z = np.arange(30) * 2.0
    slope = np.tan(np.radians(degrees))
    found = place(AXIAL, stack(z, y=slope * z), (0.8, 0.7), 400, 300)
    assert codes(found) == ["TILT"]
    assert found.plan.is_tilted
    np.testing.assert_allclose(found.grid.affine[:3, 2], (0, 0, 2), atol=1e-9)
    enlarged = int(np.ceil(abs(slope) * 58 / 0.8 - 1e-6))
    assert found.grid.shape == (30, 400 + enlarged, 300)
    # Where the plan puts the first pixel of each slice is where that pixel lies.
    corners = np.column_stack([found.plan.shifts, np.arange(30)])
    np.testing.assert_allclose(found.grid.to_lps_mm(corners), stack(z, y=slope * z), atol=1e-9)
    assert found.plan.shifts.min() == 0.0


def test_a_tilt_beyond_all_gantries_is_refused():
    z = np.arange(30) * 2.0
    assert refusal_of(stack(z, y=np.tan(np.radians(50)) * z)).code == "TILT"
    assert refusal_of(stack(z * 40, y=np.tan(np.radians(40)) * z * 40)).code == "TILT"


def test_a_small_angle_over_a_long_stack_is_a_tilt_too():
    z = np.arange(400) * 1.0
    assert codes(arrange(stack(z, y=np.tan(np.radians(0.09)) * z))) == ["TILT"]


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
    assert arrange(stack(z), tolerances=Tolerances(regularity_mm=0.3, regularity_part=0.3)).plan is None
