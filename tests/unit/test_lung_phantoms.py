"""The phantoms themselves: the truth that judges the lungs must be right, on every grid."""

from dataclasses import replace

import numpy as np
import pytest

from tests.lung_chest import Chest, vessels
from tests.lung_phantom_cases import CASES, HILAR, PLEURAL, flipped, zoomed
from tests.lung_phantoms import AIRWAY, LEFT, RIGHT, Scan, capsule, ellipsoid, grid_of, scan, with_noise
from tests.lungless_phantoms import LUNGLESS

pytestmark = pytest.mark.unit

SMALL = grid_of(48, 8.0, 8.0)


def volumes_ml(made: Scan) -> np.ndarray:
    return np.array([(made.labels == label).sum() * made.grid.voxel_ml for label in (RIGHT, LEFT, AIRWAY)])


def middle(made: Scan, label: int) -> np.ndarray:
    return made.grid.to_lps_mm(np.argwhere(made.labels == label)[:, ::-1].mean(axis=0))


@pytest.fixture(scope="module")
def chest() -> Scan:
    return scan(Chest(), SMALL)


def test_there_are_as_many_phantoms_as_promised():
    assert len(CASES) >= 36
    assert len(LUNGLESS) >= 24


def test_surfaces_are_distances():
    point = tuple(np.float32(value) for value in (30.0, 0.0, 40.0))
    assert ellipsoid(*point, (0.0, 0.0, 0.0), (20.0, 20.0, 20.0)) == pytest.approx(30.0, abs=1e-3)
    assert ellipsoid(*point, (0.0, 0.0, 0.0), (20.0, 20.0, np.inf)) == pytest.approx(10.0, abs=1e-3)
    assert capsule(*point, (0.0, 0.0, 0.0), (0.0, 0.0, 90.0), 4.0) == pytest.approx(26.0, abs=1e-3)


def test_the_chest_is_that_of_an_adult(chest):
    right, left, airway = volumes_ml(chest)
    assert 2500 < left < right < 3500
    assert 25 < airway < 60
    assert middle(chest, RIGHT)[0] < -40.0 < 40.0 < middle(chest, LEFT)[0]


def test_hu_are_those_of_tissues(chest):
    lungs = np.isin(chest.labels, (RIGHT, LEFT))
    assert -860 < np.median(chest.hu[lungs]) < -800
    assert chest.hu[0, 0, 0] == -1000.0
    assert chest.hu.max() > 250.0


@pytest.mark.parametrize(
    "grid",
    [
        grid_of(64, 6.0, 4.0),
        grid_of(48, 8.0, 16.0, (-168.0, 152.0)),
        grid_of(48, 8.0, 8.0, rows=(-1, 0, 0), columns=(0, -1, 0)),
        grid_of(48, 8.0, 8.0, (-200.0, 200.0), rows=(0, 1, 0), columns=(0, 0, -1)),
        grid_of(56, 8.0, 8.0, (-190.0, 170.0), tilt_deg=(12.0, 9.0)),
    ],
    ids=["finer", "thick", "prone", "sagittal", "oblique"],
)
def test_the_truth_is_the_same_on_every_grid(chest, grid):
    made = scan(Chest(), grid)

    # Half of the airway's cross-section is surface on so coarse a grid; the lungs must agree.
    np.testing.assert_allclose(volumes_ml(made)[:2], volumes_ml(chest)[:2], rtol=0.02)
    for label in (RIGHT, LEFT):
        np.testing.assert_allclose(middle(made, label), middle(chest, label), atol=1.5)


def test_flips_keep_every_voxel_at_its_place(chest):
    where, affine = flipped(SMALL, (True, False, True))
    turned = Scan(chest.hu[where], chest.labels[where], chest.nodules[where], replace(SMALL, affine=affine))
    np.testing.assert_allclose(middle(turned, RIGHT), middle(chest, RIGHT), atol=1e-6)


def test_a_finer_matrix_shows_the_same(chest):
    fine = zoomed(chest, 2)
    assert fine.hu.shape == (chest.hu.shape[0], 96, 96)
    np.testing.assert_allclose(volumes_ml(fine), volumes_ml(chest))
    np.testing.assert_allclose(middle(fine, LEFT), middle(chest, LEFT), atol=1e-6)
    assert fine.hu.mean() == pytest.approx(chest.hu.mean(), abs=2.0)


def test_noise_has_the_spread_that_was_asked_for():
    flat = np.zeros((10, 64, 64), dtype=np.float32)
    noisy = with_noise(flat, 40.0)
    assert noisy.std() == pytest.approx(40.0, rel=0.05)
    np.testing.assert_array_equal(noisy, with_noise(flat, 40.0))
    # Neighbours are alike, as after filtered back projection, and less so with a sharp kernel.
    alike = [
        np.corrcoef(n[:, :, 1:].ravel(), n[:, :, :-1].ravel())[0, 1]
        for n in (noisy, with_noise(flat, 40.0, sharp=True))
    ]
    assert alike[0] > 0.2 > alike[1]


@pytest.mark.parametrize("nodules", [PLEURAL, HILAR], ids=["pleural", "hilar"])
def test_nodules_belong_to_a_lung(nodules):
    made = scan(Chest(nodules=nodules), grid_of(112, 2.8, 3.0, (-90.0, 45.0)))

    balls_ml = sum(4.19e-3 * nodule.radius**3 for nodule in nodules)
    assert 0.6 * balls_ml < made.nodules.sum() * made.grid.voxel_ml < 1.05 * balls_ml
    assert np.isin(made.labels[made.nodules], (RIGHT, LEFT)).all()
    assert np.median(made.hu[made.nodules]) > 0.0


def test_vessels_begin_at_the_hilum_and_stay_on_their_side():
    for side, sign in ((RIGHT, -1.0), (LEFT, 1.0)):
        starts = np.array([start for start, *_ in vessels(side)])
        assert (starts[:, 0] * sign > 0.0).all()
