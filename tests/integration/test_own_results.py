"""Nothing that a ctnode made is processed again, whatever an archive on its way has put in place of its names."""

from __future__ import annotations

from datetime import UTC, datetime

import pydicom
import pytest
from pydicom.dataset import Dataset

from ctnode.archive import catalog
from ctnode.archive.elements import scan
from ctnode.archive.header import is_own, read_meta
from ctnode.config import Config, LungMask, Outputs, Pipeline
from ctnode.flow.dispatch import reason_to_keep
from ctnode.flow.offline import process
from ctnode.flow.pipeline import process_series
from ctnode.words import VolumeStatus, is_product
from tests.archive_root import SECONDARY_CAPTURE, Image, Root, stack
from tests.phantom_series import SERIES, STUDY, grid, write_ramp

pytestmark = pytest.mark.integration

MARK_TAGS = frozenset({0x00080070, 0x00081090, 0x00181020, 0x0018A001})
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
STRUCTURED_REPORT = "1.2.840.10008.5.1.4.1.1.88.34"
FEW = Outputs(iso=False, lungs=False, preview=False, mpr=False)


@pytest.fixture
def root(tmp_path):
    made = Root(tmp_path / "node")
    yield made
    made.close()


@pytest.mark.parametrize(
    "marks",
    [
        {"manufacturer": "ctnode"},
        {"manufacturer": "CTNODE "},
        {"model": "ctnode"},
        {"model": "ctnode 2.3.1"},
        {"software": "ctnode/9.0"},
        {"software": "syngo CT 2006G\\ctnode 0.1.0"},
    ],
)
def test_the_keeper_keeps_images_by_any_mark_of_equipment(root, marks):
    # Only these marks are ours: names, study and series are those that an archive gave.
    root.hold(*stack(3, series="1.2.3.7", patient="COERCED", **marks))
    root.hold(*stack(3, series="1.2.3.8"))
    kept, free = (reason_to_keep(catalog.by_id(root.database, number)) for number in (1, 2))
    assert kept == "own result: made by ctnode, never processed"
    assert free == ""


@pytest.mark.parametrize("sop_class", [SEGMENTATION, STRUCTURED_REPORT, SECONDARY_CAPTURE])
@pytest.mark.parametrize("manufacturer", ["ctnode", "ARCHIVE"])
def test_masks_reports_and_pages_are_never_queued(root, sop_class, manufacturer):
    # Without any mark left, none of them is a CT image.
    root.hold(Image("1.2.3.2.1", series="1.2.3.2", sop_class=sop_class, manufacturer=manufacturer))
    assert reason_to_keep(catalog.by_id(root.database, 1))


@pytest.mark.parametrize("value", ["", "SIEMENS", "ctnodes", "not ctnode", "syngo\\CT 2006", "my-ctnode"])
def test_other_equipment_is_not_taken_for_ours(value):
    assert not is_product(value)


def equipment(**values):
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def by_manufacturer(dataset):
    dataset.Manufacturer = "ctnode"


def by_model(dataset):
    dataset.ManufacturerModelName = "CTNODE"


def by_software(dataset):
    dataset.SoftwareVersions = ["syngo", "ctnode 0.1.0"]


def by_contribution(dataset):
    dataset.ContributingEquipmentSequence = [equipment(Manufacturer="PACS"), equipment(Manufacturer="ctnode")]


def by_contributing_model(dataset):
    dataset.ContributingEquipmentSequence = [equipment(Manufacturer="X", ManufacturerModelName="ctnode")]


def by_nothing(dataset):
    dataset.ContributingEquipmentSequence = [equipment(Manufacturer="PACS", SoftwareVersions="1")]


MARKS = (by_manufacturer, by_model, by_software, by_contribution, by_contributing_model, by_nothing)


def derived(marking, number):
    """Return the edit that makes a series derived CT, as an archive that coerces what it can gives it out."""

    def edit(_index, dataset):
        dataset.Manufacturer = "SIEMENS"
        dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        dataset.PatientName = "COERCED"
        dataset.PatientID = "0"
        dataset.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.99"
        dataset.SeriesInstanceUID = f"1.2.826.0.1.3680043.8.498.99.{number}"
        dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID}.{number}"
        marking(dataset)

    return edit


def test_process_refuses_derived_images_of_any_ctnode(tmp_path):
    source = tmp_path / "source"
    for number, marking in enumerate(MARKS):
        paths = write_ramp(source / str(number), grid(), edit=derived(marking, number))
        for path in paths:
            dataset = pydicom.dcmread(path)
            dataset.file_meta.ImplementationVersionName = "PACS 1"
            dataset.save_as(path)
    reports = list(process([source], tmp_path / "out", Config(outputs=FEW)))
    assert len(reports) == len(MARKS)
    for marking, report in zip(MARKS, sorted(reports, key=lambda report: report.series), strict=True):
        codes = {issue.code for issue in report.issues}
        if marking is by_nothing:
            assert (report.status, report.volume, codes) == (VolumeStatus.EXACT, 1, {"DERIVED"})
        else:
            assert (report.status, report.volume, report.outputs) == (VolumeStatus.REFUSED, 0, ("ct.json",)), marking
            assert codes == {"OWN_RESULT"}


def run(files, out, wanted):
    out.mkdir()
    return process_series(
        files, study=STUDY, series=SERIES, revision=1, made_at=datetime(2020, 1, 1, tzinfo=UTC), out=out,
        settings=Pipeline(), wanted=wanted, lungs=LungMask(),
    )  # fmt: skip


def test_what_a_ctnode_made_among_images_of_a_scanner_is_left_out(tmp_path):
    scanner = write_ramp(tmp_path / "a", grid())
    ours = write_ramp(
        tmp_path / "b", grid((3, 12, 10), (2.5, 0.8, 0.7), origin=(-20.0, -15.0, 60.0)),
        edit=lambda index, dataset: derived(by_contribution, index)(index, dataset),
    )  # fmt: skip
    (report,) = run(scanner + ours, tmp_path / "out", FEW)
    assert report.status is VolumeStatus.EXACT
    assert [(issue.code, issue.action[:10]) for issue in report.issues] == [("OWN_RESULT", "3 left out")]
    (alone,) = run(scanner, tmp_path / "alone", FEW)
    assert not alone.issues
    assert (tmp_path / "out" / "ct.nii.gz").read_bytes() == (tmp_path / "alone" / "ct.nii.gz").read_bytes()


def test_every_dicom_object_of_a_results_folder_carries_a_mark(tmp_path):
    run(write_ramp(tmp_path / "in", grid((24, 12, 10))), tmp_path / "out", Outputs(iso=False))
    objects = sorted((tmp_path / "out").glob("*.dcm"))
    assert objects
    for path in objects:
        made = pydicom.dcmread(path, stop_before_pixels=True)
        assert any(is_product(str(made.get(word, ""))) for word in ("Manufacturer", "ManufacturerModelName")), path
    (report,) = run(objects, tmp_path / "again", FEW)
    assert (report.status, report.volume, {issue.code for issue in report.issues}) == (
        VolumeStatus.REFUSED, 0, {"OWN_RESULT"}
    )  # fmt: skip


@pytest.mark.parametrize("marking", MARKS)
def test_the_header_of_the_index_and_the_science_agree_on_whose_an_image_is(tmp_path, marking):
    def edit(_index, dataset):
        dataset.Manufacturer = "SIEMENS"
        marking(dataset)

    (path, *_) = write_ramp(tmp_path, grid(), edit=edit)
    data = path.read_bytes()
    meta = read_meta(data)
    found = scan(data, meta.transfer_syntax, MARK_TAGS, start=meta.dataset_start)
    assert is_own(found) is (marking is not by_nothing)
