"""Lungs of patients: against a reference mask where there is one, and for the right status everywhere."""

import os
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from ctnode.ct.grid import Grid, Volume
from ctnode.ct.lungs import segment
from ctnode.ct.select import choose
from ctnode.ct.source import read_frames
from ctnode.ct.volume import build
from ctnode.words import LungStatus, VolumeStatus

pytestmark = pytest.mark.integration

DATA = Path(os.environ.get("CTNODE_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def series(folder):
    place = DATA / folder
    if not place.is_dir():
        pytest.skip(f"no data at {place}; set CTNODE_TEST_DATA")
    frames, issues = read_frames(sorted(place.iterdir()))
    chosen = choose(frames, issues)
    return build(chosen, issues, [frame.digest for frame in frames])


def arrays(read):
    sitk = pytest.importorskip("SimpleITK")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(read.GetDirection(), (3, 3)) @ np.diag(read.GetSpacing())
    affine[:3, 3] = read.GetOrigin()
    voxels = sitk.GetArrayFromImage(read)
    return voxels, Grid(voxels.shape, affine)


def image(name):
    sitk = pytest.importorskip("SimpleITK")
    place = DATA / "mask" / name
    if not place.is_file():
        pytest.skip(f"no data at {place}; set CTNODE_TEST_DATA")
    return arrays(sitk.ReadImage(str(place)))


def stack(folder):
    """The slices of a series one upon the other, whatever their distances: good enough to look for lungs."""
    sitk = pytest.importorskip("SimpleITK")
    place = DATA / folder
    if not place.is_dir():
        pytest.skip(f"no data at {place}; set CTNODE_TEST_DATA")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(place)))
    return arrays(reader.Execute())


def volume_of(voxels, grid, padding=None):
    voxels = voxels.astype(np.int16)
    return Volume(voxels, grid, padding, "HU", VolumeStatus.EXACT, (), Dataset(), ("",) * len(voxels), "0" * 64)


def dice(found, truth):
    return 2.0 * np.count_nonzero(found & truth) / (np.count_nonzero(found) + np.count_nonzero(truth))


def test_a_whole_chest_matches_its_reference():
    volume = series("mask/cip_64")
    found = segment(volume)
    truth, _ = image("cip_64/wholeLung-64.nrrd")
    assert found.status is LungStatus.OK, found.reasons
    assert dice(np.isin(found.labels, (1, 2)), truth > 0) >= 0.98


def test_a_chest_with_a_tumour_that_was_left_out_says_so():
    found = segment(series("chest/lung_dx_a0001_philips_5mm"))
    assert found.status is LungStatus.SUSPECT
    (reason,) = found.reasons
    assert "left out" in reason
    assert 1.0 < found.quality["right_left_ratio"] < 1.6
    assert 20.0 < found.quality["airway_ml"] < 80.0


def test_a_chest_that_ends_above_the_recess_is_truncated():
    # The first slice of this series still shows 5 cm2 of the right lung behind the liver.
    found = segment(series("chest/lung_dx_a0002_siemens_8mm"))
    assert found.status is LungStatus.TRUNCATED
    assert any("lower end" in reason for reason in found.reasons)
    assert 900.0 < found.quality["right_ml"] < found.quality["left_ml"] < 1800.0


def test_a_slab_is_truncated_at_both_ends():
    found = segment(series("chest/lidc_0002_slab_ge_1.25mm"))
    assert found.status is LungStatus.TRUNCATED
    ends = " ".join(found.reasons)
    assert "lower end" in ends
    assert "upper end" in ends
    assert found.quality["right_ml"] > 100.0
    assert found.quality["left_ml"] > 100.0


def test_a_head_has_no_lungs():
    voxels, grid = stack("nolung/ge_head_tilt_changing_spacing")
    padding = voxels < -1024
    found = segment(volume_of(np.maximum(voxels, -1024), grid, padding))
    assert found.status is LungStatus.NO_LUNGS
    assert not found.labels.any()


def test_an_abdomen_has_no_lungs():
    found = segment(series("awkward/totalseg_j2k_no_uids"))
    assert found.status is LungStatus.NO_LUNGS


@pytest.mark.parametrize("time", ["baseline", "followup"])
def test_a_single_lung_cut_by_the_field_of_view_says_so_and_knows_its_side(time):
    voxels, grid = image(f"elastix_right_lung/3DCT_lung_{time}.mha")
    truth, _ = image(f"elastix_right_lung/3DCT_lung_{time}_mask.mha")
    found = segment(volume_of(voxels, grid))
    assert found.status is LungStatus.TRUNCATED
    assert any("field of view" in reason for reason in found.reasons)
    assert "only one lung was found" in found.reasons
    assert dice(found.labels == 1, truth > 0) >= 0.98
