"""What the lungs look like to others: DICOM SEG and SR read by highdicom, pydicom, SimpleITK, DCMTK and a validator."""

import json
import shutil
import subprocess
import uuid
from datetime import UTC, datetime

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK

from ctnode.config import Outputs, Pipeline
from ctnode.ct.lungs import segment
from ctnode.ct.phantom import chest
from ctnode.ct.phantom_dicom import write_series
from ctnode.flow.pipeline import process_series
from ctnode.results.objects import Origin
from ctnode.results.seg import SAMPLED_BACK, write_seg
from tests.adversarial import multiframe
from tests.phantom_series import SERIES, STUDY, read, test_data

pytestmark = pytest.mark.integration

MADE_AT = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
ORIGIN = Origin(STUDY, SERIES, 1, MADE_AT, "d")
QUIET = Outputs(iso=False, preview=False, mpr=False, histogram=False, surface=False)
MADE = ("seg.dcm", "sr.dcm", "report.dcm")


@pytest.fixture(scope="module")
def phantom():
    voxels, _, grid = chest((72, 96, 96), (4.0, 4.0, 4.0), 1)
    return voxels, grid


def series(folder, phantom, edit=None):
    folder.mkdir()
    return write_series(folder, *phantom, study_uid=STUDY, series_uid=SERIES, edit=edit)


def processed(files, out, wanted=QUIET, **names):
    out.mkdir()
    (report,) = process_series(
        files, study=names.get("study", STUDY), series=names.get("series", SERIES), revision=1, made_at=MADE_AT,
        out=out, settings=Pipeline(), wanted=wanted,
    )  # fmt: skip
    return report


def leaned(index, image):
    x, y, z = map(float, image.ImagePositionPatient)
    image.ImagePositionPatient = [x, round(y + 0.7 * index, 3), z]


def uneven(index, image):
    x, y, z = map(float, image.ImagePositionPatient)
    image.ImagePositionPatient = [x, y, round(z + 4.0 * max(index - 36, 0) / 2, 3)]


def prone_and_feet_first(index, image):
    x, y, z = map(float, image.ImagePositionPatient)
    image.ImagePositionPatient = [-x, y, -z]
    image.ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]


def labels_by_place(made, grid, labels):
    """Compare each frame with ``labels`` through nothing but millimetres; return how many pixels were marked."""
    shared = made.SharedFunctionalGroupsSequence[0]
    row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    down_mm, right_mm = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    assert float(shared.PixelMeasuresSequence[0].SpacingBetweenSlices) > 0
    j, i = np.mgrid[: made.Rows, : made.Columns]
    marked = 0
    for frame, groups in zip(made.pixel_array, made.PerFrameFunctionalGroupsSequence, strict=True):
        segment_number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        corner = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        places = corner + i[..., None] * right_mm * row + j[..., None] * down_mm * column
        ijk = (places - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T
        # A place halfway between two voxels is as near to one as to the other.
        clear = (np.abs(ijk - np.floor(ijk) - 0.5) > 1e-3).all(axis=-1)
        x, y, z = np.moveaxis(np.rint(ijk).astype(int), -1, 0)
        inside = (x >= 0) & (y >= 0) & (x < labels.shape[2]) & (y < labels.shape[1])
        expected = np.zeros(frame.shape, bool)
        expected[inside] = labels[z[inside], y[inside], x[inside]] == segment_number
        assert np.array_equal(frame[clear] > 0, expected[clear])
        marked += int(expected.sum())
    return marked


@pytest.mark.parametrize("edit", [None, leaned, uneven, prone_and_feet_first])
def test_frames_lie_on_the_images_that_they_name_and_hold_the_mask_there(tmp_path, phantom, edit):
    files = series(tmp_path / "in", phantom, edit)
    volume = read(files)
    lungs = segment(volume)
    write_seg(tmp_path / "seg.dcm", volume, lungs, ORIGIN)
    made = pydicom.dcmread(tmp_path / "seg.dcm")
    assert labels_by_place(made, volume.grid, lungs.labels) > 5000
    images = {image.SOPInstanceUID: image for image in (pydicom.dcmread(path) for path in files)}
    for groups in made.PerFrameFunctionalGroupsSequence:
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        image = images[source.ReferencedSOPInstanceUID]
        assert np.allclose(groups.PlanePositionSequence[0].ImagePositionPatient, image.ImagePositionPatient, atol=1e-6)
    assert made.ContentDescription == (SAMPLED_BACK if edit in (leaned, uneven) else "")
    assert set(images) == {
        item.ReferencedSOPInstanceUID for item in made.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }


@pytest.mark.parametrize("labelmap", [False, True])
def test_highdicom_reads_the_mask_back(tmp_path, phantom, labelmap):
    volume = read(series(tmp_path / "in", phantom))
    lungs = segment(volume)
    write_seg(tmp_path / "seg.dcm", volume, lungs, ORIGIN, labelmap=labelmap)
    found = highdicom.seg.segread(tmp_path / "seg.dcm").get_pixels_by_source_instance(
        source_sop_instance_uids=list(volume.sop_uids), combine_segments=True, assert_missing_frames_are_empty=True
    )
    assert np.array_equal(found, lungs.labels)


def test_a_leaning_stack_and_a_missing_frame_of_reference_are_issues(tmp_path, phantom):
    def edit(index, image):
        leaned(index, image)
        del image.FrameOfReferenceUID

    report = processed(series(tmp_path / "in", phantom, edit), tmp_path / "out")
    codes = {issue.code for issue in report.issues}
    assert {"TILT", "SEG_SAMPLED_BACK", "FRAME_OF_REFERENCE_DERIVED"} <= codes
    told = {issue["code"] for issue in json.loads((tmp_path / "out" / "ct.json").read_text())["ctnode"]["issues"]}
    assert codes == told
    plain = processed(series(tmp_path / "plain", phantom), tmp_path / "plain-out")
    assert not {"SEG_SAMPLED_BACK", "FRAME_OF_REFERENCE_DERIVED"} & {issue.code for issue in plain.issues}


def test_frames_of_an_enhanced_image_are_named_by_their_numbers(tmp_path, phantom):
    images = [pydicom.dcmread(path) for path in series(tmp_path / "single", phantom)][::-1]
    whole = multiframe(images, uid="seg")
    (tmp_path / "in").mkdir()
    whole.save_as(tmp_path / "in" / "enhanced.dcm")
    report = processed([tmp_path / "in" / "enhanced.dcm"], tmp_path / "out")
    assert {"seg.dcm", "sr.dcm"} <= set(report.outputs)
    made = pydicom.dcmread(tmp_path / "out" / "seg.dcm")
    assert made.ContentDescription == ""
    for groups in made.PerFrameFunctionalGroupsSequence:
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        assert source.ReferencedSOPInstanceUID == whole.SOPInstanceUID
        frame_at = whole.PerFrameFunctionalGroupsSequence[source.ReferencedFrameNumber - 1].PlanePositionSequence[0]
        place = groups.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(place, frame_at.ImagePositionPatient, atol=1e-6)


def test_without_a_segmentation_there_is_no_structured_report(tmp_path, phantom):
    wanted = QUIET.model_copy(update={"seg": "none"})
    report = processed(series(tmp_path / "in", phantom), tmp_path / "out", wanted)
    assert "report.dcm" in report.outputs
    assert not {"seg.dcm", "sr.dcm"} & set(report.outputs)


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 192", "Müller^Łukasz=王^小東"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 100", "Buc^Jérôme"),
    ],
)
def test_the_patient_is_written_as_the_source_writes_him(tmp_path, phantom, charset, name):
    def edit(_index, image):
        image.SpecificCharacterSet = charset
        image.PatientName = name

    files = series(tmp_path / "in", phantom, edit)
    processed(files, tmp_path / "out")
    for file in MADE:
        made = pydicom.dcmread(tmp_path / "out" / file)
        assert made.PatientName == pydicom.dcmread(files[0]).PatientName == name
        assert made.SpecificCharacterSet == charset


def elements_of(path):
    """Return ``(vr, value)`` of every element, file meta included."""
    dataset = pydicom.dcmread(path)
    for element in (*dataset.file_meta, *dataset.iterall()):
        values = element.value if isinstance(element.value, pydicom.multival.MultiValue) else [element.value]
        yield from ((element.VR, str(value)) for value in values)


def test_no_uid_and_no_time_is_random_or_of_now(tmp_path, phantom):
    files = series(tmp_path / "in", phantom)
    processed(files, tmp_path / "out")
    known = {value for path in files for _, value in elements_of(path)}
    mine = {"20250102", "030405.000000", "20250102030405.000000", ""}
    seen = set()
    for file in MADE:
        for vr, value in elements_of(tmp_path / "out" / file):
            if vr in {"DA", "TM", "DT"}:
                assert value in known | mine
            elif vr == "UI" and value.startswith("2.25."):
                # Version 5 is made of a name; the random ones are version 4.
                assert uuid.UUID(int=int(value[5:])).version == 5
                seen.add(value)
            elif vr == "UI":
                standard = value.startswith("1.2.840.10008.") or value == pydicom.uid.PYDICOM_IMPLEMENTATION_UID
                assert standard or value in known
    assert len(seen) > 8


def errors(path):
    told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False).stderr
    assert told
    return {line for line in told.splitlines() if line.startswith("Error")}


@pytest.fixture(scope="module")
def slab(tmp_path_factory):
    """Process a slab of a real chest, cut off at both ends; return its files and its results."""
    files = sorted((test_data() / "chest" / "lidc_0002_slab_ge_1.25mm").glob("*.dcm"))
    out = tmp_path_factory.mktemp("slab") / "out"
    header = pydicom.dcmread(files[0], stop_before_pixels=True)
    names = {"study": str(header.StudyInstanceUID), "series": str(header.SeriesInstanceUID)}
    processed(files, out, **names)
    again = out.parent / "again"
    processed(files[::-1], again, **names)
    return files, out, again


def test_a_real_series_gives_the_same_bytes_again(slab):
    _, out, again = slab
    for file in MADE:
        assert (out / file).read_bytes() == (again / file).read_bytes()


def test_a_validator_finds_nothing_in_objects_of_a_real_series_that_is_not_in_the_source(slab):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    files, out, _ = slab
    for file in MADE:
        assert errors(out / file) <= errors(files[0])


def test_an_identity_removed_by_no_stated_method_is_no_error_of_ours(tmp_path, phantom):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")

    def edit(_index, image):
        image.PatientIdentityRemoved = "YES"
        image.DeidentificationMethod = ""
        del image.PatientBirthDate
        del image.PatientSex

    processed(series(tmp_path / "in", phantom, edit), tmp_path / "out")
    for file in MADE:
        assert not errors(tmp_path / "out" / file)


def test_other_programs_open_what_was_made(slab):
    _, out, _ = slab
    made = pydicom.dcmread(out / "seg.dcm")
    image = SimpleITK.ReadImage(str(out / "seg.dcm"))
    assert image.GetSize() == (made.Columns, made.Rows, made.NumberOfFrames)
    frames = SimpleITK.GetArrayFromImage(image).reshape(made.pixel_array.shape)
    assert np.array_equal(frames > 0, made.pixel_array > 0)
    if shutil.which("dcmdump") is None:
        pytest.skip("dcmdump (DCMTK) is not installed")
    for file in MADE:
        done = subprocess.run(["dcmdump", str(out / file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert not done.stderr


def test_the_structured_report_says_what_measurements_json_says(slab):
    files, out, _ = slab
    told = json.loads((out / "measurements.json").read_text())
    made = highdicom.sr.srread(out / "sr.dcm")
    segmentation = pydicom.dcmread(out / "seg.dcm", stop_before_pixels=True)
    source = pydicom.dcmread(files[0], stop_before_pixels=True)
    assert made.StudyInstanceUID == segmentation.StudyInstanceUID == source.StudyInstanceUID
    assert len({made.SeriesInstanceUID, segmentation.SeriesInstanceUID, source.SeriesInstanceUID}) == 3
    names = ("volume_ml", "mean_hu", "median_hu", "sd_hu", "perc15_hu", "laa950_pct", "haa_pct", "mass_g")
    groups = made.content.get_volumetric_roi_measurement_groups()
    for group, side, number in zip(groups, ("right", "left"), (1, 2), strict=True):
        assert [one.value for one in group.get_measurements()] == [told[side][name] for name in names]
        (status,) = group.get_qualitative_evaluations()
        assert status.value.value == told[side]["status"]
        pointed = [item.ReferencedSOPSequence[0] for item in group[0].ContentSequence if item.ValueType == "IMAGE"]
        assert [
            (item.ReferencedSOPInstanceUID, item.ReferencedSegmentNumber)
            for item in pointed
            if "ReferencedSegmentNumber" in item
        ] == [(segmentation.SOPInstanceUID, number)]
    assert said(made, "REASON") == told["reasons"] != []
    assert said(made, "WARNING") == told["warnings"]


def said(dataset, concept):
    """Return the texts under the private concept ``concept``, in their order."""
    found = []
    for item in dataset.get("ContentSequence", ()):
        if item.get("ValueType") == "TEXT" and item.ConceptNameCodeSequence[0].CodeValue == concept:
            found.append(item.TextValue)
        found += said(item, concept)
    return found
