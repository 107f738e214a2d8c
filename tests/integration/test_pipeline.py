"""Files to volume to results folder: the ramp phantom through every disguise, and real chests against SimpleITK."""

from __future__ import annotations

import dataclasses
import gzip
import json
from datetime import UTC, datetime

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from ctnode.config import Pipeline
from ctnode.ct.phantom import chest
from ctnode.ct.phantom_dicom import write_series
from ctnode.flow.job import STEPS
from ctnode.flow.pipeline import process_series
from ctnode.words import LungStatus, Refusal, VolumeStatus
from tests.adversarial import multiframe
from tests.phantom_series import (
    CORONAL,
    FEET_FIRST,
    SERIES,
    STUDY,
    grid,
    ramp,
    read,
    test_data,
    worst_hu,
    write_ramp,
)

pytestmark = pytest.mark.integration

HALF_HU = 0.5 + 1e-4  # rounding to whole HU, and positions written with 16 digits


def dirty_high_bits(index, dataset):
    stored = np.frombuffer(dataset.PixelData, np.uint16)
    dataset.PixelData = (stored | np.uint16((index % 15 + 1) << 12)).tobytes()


def corner(value):
    def edit(_index, dataset):
        stored = np.frombuffer(dataset.PixelData, np.int16).copy().reshape(dataset.Rows, dataset.Columns)
        stored[:3, :3] = value
        dataset.PixelData = stored.tobytes()
        dataset.add_new("PixelPaddingValue", "SS", value)

    return edit


@pytest.mark.parametrize(
    ("on", "options"),
    [
        (grid(), {}),
        (grid(axes=CORONAL), {}),
        (grid(axes=FEET_FIRST), {}),
        (grid(axes=((0.8, 0.6, 0), (-0.6, 0.8, 0))), {}),
        (grid(axes=((0.8, 0, 0.6), (0, 1, 0))), {}),
        (grid(spacing=(1.0, 0.5, 2.0)), {}),
        (grid(), {"signed": True}),
        (grid(), {"signed": True, "bits_stored": 12}),
        (grid(), {"bits_stored": 12, "edit": dirty_high_bits}),
        (grid(), {"per_slice_rescale": [(1.0, -1024.0 - 10 * k) for k in range(8)]}),
        (grid(), {"signed": True, "edit": corner(-2000)}),
        (grid(), {"transfer_syntax": ImplicitVRLittleEndian}),
        (grid(), {"transfer_syntax": DeflatedExplicitVRLittleEndian}),
        (grid(), {"transfer_syntax": RLELossless}),
        (grid(), {"transfer_syntax": JPEGLSLossless}),
        (grid((8, 64, 64)), {"transfer_syntax": JPEG2000Lossless}),
        (grid((8, 64, 64)), {"transfer_syntax": JPEG2000Lossless, "signed": True}),
    ],
)
def test_every_voxel_is_where_the_affine_says(tmp_path, on, options):
    volume = read(write_ramp(tmp_path, on, **options))
    assert volume.status is VolumeStatus.EXACT
    assert volume.voxels.dtype == np.int16
    assert worst_hu(volume) <= HALF_HU
    np.testing.assert_allclose(volume.grid.affine, on.affine, atol=1e-9)


def test_slopes_of_each_slice(tmp_path):
    rescale = [(0.25 + k / 8, -1000.0) for k in range(8)]
    volume = read(write_ramp(tmp_path, grid(), per_slice_rescale=rescale))
    assert volume.voxels.dtype == np.float32
    assert worst_hu(volume) <= 0.6 * rescale[-1][0]


def test_padding_is_air_and_marked(tmp_path):
    volume = read(write_ramp(tmp_path, grid(), signed=True, edit=corner(-2000)))
    assert volume.padding is not None
    assert (volume.voxels[volume.padding] == -1024).all()
    assert volume.padding.sum() == 8 * 9


def test_metal_is_never_wrapped(tmp_path):
    def metal(_index, dataset):
        dataset.PixelData = b"\xff\xff" + dataset.PixelData[2:]

    volume = read(write_ramp(tmp_path, grid(), edit=metal))
    assert volume.voxels.dtype == np.float32
    assert (volume.voxels[:, 0, 0] == 64511).all()


def test_values_that_are_not_hu_keep_their_unit(tmp_path):
    volume = read(write_ramp(tmp_path, grid(), edit=lambda _, dataset: setattr(dataset, "RescaleType", "US")))
    assert volume.unit == "US"
    assert "NOT_HU" in {issue.code for issue in volume.issues}


def without(*indices):
    return lambda paths: [path for index, path in enumerate(paths) if index not in indices]


def drop(keyword):
    return lambda _index, dataset: delattr(dataset, keyword)


@pytest.mark.parametrize(
    ("edit", "pick", "code"),
    [
        (drop("RescaleIntercept"), without(), "NO_RESCALE"),
        (drop("ImageOrientationPatient"), without(), "NO_GEOMETRY"),
        (lambda _, dataset: setattr(dataset, "Rows", 13), without(), "BAD_PIXELS"),
    ],
)
def test_what_would_need_a_guess_is_refused(tmp_path, edit, pick, code):
    paths = pick(write_ramp(tmp_path, grid(), edit=edit))
    with pytest.raises(Refusal) as caught:
        read(paths)
    assert caught.value.code == code


def test_a_slice_that_is_cut_off_is_refused(tmp_path):
    paths = write_ramp(tmp_path, grid())
    paths[2].write_bytes(paths[2].read_bytes()[:-30])
    with pytest.raises(Refusal, match="cut off") as caught:
        read(paths)
    assert caught.value.code == "BAD_PIXELS"


def test_a_codestream_of_another_size_is_not_decoded(tmp_path):
    paths = write_ramp(tmp_path, grid((8, 64, 64)), transfer_syntax=JPEG2000Lossless)
    content = paths[0].read_bytes()
    siz = content.index(b"\xff\x4f\xff\x51") + 8
    paths[0].write_bytes(content[:siz] + np.array([60000, 60000], ">u4").tobytes() + content[siz + 8 :])
    with pytest.raises(Refusal, match="codestream") as caught:
        read(paths)
    assert caught.value.code == "BAD_PIXELS"


def test_an_unreadable_file_makes_the_volume_repaired_and_is_named(tmp_path):
    paths = write_ramp(tmp_path, grid())
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 300)
    volume = read([*paths, broken])
    assert volume.status is VolumeStatus.REPAIRED
    assert "sha256:" in volume.issues[0].action


def test_nested_sequences_do_not_end_the_process(tmp_path):
    deep = tmp_path / "deep.dcm"
    item = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    deep.write_bytes(b"\0" * 128 + b"DICM" + item * 3000)
    volume = read([*write_ramp(tmp_path, grid()), deep])
    assert [issue.code for issue in volume.issues] == ["UNREADABLE"]


def test_a_localizer_and_a_second_acquisition_are_left_out(tmp_path):
    def second(_index, dataset):
        dataset.AcquisitionNumber = 2
        dataset.SOPInstanceUID += ".2"
        dataset.RescaleIntercept = "-900"

    def localizer(_index, dataset):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        dataset.SOPInstanceUID += ".3"

    plain = write_ramp(tmp_path / "a", grid())
    volume = read(
        plain
        + write_ramp(tmp_path / "b", grid(), edit=second)
        + write_ramp(tmp_path / "c", grid((2, 12, 10), axes=CORONAL), edit=localizer)
    )
    assert {issue.code for issue in volume.issues} == {"LOCALIZER", "OTHER_ACQUISITION"}
    assert worst_hu(volume) <= HALF_HU


def content(volume):
    padding = b"" if volume.padding is None else volume.padding.tobytes()
    return (
        volume.voxels.tobytes(),
        volume.grid.affine.tobytes(),
        padding,
        volume.issues,
        volume.sop_uids,
        volume.input_digest,
    )


@pytest.fixture(scope="module")
def disordered(tmp_path_factory):
    """A series with everything in it whose order could matter."""
    place = tmp_path_factory.mktemp("disordered")

    def again(_index, dataset):
        dataset.SOPInstanceUID += ".2"

    paths = write_ramp(place / "a", grid(), signed=True, edit=corner(-2000))
    paths += write_ramp(
        place / "b", grid((3, 12, 10)), signed=True, edit=lambda k, d: (corner(-2000)(k, d), again(k, d))
    )
    paths += write_ramp(
        place / "c",
        grid((4, 12, 10), axes=CORONAL),
        edit=lambda _, d: setattr(d, "SOPInstanceUID", d.SOPInstanceUID + ".3"),
    )
    return paths, content(read(paths))


def test_a_legacy_converted_ct_equals_its_single_frames():
    for folder in ("23x38x3", "24x38x3"):
        place = test_data() / "awkward" / "dcmqi" / folder
        single = read(sorted((place / "image").glob("*.dcm")))
        whole = read([place / "multiframe" / "mf.dcm"])
        np.testing.assert_array_equal(whole.voxels, single.voxels)
        np.testing.assert_allclose(whole.grid.affine, single.grid.affine, atol=1e-6)
        assert whole.status is single.status is VolumeStatus.EXACT


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_order_of_the_files_changes_no_byte(disordered, data):
    paths, expected = disordered
    assert content(read(data.draw(st.permutations(paths)))) == expected


LOSSLESS = (".1.2.dcm", ".1.2.1.dcm", ".1.2.2.dcm", ".99.dcm", ".5.dcm", ".57.dcm", ".70.dcm", ".80.dcm", ".90.dcm")


def test_real_slices_decode_alike_in_every_lossless_syntax():
    from ctnode.ct.decode import stored_values
    from ctnode.ct.source import read_file

    folder = test_data() / "awkward" / "transfer_syntaxes"
    paths = [path for path in sorted(folder.glob("CTImage.dcm_*")) if path.name.endswith(LOSSLESS)]
    assert len(paths) == 9
    assert len({stored_values(read_file(path)[0]).tobytes() for path in paths}) == 1


def test_twelve_bits_of_jpeg_extended_are_decoded_without_noise(capfd):
    from ctnode.ct.decode import stored_values
    from ctnode.ct.source import read_file

    folder = test_data() / "awkward" / "transfer_syntaxes"
    (whole,) = read_file(next(folder.glob("CTImage.dcm_*.51.dcm")))
    values = stored_values(whole)
    assert (values.min(), values.max()) == (497, 2708)
    plain = stored_values(read_file(next(folder.glob("CTImage.dcm_*1.2.1.dcm")))[0]).astype(float)
    inside = plain > -1000
    assert np.corrcoef(values[inside], plain[inside])[0, 1] > 0.999  # lossy
    frames = read_file(folder / "CT0012.fragmented_no_bot_jpeg_baseline.51.dcm")
    assert [int(stored_values(frame).max()) for frame in frames] == [2223, 2197]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("syntax", [".53", ".55"])
def test_a_syntax_that_nothing_decodes_is_refused_by_name(syntax):
    from ctnode.ct.decode import stored_values
    from ctnode.ct.source import read_file

    path = next((test_data() / "awkward" / "transfer_syntaxes").glob(f"CTImage.dcm_*{syntax}.dcm"))
    with pytest.raises(Refusal, match=f"1.2.840.10008.1.2.4{syntax}") as caught:
        stored_values(read_file(path)[0])
    assert caught.value.code == "NO_DECODER"


@pytest.mark.parametrize("name", ["lung_dx_a0001_philips_5mm", "lung_dx_a0002_siemens_8mm", "lidc_0002_slab_ge_1.25mm"])
def test_real_chests_agree_with_simpleitk(name):
    folder = test_data() / "chest" / name
    volume = read(path for path in folder.iterdir() if path.is_file())
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    expected = SimpleITK.GetArrayFromImage(image)
    if affine[:3, 2] @ volume.grid.affine[:3, 2] < 0:  # ITK sorts feet first series the other way
        affine[:3, 3] += affine[:3, 2] * (expected.shape[0] - 1)
        affine[:3, 2] *= -1
        expected = expected[::-1]
    np.testing.assert_allclose(volume.grid.affine, affine, atol=1e-3)
    counted = np.ones(expected.shape, bool) if volume.padding is None else ~volume.padding
    np.testing.assert_array_equal(volume.voxels[counted], expected[counted])
    assert volume.status is VolumeStatus.EXACT


def run(files, out, **options):
    out.mkdir()
    settings = {
        "study": STUDY, "series": SERIES, "revision": 1, "made_at": datetime(2020, 1, 1, tzinfo=UTC), "out": out,
        "settings": Pipeline(), **options,
    }  # fmt: skip
    (report,) = process_series(files, **settings)
    return report


@pytest.fixture(scope="module")
def chest_files(tmp_path_factory):
    voxels, _, on = chest((60, 128, 128), (5.0, 3.0, 3.0))
    return write_series(tmp_path_factory.mktemp("chest"), voxels, on, study_uid=STUDY, series_uid=SERIES)


ALL = {
    "ct.json", "ct.nii.gz", "ct_iso.nii.gz", "preview.png", "mpr.png", "lungs.nii.gz", "lungs_iso.nii.gz", "lungs.png",
    "measurements.json", "histogram.json", "histogram.csv", "report.dcm", "seg.dcm", "sr.dcm", "surface.png",
    "histogram.png",
}  # fmt: skip


def test_a_chest_gets_all_results(chest_files, tmp_path):
    steps = []
    report = run(chest_files, tmp_path / "out", on_step=steps.append)
    assert report.status is VolumeStatus.EXACT
    assert report.lungs is not LungStatus.NO_LUNGS
    assert set(report.outputs) == ALL == {path.name for path in (tmp_path / "out").iterdir()}
    assert list(dict.fromkeys(steps)) == [*STEPS[:5], "write"]
    assert report.seconds.keys() == set(STEPS)
    native = nibabel.load(tmp_path / "out" / "ct.nii.gz")
    expected = read(chest_files)
    np.testing.assert_array_equal(np.asanyarray(native.dataobj).T, expected.voxels)
    np.testing.assert_allclose(native.affine, np.diag([-1, -1, 1, 1]) @ expected.grid.affine, atol=1e-4)
    assert nibabel.load(tmp_path / "out" / "lungs_iso.nii.gz").header.get_zooms() == pytest.approx((1, 1, 1))
    sidecar = json.loads((tmp_path / "out" / "ct.json").read_text())
    assert sidecar["KVP"] == 120
    assert sidecar["ctnode"]["status"] == "EXACT"
    assert "PHANTOM" not in (tmp_path / "out" / "ct.json").read_text()


def test_an_enhanced_ct_of_a_chest_gets_the_results_of_its_single_frames(chest_files, tmp_path):
    images = [pydicom.dcmread(path) for path in chest_files]
    whole = multiframe(images[::-1], uid="chest")
    (tmp_path / "in").mkdir()
    whole.save_as(tmp_path / "in" / "whole.dcm", enforce_file_format=True)
    single = run(chest_files, tmp_path / "single")
    enhanced = run([tmp_path / "in" / "whole.dcm"], tmp_path / "enhanced")
    assert (enhanced.status, enhanced.lungs, enhanced.reasons) == (single.status, single.lungs, single.reasons)
    assert enhanced.outputs == single.outputs
    for name in ("ct.nii.gz", "lungs.nii.gz", "measurements.json"):
        assert (tmp_path / "enhanced" / name).read_bytes() == (tmp_path / "single" / name).read_bytes(), name
    assert json.loads((tmp_path / "enhanced" / "ct.json").read_text())["KVP"] == 120


def test_a_scale_that_is_not_that_of_hounsfield_units_is_suspect(chest_files, tmp_path):
    for path in chest_files:
        dataset = pydicom.dcmread(path)
        dataset.RescaleIntercept = "0"
        dataset.save_as(tmp_path / path.name)
    volume = read(sorted(tmp_path.iterdir()))
    assert volume.status is VolumeStatus.REPAIRED
    assert [issue.code for issue in volume.issues] == ["HU_SUSPECT"]


@pytest.mark.parametrize(
    "name",
    [
        "tilt_with_unequal_spacing",
        "enhanced_with_two_times",
        "a_slice_twice",
        "two_kernels",
        "two_passes_just_beside_each_other",
    ],
)
def test_repaired_and_multiframe_volumes_do_not_depend_on_order_either(tmp_path, name):
    from tests.adversarial import CASES

    CASES[name](tmp_path)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    first = content(read(files))
    assert content(read(files[::-1])) == first
    renamed = [path.rename(tmp_path / f"again{len(files) - number:03}") for number, path in enumerate(files)]
    assert content(read(renamed)) == first


def test_processes_decode_what_one_does_and_refuse_alike(tmp_path):
    from ctnode.ct.decode import stored_values
    from ctnode.ct.parallel import decoder
    from ctnode.ct.source import read_frames

    paths = write_ramp(tmp_path, grid((4, 64, 64)), transfer_syntax=JPEGLSLossless)
    frames, _ = read_frames(paths)
    broken = dataclasses.replace(frames[0], rows=63)
    with decoder(frames, 2, least_work_s=0.0) as decode:
        assert decode is not stored_values
        for frame in frames:
            np.testing.assert_array_equal(decode(frame), stored_values(frame))
        with pytest.raises(Refusal) as caught:
            decode(broken)
    assert caught.value.code == "BAD_PIXELS"
    for processes in (1, 2):
        with decoder(frames, processes) as decode:
            assert decode is stored_values


def test_a_decoder_that_takes_its_process_with_it_is_a_refusal(tmp_path):
    from ctnode.ct.parallel import decoder
    from ctnode.ct.source import read_frames

    frames, _ = read_frames(write_ramp(tmp_path, grid((4, 64, 64)), transfer_syntax=JPEGLSLossless))
    with decoder(frames, 2, least_work_s=0.0) as decode:
        # Nothing that can be an order: the helper dies of it.
        with pytest.raises(Refusal, match="ended") as caught:
            decode(dataclasses.replace(frames[0], rows=None))
        assert caught.value.code == "CRASHED"
        assert decode(frames[1]).shape == (64, 64)


def test_a_decoder_that_is_missing_is_named(tmp_path, monkeypatch):
    from ctnode.ct import decode

    paths = write_ramp(tmp_path, grid((8, 64, 64)), transfer_syntax=JPEG2000Lossless)
    monkeypatch.setitem(decode._DECODERS, JPEG2000Lossless, ("gone", "pylibjpeg-openjpeg"))
    with pytest.raises(Refusal, match=r"1\.2\.840\.10008\.1\.2\.4\.90.*pylibjpeg-openjpeg") as caught:
        read(paths)
    assert caught.value.code == "NO_DECODER"


def test_a_second_run_gives_the_same_bytes(chest_files, tmp_path):
    run(chest_files, tmp_path / "one")
    run(chest_files[::-1], tmp_path / "two")
    for name in ALL - {"ct.json"}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_a_volume_without_lungs_gets_no_mask(tmp_path):
    water = grid((12, 64, 64), (5.0, 4.0, 4.0))
    files = write_series(tmp_path, np.zeros(water.shape, np.int16), water, study_uid=STUDY, series_uid=SERIES)
    report = run(files, tmp_path / "out")
    assert report.lungs is LungStatus.NO_LUNGS
    of_lungs = {
        "lungs.nii.gz", "lungs_iso.nii.gz", "lungs.png", "histogram.json", "histogram.csv", "histogram.png",
        "surface.png", "seg.dcm", "sr.dcm",
    }  # fmt: skip
    assert set(report.outputs) == ALL - of_lungs


def test_a_volume_that_is_not_in_hu_is_not_measured(tmp_path):
    files = write_ramp(tmp_path / "in", grid(), edit=lambda _, dataset: setattr(dataset, "RescaleType", "US"))
    report = run(files, tmp_path / "out")
    assert report.lungs is LungStatus.NOT_RUN
    assert report.reasons
    assert set(report.outputs) == {"ct.json", "ct.nii.gz", "ct_iso.nii.gz", "preview.png", "mpr.png"}


@pytest.mark.parametrize(("pick", "volume"), [(without(), 1), (without(*range(8)), 0)])
def test_a_refusal_is_an_answer(tmp_path, pick, volume):
    report = run(pick(write_ramp(tmp_path / "in", grid(), edit=drop("RescaleSlope"))), tmp_path / "out")
    assert (report.status, report.volume, report.lungs) == (VolumeStatus.REFUSED, volume, LungStatus.NOT_RUN)
    assert report.outputs == ("ct.json",)
    assert json.loads((tmp_path / "out" / "ct.json").read_text())["ctnode"]["issues"][-1]["severity"] == "error"


def test_values_beyond_int16_reach_the_files(tmp_path):
    def metal(_index, dataset):
        dataset.PixelData = b"\xff\xff" + dataset.PixelData[2:]

    report = run(write_ramp(tmp_path / "in", grid(), edit=metal), tmp_path / "out")
    assert report.status is VolumeStatus.EXACT
    with gzip.open(tmp_path / "out" / "ct.nii.gz") as file:
        assert len(file.read()) == 352 + 4 * ramp(grid()).size
    assert np.asanyarray(nibabel.load(tmp_path / "out" / "ct.nii.gz").dataobj).max() == 64511


def test_the_phantom_is_a_ct_image_that_others_read(tmp_path):
    paths = write_ramp(tmp_path, grid(), transfer_syntax=ExplicitVRLittleEndian)
    dataset = pydicom.dcmread(paths[0])
    assert str(dataset.PatientName) == "PHANTOM^CHEST"
    assert SimpleITK.ReadImage(str(paths[0])).GetSize() == (10, 12, 1)


@pytest.mark.parametrize(
    ("pick", "code"),
    [(without(3), "INCOMPLETE"), (without(*range(1, 8)), "SINGLE_SLICE"), (without(*range(2, 8)), "TOO_FEW_SLICES")],
)
def test_what_is_not_whole_is_converted_and_not_measured(tmp_path, pick, code):
    report = run(pick(write_ramp(tmp_path / "in", grid())), tmp_path / "out")
    assert report.status is VolumeStatus.REPAIRED
    assert code in {issue.code for issue in report.issues}
    assert report.lungs is LungStatus.NOT_RUN
    assert report.reasons
    assert set(report.outputs) == {"ct.json", "ct.nii.gz", "ct_iso.nii.gz", "preview.png", "mpr.png"}


@pytest.fixture(scope="module")
def two_volumes(tmp_path_factory):
    place = tmp_path_factory.mktemp("two")
    paths = write_ramp(place / "a", grid())
    paths += write_ramp(place / "b", grid((6, 12, 10), axes=CORONAL), edit=mark_as("2"))
    return paths + write_ramp(place / "c", grid((5, 12, 10), axes=CORONAL), edit=bent)


def mark_as(name):
    return lambda _, dataset: setattr(dataset, "SOPInstanceUID", f"{dataset.SOPInstanceUID}.{name}")


def bent(index, dataset):
    mark_as("3")(index, dataset)
    dataset.Rows, dataset.Columns = dataset.Columns, dataset.Rows
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x + index**2, y, z]


def test_only_the_main_volume_is_converted_and_the_others_are_listed(two_volumes, tmp_path):
    report = run(two_volumes, tmp_path / "out")
    assert [issue.code for issue in report.issues] == ["OTHER_GROUP", "OTHER_GROUP"]
    own = json.loads((tmp_path / "out" / "ct.json").read_text())["ctnode"]
    assert [(one["images"], one["shape_zyx"], one["refused"]) for one in own["other_volumes"]] == [
        (6, [6, 12, 10], None), (5, None, "CURVED")
    ]  # fmt: skip
    assert not list((tmp_path / "out").glob("*_2*"))


def test_all_volumes_are_converted_beside_each_other(two_volumes, tmp_path):
    (tmp_path / "out").mkdir()
    reports = process_series(
        two_volumes, study=STUDY, series=SERIES, revision=1, made_at=datetime(2020, 1, 1, tzinfo=UTC),
        out=tmp_path / "out", settings=Pipeline(volumes="all"),
    )  # fmt: skip
    assert [(report.volume, report.status) for report in reports] == [
        (1, VolumeStatus.EXACT), (2, VolumeStatus.EXACT), (3, VolumeStatus.REFUSED)
    ]  # fmt: skip
    assert reports[1].lungs is LungStatus.NOT_RUN
    assert set(reports[1].outputs) == {"ct_2.json", "ct_2.nii.gz", "ct_iso_2.nii.gz", "preview_2.png", "mpr_2.png"}
    assert set(reports[2].outputs) == {"ct_3.json"}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {name for report in reports for name in report.outputs}
    second = nibabel.load(tmp_path / "out" / "ct_2.nii.gz")
    affine = np.diag([-1, -1, 1, 1]) @ second.affine
    ijk = np.stack(np.meshgrid(*(np.arange(side) for side in second.shape), indexing="ij"), axis=-1)
    truth = (ijk @ affine[:3, :3].T + affine[:3, 3]) @ [1, -2, 3]
    assert np.abs(np.asanyarray(second.dataobj) - truth).max() <= HALF_HU


def test_a_deflated_data_set_is_inflated_within_bounds(tmp_path):
    from ctnode.ct import dataset

    (path,) = write_ramp(tmp_path, grid((1, 12, 10)), transfer_syntax=DeflatedExplicitVRLittleEndian)
    with path.open("rb") as file:
        start, syntax, _ = dataset.read_meta(file)
        with pytest.raises(Refusal, match="longer"):
            dataset.parse(file, start, syntax, header_bytes=500)
        assert len(dataset.inflate(file, start, 600)) == 600
    path.write_bytes(path.read_bytes()[:-40])
    with path.open("rb") as file, pytest.raises(Refusal, match="cut off"):
        dataset.inflate(file, start, 1 << 20)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_frames_in_pieces_are_found_with_and_without_an_offset_table(tmp_path, syntax):
    """Two frames of two fragments each: only a table, or where a codestream begins, tells which belong together."""
    from pydicom.encaps import encapsulate, generate_frames
    from pydicom.uid import UID

    from ctnode.ct.encapsulated import codestream
    from ctnode.ct.source import read_file

    paths = write_ramp(tmp_path, grid((2, 64, 64)), transfer_syntax=syntax)
    datasets = [pydicom.dcmread(path) for path in paths]
    streams = [next(generate_frames(dataset.PixelData, number_of_frames=1)) for dataset in datasets]
    for has_table in (True, False):
        whole = datasets[0]
        whole.NumberOfFrames = 2
        whole.PixelData = encapsulate(streams, fragments_per_frame=2, has_bot=has_table)
        whole.file_meta.TransferSyntaxUID = UID(syntax)
        whole.PerFrameFunctionalGroupsSequence = [pydicom.Dataset(), pydicom.Dataset()]
        path = tmp_path / f"whole{has_table}.dcm"
        whole.save_as(path)
        frames = read_file(path)
        if not has_table and syntax == RLELossless:
            with pytest.raises(Refusal) as caught:
                codestream(frames[0])
            assert caught.value.code == "BAD_PIXELS"
        else:
            assert [codestream(frame).rstrip(b"\0") for frame in frames] == [one.rstrip(b"\0") for one in streams]
