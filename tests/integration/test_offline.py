"""``process`` without a node: anything in, one folder a series out."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from ctnode.config import Config
from ctnode.flow.offline import process
from ctnode.flow.unpack import Found, Skipped, find
from ctnode.words import LungStatus, Unavailable, VolumeStatus
from tests.phantom_series import SERIES, STUDY, grid, test_data, write_ramp

pytestmark = pytest.mark.integration


def run(out: Path, *paths: Path):
    skipped = []
    reports = list(process(paths, out, Config(), lambda p: skipped.append(p.label) if p.phase == "skipped" else None))
    return reports, skipped


def results(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "ct.json"  # timings stand there
    }


def test_a_folder_becomes_a_folder(tmp_path):
    write_ramp(tmp_path / "in" / "deep" / "er", grid())
    (tmp_path / "in" / "notes.txt").write_text("no DICOM")
    (report,), skipped = run(tmp_path / "out", tmp_path / "in")
    assert report.status is VolumeStatus.EXACT
    assert report.directory == str(tmp_path / "out" / STUDY / SERIES)
    assert {path.name for path in Path(report.directory).iterdir()} == set(report.outputs)
    assert [path.name for path in (tmp_path / "out" / STUDY).iterdir()] == [SERIES]
    assert len(skipped) == 1


def test_a_zip_gives_the_same_bytes_as_its_folder(tmp_path):
    paths = write_ramp(tmp_path / "in", grid())
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, path in enumerate(reversed(paths)):
            archive.write(path, f"../../escape/{number}")
    run(tmp_path / "a", tmp_path / "in")
    run(tmp_path / "b", tmp_path / "in.zip")
    assert results(tmp_path / "a") == results(tmp_path / "b")
    assert not (tmp_path.parent / "escape").exists()


def test_a_second_run_replaces_the_first_and_changes_no_byte(tmp_path):
    write_ramp(tmp_path / "in", grid())
    run(tmp_path / "out", tmp_path / "in")
    first = results(tmp_path / "out")
    (tmp_path / "out" / STUDY / SERIES / "old.txt").write_text("of the first run")
    run(tmp_path / "out", tmp_path / "in", tmp_path / "in")
    assert results(tmp_path / "out") == first


def test_a_folder_that_is_not_ours_is_not_replaced(tmp_path):
    write_ramp(tmp_path / "in", grid())
    precious = tmp_path / "out" / STUDY / SERIES / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    with pytest.raises(Unavailable):
        run(tmp_path / "out", tmp_path / "in")
    assert precious.read_text() == "years of work"


def test_two_series_are_told_apart_and_one_bad_one_hurts_only_itself(tmp_path):
    write_ramp(tmp_path / "in" / "a", grid())
    write_ramp(tmp_path / "in" / "b", grid(), series_uid=SERIES + ".2", edit=as_curve)
    report = write_ramp(tmp_path / "in" / "c", grid(), series_uid=SERIES + ".3", edit=as_report)
    assert len(report) == 8
    reports, _ = run(tmp_path / "out", tmp_path / "in")
    assert [(one.series, one.volume, one.status) for one in reports] == [
        (SERIES, 1, VolumeStatus.EXACT),
        (SERIES + ".2", 1, VolumeStatus.REFUSED),
        (SERIES + ".3", 0, VolumeStatus.REFUSED),
    ]
    assert [path.name for path in Path(reports[1].directory).iterdir()] == ["ct.json"]


def as_curve(index, dataset):
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, y + index**2 / 4, z]


def as_report(_index, dataset):
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.22"
    dataset.Modality = "SR"


def test_uids_that_are_no_uids_become_names_that_lead_nowhere(tmp_path):
    write_ramp(tmp_path / "in", grid(), edit=lambda _, dataset: setattr(dataset, "StudyInstanceUID", "../../up"))
    (report,), _ = run(tmp_path / "out", tmp_path / "in")
    assert Path(report.directory).parent.name.startswith("x-")
    assert Path(report.directory).parent.parent == tmp_path / "out"


def without_uids(_index, dataset):
    dataset.StudyInstanceUID = dataset.SeriesInstanceUID = ""


def test_files_without_uids_are_grouped_by_folder_and_named_by_content(tmp_path):
    write_ramp(tmp_path / "in" / "a", grid(), edit=without_uids)
    write_ramp(tmp_path / "in" / "b", grid(spacing=(3.0, 1.0, 1.0)), edit=without_uids)
    reports, _ = run(tmp_path / "out", tmp_path / "in")
    assert [one.status for one in reports] == [VolumeStatus.EXACT] * 2
    assert all(Path(one.directory).name == one.series and one.series.startswith("nouid-") for one in reports)
    shutil.move(tmp_path / "in", tmp_path / "elsewhere")
    again, _ = run(tmp_path / "out2", tmp_path / "elsewhere")
    assert [one.series for one in again] == [one.series for one in reports]


def test_a_broken_file_counts_against_the_series_of_its_folder(tmp_path):
    write_ramp(tmp_path / "in" / "a", grid())
    write_ramp(tmp_path / "in" / "b", grid(), series_uid=SERIES + ".2")
    (tmp_path / "in" / "a" / "zz").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 100)
    reports, _ = run(tmp_path / "out", tmp_path / "in")
    assert [one.status for one in reports] == [VolumeStatus.REPAIRED, VolumeStatus.EXACT]


def test_broken_files_alone_are_a_series_without_a_volume(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "zz").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 100)
    (report,), _ = run(tmp_path / "out", tmp_path / "in")
    assert (report.volume, report.status) == (0, VolumeStatus.REFUSED)


def test_a_dicomdir_is_skipped(tmp_path):
    write_ramp(tmp_path / "in", grid())
    directory = Dataset()
    directory.FileSetID = "PHANTOM"
    directory.DirectoryRecordSequence = []
    directory.file_meta = FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    directory.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.save_as(tmp_path / "in" / "DICOMDIR", enforce_file_format=True)
    (report,), skipped = run(tmp_path / "out", tmp_path / "in")
    assert report.status is VolumeStatus.EXACT
    assert [Path(label.partition(":")[0]).name for label in skipped] == ["DICOMDIR"]


def test_zips_are_bounded(tmp_path):
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(64 << 20))
        archive.writestr("fine", b"small")
    (tmp_path / "damaged.zip").write_bytes(bomb.read_bytes()[200:])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    found = list(find([bomb, tmp_path / "damaged.zip", tmp_path / "missing"], scratch))
    assert [type(one) for one in found] == [Skipped, Found, Skipped, Skipped]
    assert sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file()) < 1000


def test_real_slices_without_uids(tmp_path):
    (report,), _ = run(tmp_path / "out", test_data() / "awkward" / "totalseg_j2k_no_uids")
    assert report.series.startswith("nouid-")
    assert report.status is VolumeStatus.EXACT


def one_of(tmp_path, *parts):
    (report,), _ = run(tmp_path / "out", test_data().joinpath(*parts))
    return report


def test_a_real_head_with_tilt_and_changing_spacing_is_repaired(tmp_path):
    report = one_of(tmp_path, "nolung", "ge_head_tilt_changing_spacing")
    assert report.status is VolumeStatus.REPAIRED
    assert {"TILT", "UNEQUAL_SPACING"} <= {issue.code for issue in report.issues}
    geometry = json.loads((Path(report.directory) / "ct.json").read_text())["ctnode"]["geometry"]["native"]
    assert 3.5 < geometry["spacing_zyx_mm"][0] < 4.5
    assert report.lungs is LungStatus.NO_LUNGS


def test_real_geometry_that_breaks_other_converters(tmp_path):
    reports, _ = run(tmp_path / "out", test_data() / "awkward" / "dicom2nifti_failing_ct")
    found = sorted(
        (str(one.status), *(issue.code for issue in one.issues if issue.severity != "info")) for one in reports
    )
    assert found == [
        ("REFUSED", "SINGLE_SLICE"),  # bolus monitoring: four images of one place, told apart, none with a thickness
        ("REPAIRED", "MISSING_SLICES", "INCOMPLETE"),
        ("REPAIRED", "TILT"),
        ("REPAIRED", "TILT", "MISSING_SLICES", "INCOMPLETE"),
    ]
