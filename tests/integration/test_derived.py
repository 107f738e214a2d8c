"""The resampled volume as CT images: what other programs read back is ``ct_iso``, in the place of the source."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from datetime import UTC, datetime

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK

from ctnode.config import Outputs, Pipeline
from ctnode.ct.phantom_dicom import write_series
from ctnode.flow.pipeline import process_series
from ctnode.words import VolumeStatus
from tests.adversarial import CASES
from tests.phantom_series import SERIES, STUDY, grid, ramp

pytestmark = pytest.mark.integration

ONLY = Outputs(iso=False, lungs=False, preview=False, mpr=False, derived=True)


def processed(files, out, wanted, revision=1):
    out.mkdir()
    (report,) = process_series(
        files, study=STUDY, series=SERIES, revision=revision, made_at=datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
        out=out, settings=Pipeline(spacing_mm=1.5), wanted=wanted,
    )  # fmt: skip
    return report


@pytest.fixture(scope="module", params=["plain", "tilt_15", "coronal", "feet_first"])
def example(request, tmp_path_factory):
    """Files of a source, the folder of its results, and its resampled volume as files."""
    place = tmp_path_factory.mktemp(request.param)
    CASES[request.param](place / "in")
    files = sorted(path for path in (place / "in").rglob("*") if path.is_file())
    processed(files, place / "out", ONLY.model_copy(update={"iso": True}))
    with zipfile.ZipFile(place / "out" / "derived.zip") as packed:
        packed.extractall(place / "derived")
    return files, place / "out", sorted((place / "derived").iterdir())


def test_others_read_the_resampled_volume_at_its_place(example):
    _, out, images = example
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in images])
    found = reader.Execute()
    plain = nibabel.load(out / "ct_iso.nii.gz")
    assert np.array_equal(SimpleITK.GetArrayFromImage(found), np.asarray(plain.dataobj).T)
    ends = [(0, 0, 0), tuple(side - 1 for side in found.GetSize())]
    for end in ends:
        there = np.diag([-1.0, -1, 1, 1]) @ plain.affine @ (*end, 1.0)
        assert np.allclose(found.TransformIndexToPhysicalPoint(end), there[:3], atol=1e-3)


def test_images_belong_to_the_source_and_say_what_they_are(example):
    files, _, images = example
    sources = {image.SOPInstanceUID: image for image in map(pydicom.dcmread, files)}
    first = next(iter(sources.values()))
    normal = np.cross(*np.reshape(np.array(first.ImageOrientationPatient, float), (2, 3)))
    made = [pydicom.dcmread(path) for path in images]
    assert len({image.SOPInstanceUID for image in made}) == len(made) > 10
    assert [image.InstanceNumber for image in made] == list(range(1, len(made) + 1))
    for image in made:
        assert image.FrameOfReferenceUID == first.FrameOfReferenceUID
        assert (image.StudyInstanceUID, image.PatientName) == (first.StudyInstanceUID, first.PatientName)
        assert image.SeriesInstanceUID == made[0].SeriesInstanceUID != first.SeriesInstanceUID
        assert list(image.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
        # The nearest images are named, and none that is farther than a slice away.
        depth = float(normal @ np.array(image.ImagePositionPatient, float))
        off = {
            uid: abs(float(normal @ np.array(one.ImagePositionPatient, float)) - depth) for uid, one in sources.items()
        }
        named = {item.ReferencedSOPInstanceUID for item in image.SourceImageSequence}
        assert min(off, key=off.get) in named
        assert all(off[uid] < 2.6 for uid in named)
    if shutil.which("dciodvfy"):
        told = subprocess.run(["dciodvfy", images[0]], capture_output=True, text=True, check=False).stderr
        assert told.startswith("CTImage")
        assert "Error" not in told


def test_no_ctnode_processes_them(example, tmp_path):
    *_, images = example
    report = processed(images, tmp_path / "again", ONLY)
    assert (report.status, report.volume) == (VolumeStatus.REFUSED, 0)
    assert {issue.code for issue in report.issues} == {"OWN_RESULT"}


def test_bytes_repeat_and_revisions_differ(tmp_path):
    on = grid()
    (tmp_path / "in").mkdir()
    files = write_series(tmp_path / "in", ramp(on), on, study_uid=STUDY, series_uid=SERIES)
    report = processed(files, tmp_path / "a", ONLY)
    assert set(report.outputs) == {"ct.json", "ct.nii.gz", "derived.zip"}
    processed(files[::-1], tmp_path / "b", ONLY)
    processed(files, tmp_path / "c", ONLY, revision=2)
    first, again, later = ((tmp_path / name / "derived.zip").read_bytes() for name in "abc")
    assert first == again != later
    with zipfile.ZipFile(tmp_path / "c" / "derived.zip") as packed, packed.open("0001.dcm") as file:
        assert pydicom.dcmread(file).SeriesDescription == "ctnode CT 1.50 x 1.50 x 1.50 mm, revision 2"


def test_each_volume_of_a_series_is_a_series_of_its_own(tmp_path):
    CASES["two_kernels"](tmp_path / "in")
    files = [path for path in (tmp_path / "in").rglob("*") if path.is_file()]
    (tmp_path / "out").mkdir()
    process_series(
        files, study=STUDY, series=SERIES, revision=1, made_at=datetime(2025, 1, 2, tzinfo=UTC), out=tmp_path / "out",
        settings=Pipeline(spacing_mm=1.5, volumes="all"), wanted=ONLY,
    )  # fmt: skip
    uids = []
    for name in ("derived.zip", "derived_2.zip"):
        with zipfile.ZipFile(tmp_path / "out" / name) as packed:
            made = [pydicom.dcmread(packed.open(image)) for image in packed.namelist()]
        uids.append({image.SOPInstanceUID for image in made} | {image.SeriesInstanceUID for image in made})
    assert not uids[0] & uids[1]


def test_without_being_asked_for_there_are_none(tmp_path):
    on = grid()
    (tmp_path / "in").mkdir()
    files = write_series(tmp_path / "in", ramp(on), on, study_uid=STUDY, series_uid=SERIES)
    assert "derived.zip" not in processed(files, tmp_path / "out", Outputs()).outputs
