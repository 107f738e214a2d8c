"""Which results are written, on which grid, and the arrays that programs read."""

from __future__ import annotations

import io
import json
import zipfile
from datetime import UTC, datetime

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from ctnode.config import Outputs, Pipeline
from ctnode.ct import normalise
from ctnode.ct.phantom import chest
from ctnode.ct.phantom_dicom import write_series
from ctnode.flow.pipeline import process_series
from ctnode.words import LungStatus, VolumeStatus
from tests.phantom_series import SERIES, STUDY, grid, read, write_ramp

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    voxels, _, on = chest((40, 96, 96), (8.0, 4.0, 4.0))
    return write_series(tmp_path_factory.mktemp("chest"), voxels, on, study_uid=STUDY, series_uid=SERIES)


def run(files, out, pipeline=None, **wanted):
    out.mkdir()
    (report,) = process_series(
        files, study=STUDY, series=SERIES, revision=1, made_at=datetime(2020, 1, 1, tzinfo=UTC), out=out,
        settings=Pipeline(**(pipeline or {})), wanted=Outputs(**wanted),
    )  # fmt: skip
    return report


def test_the_volume_alone(files, tmp_path):
    report = run(files, tmp_path / "out", iso=False, lungs=False, preview=False, mpr=False)
    assert set(report.outputs) == {"ct.json", "ct.nii.gz"} == {path.name for path in (tmp_path / "out").iterdir()}
    assert (report.status, report.lungs) == (VolumeStatus.EXACT, LungStatus.NOT_RUN)
    assert report.reasons == ("not wanted (outputs.lungs)",)
    assert "isotropic" not in json.loads((tmp_path / "out" / "ct.json").read_text())["ctnode"]["geometry"]


def test_lungs_without_the_resampled_ones(files, tmp_path):
    report = run(files, tmp_path / "out", iso=False)
    assert {"lungs.nii.gz", "measurements.json", "report.dcm"} <= set(report.outputs)
    assert not {"ct_iso.nii.gz", "lungs_iso.nii.gz"} & set(report.outputs)


def test_the_page_can_be_left_out(files, tmp_path):
    report = run(files, tmp_path / "out", iso=False, preview=False, mpr=False, surface=False, report=False)
    assert {"lungs.nii.gz", "measurements.json", "seg.dcm", "sr.dcm"} <= set(report.outputs)
    assert "report.dcm" not in report.outputs


@pytest.mark.parametrize(
    ("pipeline", "shape", "zooms"),
    [
        ({"spacing_mm": 4}, (96, 96, 80), (4, 4, 4)),
        ({"spacing_mm": "keep"}, (96, 96, 40), (4, 4, 8)),
        ({"spacing_mm": [6, 8, 5]}, (64, 48, 64), (6, 8, 5)),
        ({"size": [48, 32, 20]}, (48, 32, 20), (8, 12, 16)),
        ({"spacing_mm": 4, "interpolation": "cubic", "labels": "one-hot"}, (96, 96, 80), (4, 4, 4)),
    ],
)
def test_the_grid_that_was_asked_for(files, tmp_path, pipeline, shape, zooms):
    run(files, tmp_path / "out", pipeline)
    for name in ("ct_iso.nii.gz", "lungs_iso.nii.gz"):
        image = nibabel.load(tmp_path / "out" / name)
        assert image.shape == shape
        assert image.header.get_zooms() == pytest.approx(zooms)


def test_a_grid_that_no_machine_holds_is_not_made(files, tmp_path):
    report = run(files, tmp_path / "out", {"size": [4096, 4096, 4096]}, lungs=False, preview=False)
    assert "ct_iso.nii.gz" not in report.outputs
    assert "RESAMPLED_TOO_LARGE" in [issue.code for issue in report.issues]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_array_for_a_network(files, tmp_path, dtype):
    report = run(files, tmp_path / "out", {"spacing_mm": 4}, array=dtype, lungs=False, preview=False, array_mean=0.5)
    assert {"ct_norm.npy", "ct_norm.json"} <= set(report.outputs)
    found = np.load(tmp_path / "out" / "ct_norm.npy", mmap_mode="r")
    image = nibabel.load(tmp_path / "out" / "ct_iso.nii.gz")
    hu = np.asanyarray(image.dataobj).T
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, normalise(hu, mean=0.5, dtype=dtype))
    place = json.loads((tmp_path / "out" / "ct_norm.json").read_text())
    np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ place["affine_lps_mm"], image.affine, atol=1e-4)
    assert (place["dtype"], place["clip_hu"], place["mean"]) == (dtype, [-1000, 400], 0.5)
    assert hu.min() < -0.75


def test_no_array_for_a_network_without_hounsfield_units(tmp_path):
    files = write_ramp(tmp_path / "in", grid(), edit=lambda _, dataset: setattr(dataset, "RescaleType", "US"))
    report = run(files, tmp_path / "out", array="float32")
    assert "ct_norm.npy" not in report.outputs


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-32768, 32767), min_size=1), st.floats(-2000, 0), st.floats(1, 3000), st.floats(-1, 1))
def test_normalising_is_its_formula(values, low, width, mean):
    found = normalise(np.array(values, np.int16), clip_hu=(low, low + width), mean=mean, dtype=np.float64)
    expected = [(min(max(value, low), low + width) - low) / (low + width - low) - mean for value in values]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_normalising_leaves_its_input_alone_and_refuses_nonsense():
    values = np.array([-2000.0, 0.0], np.float32)
    normalise(values)
    assert values.tolist() == [-2000, 0]
    with pytest.raises(ValueError, match="above"):
        normalise(values, clip_hu=(1, 1))
    with pytest.raises(ValueError, match="floating"):
        normalise(values, dtype=np.int16)


def slices(place) -> np.ndarray:
    with zipfile.ZipFile(place) as archive:
        return np.stack([np.array(Image.open(io.BytesIO(archive.read(name)))) for name in sorted(archive.namelist())])


def metal(_index, dataset):
    dataset.PixelData = b"\xff\xff" + dataset.PixelData[2:]


def far_below(_index, dataset):
    dataset.RescaleIntercept = -4000


@pytest.mark.parametrize(("edit", "offset"), [(None, 1024), (metal, 1024), (far_below, 32768)])
def test_slices_as_16_bit_png_lose_nothing(tmp_path, edit, offset):
    files = write_ramp(tmp_path / "in", grid(), edit=edit)
    run(files, tmp_path / "out", png16=True, lungs=False, preview=False)
    volume = read(files)
    told = json.loads((tmp_path / "out" / "ct.json").read_text())["ctnode"]["png16"]["offset_hu"]
    assert told == offset
    np.testing.assert_array_equal(slices(tmp_path / "out" / "slices.zip").astype(int) - told, volume.voxels)
    run(files, tmp_path / "again", png16=True, lungs=False, preview=False)
    assert (tmp_path / "out" / "slices.zip").read_bytes() == (tmp_path / "again" / "slices.zip").read_bytes()


def test_fractions_of_a_unit_make_no_png(tmp_path):
    files = write_ramp(tmp_path / "in", grid(), per_slice_rescale=[(0.5, -1024.25)] * 8)
    report = run(files, tmp_path / "out", png16=True, lungs=False, preview=False)
    assert "slices.zip" not in report.outputs
    assert json.loads((tmp_path / "out" / "ct.json").read_text())["ctnode"]["png16"]["offset_hu"] is None


@pytest.mark.parametrize("window", ["auto", "header", "bone", "soft tissue"])
def test_the_preview_takes_the_window_that_was_asked_for(files, tmp_path, window):
    report = run(files, tmp_path / "out", window=window, lungs=False, iso=False)
    assert "preview.png" in report.outputs


@pytest.mark.parametrize(
    "wrong", [{"array_clip_hu": [1, 1]}, {"array_mean": float("nan")}, {"array": "int8"}, {"window": "liver"}]
)
def test_outputs_that_make_no_sense(wrong):
    with pytest.raises(ValidationError):
        Outputs(**wrong)


@pytest.mark.parametrize("wrong", [
    {"spacing_mm": 0.1}, {"spacing_mm": -1}, {"spacing_mm": 0}, {"spacing_mm": 21}, {"spacing_mm": float("nan")},
    {"spacing_mm": True}, {"spacing_mm": "1"}, {"spacing_mm": "kept"}, {"spacing_mm": [1, 1]},
    {"spacing_mm": [1, 1, 0]}, {"spacing_mm": None}, {"size": [1, 2]}, {"size": [0, 2, 3]},
])  # fmt: skip
def test_grids_that_make_no_sense(wrong):
    with pytest.raises(ValidationError):
        Pipeline(**wrong)
