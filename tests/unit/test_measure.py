"""The numbers of a lung against the arrays they are made of."""

import json
from types import MappingProxyType

import numpy as np
import pytest
from pydicom import Dataset

from ctnode.ct.grid import Grid, Volume
from ctnode.ct.kernels import is_sharp
from ctnode.ct.lungs import Lungs
from ctnode.ct.measure import measure
from ctnode.words import LungStatus, VolumeStatus

pytestmark = pytest.mark.unit

GRID = Grid((6, 20, 20), np.diag([0.5, 0.5, 2.0, 1.0]))


def volume_of(voxels, unit="HU", grid=GRID, **technique):
    uids = ("",) * len(voxels)
    return Volume(voxels, grid, None, unit, VolumeStatus.EXACT, (), Dataset(), uids, "0" * 64, technique)


def lungs_of(labels, status=LungStatus.OK, reasons=()):
    return Lungs(labels, status, reasons, MappingProxyType({"right_ml": 1.0}), -400.0)


@pytest.fixture
def voxels():
    return np.random.default_rng(5).normal(-870.0, 60.0, GRID.shape).astype(np.int16)


@pytest.fixture
def labels():
    made = np.zeros(GRID.shape, dtype=np.uint8)
    made[:, 2:18, 2:8] = 1
    made[:, 2:18, 12:17] = 2
    made[:, 8:10, 9:11] = 3
    return made


def test_numbers_equal_numpys_own(voxels, labels):
    made = measure(volume_of(voxels), lungs_of(labels))
    for numbers, part in ((made.right, labels == 1), (made.left, labels == 2), (made.both, np.isin(labels, (1, 2)))):
        values = voxels[part].astype(np.float64)
        assert numbers.volume_ml == pytest.approx(part.sum() * 0.5 * 0.5 * 2.0 / 1000.0, abs=0.005)
        assert numbers.mean_hu == pytest.approx(values.mean(), abs=0.005)
        assert numbers.sd_hu == pytest.approx(values.std(), abs=0.005)
        assert numbers.median_hu == np.percentile(values, 50, method="inverted_cdf")
        for percent in (5, 10, 15, 50, 85, 95):
            found = getattr(numbers, f"perc{percent}_hu")
            assert found == np.percentile(values, percent, method="inverted_cdf"), percent
        deviation = (values - values.mean()) / values.std()
        assert numbers.skewness == pytest.approx((deviation**3).mean(), abs=0.0001)
        assert numbers.kurtosis == pytest.approx((deviation**4).mean() - 3.0, abs=0.0001)
        assert numbers.laa950_pct == pytest.approx(100.0 * (values <= -950).mean(), abs=0.001)
        assert numbers.laa910_pct == pytest.approx(100.0 * (values <= -910).mean(), abs=0.001)
        assert numbers.laa856_pct == pytest.approx(100.0 * (values <= -856).mean(), abs=0.001)
        assert numbers.haa_pct == pytest.approx(100.0 * ((values >= -600) & (values <= -250)).mean(), abs=0.001)
        mass = (np.maximum(values + 1000.0, 0.0) / 1000.0).sum() * 0.0005
        assert numbers.mass_g == pytest.approx(mass, abs=0.005)


def test_a_voxel_of_exactly_minus_950_counts_as_low(labels):
    made = measure(volume_of(np.full(GRID.shape, -950, dtype=np.int16)), lungs_of(labels))
    assert made.both.laa950_pct == 100.0
    assert measure(volume_of(np.full(GRID.shape, -949, dtype=np.int16)), lungs_of(labels)).both.laa950_pct == 0.0


def test_float_volumes_and_values_beyond_int16_are_counted(labels):
    voxels = np.full(GRID.shape, -850.4, dtype=np.float32)
    voxels[0, 2, 2] = 64511.0
    made = measure(volume_of(voxels), lungs_of(labels))
    assert made.right.median_hu == -850.0
    assert made.left.mean_hu == pytest.approx(-850.0)


def test_the_airway_is_in_no_number(voxels, labels):
    other = voxels.copy()
    other[labels == 3] = 3000
    assert measure(volume_of(voxels), lungs_of(labels)) == measure(volume_of(other), lungs_of(labels))


def test_a_missing_lung_has_no_numbers(voxels, labels):
    alone = np.where(labels == 2, np.uint8(0), labels)
    made = measure(volume_of(voxels), lungs_of(alone, LungStatus.SUSPECT, ("only one lung was found",)))
    assert made.left is None
    assert made.both == made.right
    assert made.as_json()["left"] is None


@pytest.mark.parametrize("status", [LungStatus.NO_LUNGS, LungStatus.NOT_RUN])
def test_without_lungs_there_are_no_numbers(voxels, status):
    none = lungs_of(np.zeros(GRID.shape, dtype=np.uint8), status, ("none",))
    made = measure(volume_of(voxels), none)
    assert (made.right, made.left, made.both) == (None, None, None)
    assert made.as_json()["reasons"] == ["none"]


def test_what_is_not_hu_is_never_quantified(voxels, labels):
    assert measure(volume_of(voxels, unit="US"), lungs_of(labels)).both is None


def test_a_mask_of_another_grid_is_refused(voxels, labels):
    with pytest.raises(ValueError, match="not on the grid"):
        measure(volume_of(voxels), lungs_of(labels[1:]))


def test_the_json_has_the_agreed_fields(voxels, labels):
    made = json.loads(json.dumps(measure(volume_of(voxels), lungs_of(labels)).as_json()))
    assert list(made) == ["status", "reasons", "warnings", "quality", "right", "left", "both"]
    agreed = {"volume_ml", "mean_hu", "median_hu", "sd_hu", "perc15_hu", "laa950_pct"}
    assert agreed <= set(made["both"])


@pytest.mark.parametrize("status", [LungStatus.SUSPECT, LungStatus.TRUNCATED])
def test_every_number_carries_the_status_of_its_mask(voxels, labels, status):
    made = measure(volume_of(voxels), lungs_of(labels, status, ("why",)))
    as_json = made.as_json()
    assert {as_json[part]["status"] for part in ("right", "left", "both")} == {str(status)}
    assert made.histogram.as_json()["status"] == str(status)
    lines = made.histogram.as_csv().splitlines()
    assert all(line.endswith(f",{status}") for line in lines[1:])


def test_the_histogram_equals_numpys_own_and_loses_no_voxel(voxels, labels):
    voxels = np.maximum(voxels, -1024)
    voxels[0, 2, 2], voxels[0, 2, 3], voxels[0, 2, 13] = -1500, 201, 200
    made = measure(volume_of(voxels), lungs_of(labels))
    steps = np.arange(-1024, 202) - 0.5
    for label, counts in ((1, made.histogram.right), (2, made.histogram.left)):
        expected, _ = np.histogram(voxels[labels == label], bins=steps)
        assert np.array_equal(counts, expected)
    as_json = made.histogram.as_json()
    assert (as_json["below"], as_json["above"]) == (1, 1)
    assert sum(as_json["both"]) + 2 == np.isin(labels, (1, 2)).sum()
    table = [line.split(",") for line in made.histogram.as_csv().splitlines()]
    assert table[0] == ["hu", "right", "left", "both", "status"]
    assert [int(row[0]) for row in table[1:]] == list(range(-1024, 201))
    assert [int(row[3]) for row in table[1:]] == as_json["both"]


def test_a_lung_of_one_value_has_no_shape(labels):
    made = measure(volume_of(np.full(GRID.shape, -870, dtype=np.int16)), lungs_of(labels))
    assert (made.both.sd_hu, made.both.skewness, made.both.kurtosis) == (0.0, 0.0, 0.0)


def test_no_voxel_weighs_less_than_nothing(labels):
    made = measure(volume_of(np.full(GRID.shape, -1010, dtype=np.int16)), lungs_of(labels))
    assert made.both.mass_g == 0.0


def test_a_number_that_does_not_apply_is_null(voxels, labels):
    lungs = Lungs(labels, LungStatus.OK, (), MappingProxyType({"trachea_mean_hu": float("nan")}), -400.0)
    assert measure(volume_of(voxels), lungs).as_json()["quality"] == {"trachea_mean_hu": None}


@pytest.mark.parametrize(
    ("slice_mm", "technique", "words"),
    [
        (1.5, {}, ()),
        (1.0, {"SliceThickness": 1.25}, ()),
        (2.0, {}, ("slices",)),
        (1.0, {"SliceThickness": 5.0}, ("slices",)),
        (1.0, {"ConvolutionKernel": "B70f"}, ("kernel",)),
        (5.0, {"ConvolutionKernel": ["BONE"]}, ("slices", "kernel")),
    ],
)
def test_thick_slices_and_sharp_kernels_are_warned_of(voxels, labels, slice_mm, technique, words):
    grid = Grid(GRID.shape, np.diag([0.5, 0.5, slice_mm, 1.0]))
    warnings = measure(volume_of(voxels, grid=grid, **technique), lungs_of(labels)).warnings
    assert tuple(warning.split()[0] for warning in warnings) == words


def test_slices_are_those_of_the_stack_whatever_its_orientation(voxels, labels):
    # A coronal stack: its slices follow each other from front to back, 2 mm apart.
    affine = np.array([[0.5, 0, 0, 0], [0, 0, 2.0, 0], [0, -0.5, 0, 0], [0, 0, 0, 1.0]])
    assert measure(volume_of(voxels, grid=Grid(GRID.shape, affine)), lungs_of(labels)).warnings != ()


@pytest.mark.parametrize(
    "name", ["B60f", "B70s", "Br59d", "Bl57", "Hr68", "BONE", "BONEPLUS", "LUNG", "L", "FC51", "FC86"]
)
def test_sharp_kernels_are_known(name):
    assert is_sharp(name)


@pytest.mark.parametrize("name", ["", "B30f", "Br40", "I26f", "STANDARD", "SOFT", "B", "FC08", "FC18", "Qr36"])
def test_soft_and_unknown_kernels_are_not_called_sharp(name):
    assert not is_sharp(name)
