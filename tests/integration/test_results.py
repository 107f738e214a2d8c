"""The files people open: read back by other programs, the same bytes twice, nothing about the patient in pictures."""

import json
import re
import shutil
import subprocess
from datetime import UTC, datetime

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset

from ctnode.ct.grid import Grid, Volume
from ctnode.ct.lungs import segment
from ctnode.ct.measure import measure
from ctnode.ct.phantom import chest
from ctnode.results import nifti as nifti_module
from ctnode.results import report as report_module
from ctnode.results.nifti import write_nifti
from ctnode.results.png import chosen_window, write_lungs, write_preview
from ctnode.results.predecessors import name_predecessors
from ctnode.results.report import DISCLAIMER, derived_uid, write_report
from ctnode.results.sidecar import write_json
from ctnode.words import VolumeStatus

pytestmark = pytest.mark.integration

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
OBLIQUE = np.array([[0.6, -0.64, 0.96, -110.0], [0.8, 0.48, -0.72, -95.5], [0.0, 0.6, 1.6, 1020.25], [0, 0, 0, 1.0]])


def header():
    made = Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    made.PatientName = "Größe^Jürgen"
    made.PatientID = "0815"
    made.PatientBirthDate = "19500101"
    made.PatientSex = "O"
    made.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    made.StudyDate = "20240102"
    made.StudyTime = "101112"
    made.StudyID = "7"
    made.AccessionNumber = "A1"
    made.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.9"
    return made


def volume_of(voxels, grid, source):
    return Volume(voxels, grid, None, "HU", VolumeStatus.EXACT, (), source, ("",) * len(voxels), "ab" * 32)


@pytest.fixture(scope="module")
def example():
    voxels, _, grid = chest((72, 96, 96), (4.0, 4.0, 4.0), 1)
    volume = volume_of(voxels, grid, header())
    lungs = segment(volume)
    return volume, lungs, measure(volume, lungs)


@pytest.fixture(scope="module")
def without_lungs():
    voxels = np.full((20, 64, 64), -1000, dtype=np.int16)
    voxels[:, 16:48, 16:48] = 40
    volume = volume_of(voxels, Grid(voxels.shape, np.diag([4.0, 4.0, 4.0, 1.0])), Dataset())
    lungs = segment(volume)
    return volume, lungs, measure(volume, lungs)


def write(path, made, **changes):
    arguments = {
        "study": "1.2.3",
        "series": "1.2.4",
        "revision": 1,
        "made_at": datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
        "settings_digest": "d",
    }
    write_report(path, *made, **(arguments | changes))
    return pydicom.dcmread(path)


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint8])
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
@pytest.mark.parametrize("affine", [np.diag([0.7, 0.8, 2.5, 1.0]), OBLIQUE, OBLIQUE @ np.diag([1, 1, -1, 1.0])])
def test_nibabel_and_itk_read_the_same_voxels_at_the_same_places(tmp_path, dtype, name, affine):
    sitk = pytest.importorskip("SimpleITK")
    voxels = np.random.default_rng(1).integers(0, 200, (5, 6, 7)).astype(dtype)
    path = tmp_path / name
    write_nifti(path, voxels, Grid(voxels.shape, affine), description="CT in HU")
    image = nibabel.load(path)
    assert image.header.get_data_dtype() == dtype
    assert np.array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), voxels)
    assert np.allclose(image.get_qform(), image.get_sform(), rtol=0, atol=1e-4)
    assert np.allclose(image.get_sform(), LPS_TO_RAS @ affine, rtol=0, atol=1e-4)
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    read = sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(read), voxels)
    for index in ((0, 0, 0), (6, 5, 4), (3, 0, 2)):
        assert np.allclose(
            read.TransformIndexToPhysicalPoint(index), Grid(voxels.shape, affine).to_lps_mm(index), atol=1e-3
        )


def test_nifti_is_the_same_bytes_twice_and_holds_no_name_or_time(tmp_path, example):
    volume, _, _ = example
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, volume.voxels, volume.grid, description="CT in HU")
    first = (tmp_path / "a.nii.gz").read_bytes()
    assert first == (tmp_path / "b.nii.gz").read_bytes()
    assert first[3] == 4  # an extra field, and no file name or comment in the gzip header
    assert first[4:8] == b"\0\0\0\0"  # no time


def test_nifti_says_what_it_holds_and_nothing_else(tmp_path, example):
    volume, _, _ = example
    write_nifti(tmp_path / "a.nii", volume.voxels, volume.grid, description="CT in HU")
    header = nibabel.load(tmp_path / "a.nii").header
    assert bytes(header["descrip"]).rstrip(b"\0") == b"CT in HU"
    for field in ("data_type", "db_name", "aux_file", "intent_name"):
        assert not bytes(header[field]).strip(b"\0"), field
    assert (tmp_path / "a.nii").stat().st_size == 352 + volume.voxels.nbytes


def test_a_nifti_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    grid = Grid((2, 3, 4), np.eye(4))
    write_nifti(path, np.zeros(grid.shape, dtype=np.int16), grid, description="first")
    before = path.read_bytes()

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nifti_module, "_blocks", full)
    with pytest.raises(OSError, match="No space"):
        write_nifti(path, np.ones(grid.shape, dtype=np.int16), grid, description="second")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.nii.gz"]


def test_nifti_refuses_what_readers_would_place_wrongly(tmp_path):
    voxels = np.zeros((2, 3, 4), dtype=np.int16)
    sheared = np.eye(4)
    sheared[1, 2] = 0.2
    with pytest.raises(ValueError, match="sheared"):
        write_nifti(tmp_path / "a.nii", voxels, Grid(voxels.shape, sheared), description="")
    with pytest.raises(ValueError, match="not on the grid"):
        write_nifti(tmp_path / "a.nii", voxels, Grid((3, 3, 4), np.eye(4)), description="")
    with pytest.raises(ValueError, match="no NIfTI type"):
        write_nifti(tmp_path / "a.nii", voxels.astype(np.int64), Grid(voxels.shape, np.eye(4)), description="")
    with pytest.raises(ValueError, match="bytes"):
        write_nifti(tmp_path / "a.nii", voxels, Grid(voxels.shape, np.eye(4)), description="x" * 80)
    assert not list(tmp_path.iterdir())


def test_json_never_holds_nan_and_keeps_its_order(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"z": np.float32(1.5), "a": [float("nan"), np.int64(3)], "m": {"x": (float("inf"), None, "ä")}})
    text = path.read_text("utf-8")
    assert json.loads(text) == {"z": 1.5, "a": [None, 3], "m": {"x": [None, None, "ä"]}}
    assert text.index('"z"') < text.index('"a"') < text.index('"m"')
    with pytest.raises(TypeError, match="no JSON form"):
        write_json(path, {"a": {1, 2}})


def test_pictures_are_png_and_the_same_bytes_twice(tmp_path, example):
    volume, lungs, _ = example
    for name in ("1", "2"):
        write_preview(tmp_path / f"preview{name}.png", volume)
        write_lungs(tmp_path / f"lungs{name}.png", volume, lungs)
    for kind in ("preview", "lungs"):
        assert (tmp_path / f"{kind}1.png").read_bytes() == (tmp_path / f"{kind}2.png").read_bytes()
        with Image.open(tmp_path / f"{kind}1.png") as picture:
            assert picture.format == "PNG"
            assert not picture.info


def test_the_right_lung_is_drawn_on_the_viewers_left(tmp_path, example):
    volume, lungs, _ = example
    write_lungs(tmp_path / "lungs.png", volume, lungs)
    pixels = np.asarray(Image.open(tmp_path / "lungs.png").convert("RGB"))[60:370, 12:412]
    right = np.nonzero((pixels == (230, 159, 0)).all(axis=2))[1]
    left = np.nonzero((pixels == (86, 180, 233)).all(axis=2))[1]
    assert right.mean() < 200 < left.mean()


@pytest.mark.parametrize("shape", [(1, 40, 30), (2, 64, 64), (300, 8, 8)])
def test_odd_shapes_have_a_preview_and_a_report(tmp_path, shape):
    volume = volume_of(np.zeros(shape, dtype=np.int16), Grid(shape, np.diag([1.0, 2.0, 5.0, 1.0])), Dataset())
    lungs = segment(volume)
    write_preview(tmp_path / "preview.png", volume)
    write(tmp_path / "report.dcm", (volume, lungs, measure(volume, lungs)))


def test_the_report_belongs_to_the_study_and_is_a_new_series(tmp_path, example):
    made = write(tmp_path / "a.dcm", example)
    source = example[0].header
    assert made.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
    assert made.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert made.StudyInstanceUID == source.StudyInstanceUID
    assert str(made.PatientName) == "Größe^Jürgen"
    assert made.SpecificCharacterSet == "ISO_IR 192"
    assert (made.PatientID, made.AccessionNumber, made.StudyDate) == ("0815", "A1", "20240102")
    assert made.ReferringPhysicianName == ""
    assert re.fullmatch(r"2\.25\.[1-9]\d{0,38}", made.SOPInstanceUID)
    assert re.fullmatch(r"2\.25\.[1-9]\d{0,38}", made.SeriesInstanceUID)
    assert made.SOPInstanceUID != made.SeriesInstanceUID
    assert 900 <= made.SeriesNumber < 1000
    assert list(made.ImageType) == ["DERIVED", "SECONDARY"]
    assert (made.ConversionType, made.BurnedInAnnotation, made.Manufacturer) == ("WSD", "NO", "ctnode")
    assert (made.SeriesDate, made.ContentTime) == ("20250102", "030405.000000")
    assert "FrameOfReferenceUID" not in made
    assert made.pixel_array.shape == (made.Rows, made.Columns, 3)
    assert len(made.PixelData) < 2_000_000


def test_the_report_is_the_same_bytes_twice(tmp_path, example):
    write(tmp_path / "a.dcm", example)
    write(tmp_path / "b.dcm", example)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()


def test_what_changes_the_report_changes_its_uids(tmp_path, example):
    uids = {write(tmp_path / "a.dcm", example).SOPInstanceUID}
    for change in ({"study": "1.2.9"}, {"series": "1.2.9"}, {"revision": 2}, {"settings_digest": "e"}):
        uids.add(write(tmp_path / "a.dcm", example, **change).SOPInstanceUID)
    assert len(uids) == 5
    assert derived_uid("a", "b") != derived_uid("a", "c")


@pytest.mark.parametrize("which", ["example", "without_lungs"])
def test_a_validator_finds_no_error_in_the_report(tmp_path, which, request):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    for revision in (1, 2):
        (tmp_path / f"r{revision}").mkdir()
        write(tmp_path / f"r{revision}" / "a.dcm", request.getfixturevalue(which), revision=revision)
    # With all that a later revision says of the earlier one.
    name_predecessors(tmp_path / "r2", ["a.dcm"], 2)
    done = subprocess.run(["dciodvfy", str(tmp_path / "r2" / "a.dcm")], capture_output=True, text=True, check=False)
    found = done.stdout + done.stderr
    assert "SCImage" in found
    assert "Error" not in found, found


def test_a_report_without_lungs_says_so_and_fills_the_gaps(tmp_path, without_lungs):
    made = write(tmp_path / "a.dcm", without_lungs)
    assert made.StudyInstanceUID == "1.2.3"
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber"):
        assert keyword in made
        assert not made[keyword].value
    assert "SpecificCharacterSet" not in made


def test_a_study_without_a_uid_gets_a_valid_one_that_stays(tmp_path, without_lungs):
    uids = {write(tmp_path / name, without_lungs, study="nouid-0a1b").StudyInstanceUID for name in ("a.dcm", "b.dcm")}
    assert len(uids) == 1
    assert uids.pop().is_valid


def test_only_chosen_words_are_drawn_on_the_page(monkeypatch, example, without_lungs):
    drawn = []
    original = report_module.ImageDraw.ImageDraw.text

    def text(self, xy, text, *rest, **named):
        drawn.append(text)
        return original(self, xy, text, *rest, **named)

    monkeypatch.setattr(report_module.ImageDraw.ImageDraw, "text", text)
    for volume, lungs, measurements in (example, without_lungs):
        report_module.draw_page(volume, lungs, measurements, revision=3)
    words = " ".join(drawn)
    assert DISCLAIMER in words
    assert "NO LUNGS" in words
    assert "OK" in words
    for secret in ("Größe", "Jürgen", "0815", "A1", "1950", "2024"):
        assert secret not in words


@pytest.mark.parametrize(
    "charset", ["", "ISO_IR 100", ["", "ISO 2022 IR 87"], "GB18030"], ids=["none", "latin", "japanese", "chinese"]
)
def test_names_survive_in_their_own_character_set(tmp_path, example, charset):
    names = {"": "Doe^John", "ISO_IR 100": "Müller^Ömer", "GB18030": "Wang^XiaoDong=王^小东"}
    name = names.get(charset if isinstance(charset, str) else "-", "Yamada^Tarou=山田^太郎=やまだ^たろう")
    source = header()
    source.SpecificCharacterSet = charset
    source.PatientName = name
    path = tmp_path / "source.dcm"
    source.SOPClassUID, source.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4"
    source.file_meta = pydicom.dataset.FileMetaDataset()
    source.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    source.save_as(path, enforce_file_format=True)
    volume, lungs, measurements = example
    received = volume_of(volume.voxels, volume.grid, pydicom.dcmread(path))
    made = write(tmp_path / "a.dcm", (received, lungs, measurements))
    assert str(made.PatientName) == name


def test_values_that_senders_should_not_send_do_not_stop_the_report(tmp_path, example):
    source = header()
    source.add_new("PatientBirthDate", "DA", "unknown")
    source.add_new("PatientID", "LO", "x" * 80)
    source.add_new("StudyTime", "TM", "10:11:12")
    volume, lungs, measurements = example
    made = write(tmp_path / "a.dcm", (volume_of(volume.voxels, volume.grid, source), lungs, measurements))
    assert made.PatientID == "x" * 80


def test_the_window_of_the_preview_follows_what_is_there(example, without_lungs):
    assert chosen_window(example[0])[0] == "lung"
    assert chosen_window(without_lungs[0])[0] == "soft tissue"
