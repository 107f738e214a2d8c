"""A patient whose name stands in thirty elements: after all is done it stands in the images, and nowhere else."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import nibabel
import pydicom
import pytest
import structlog
from PIL import Image as Picture
from pydicom.datadict import dictionary_VR

from ctnode.archive import catalog, jobs, revisions
from ctnode.config import Config, Log, LungMask, Outputs, Pipeline, Storage
from ctnode.ct.phantom import chest
from ctnode.ct.phantom_dicom import write_series
from ctnode.flow.doctor import examine
from ctnode.flow.importing import import_paths
from ctnode.ops import log
from ctnode.ops.role import Role
from tests.archive_root import Root, opened

pytestmark = pytest.mark.integration

STUDY, SERIES = "1.2.826.0.1.3680043.8.498.7", "1.2.826.0.1.3680043.8.498.7.1"
CANARY = "KANARIENVOGEL"
WORDS = [
    "PatientName",
    "PatientID",
    "OtherPatientNames",
    "PatientComments",
    "PatientAddress",
    "PatientMotherBirthName",
    "AdditionalPatientHistory",
    "EthnicGroup",
    "Occupation",
    "PatientTelephoneNumbers",
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "OperatorsName",
    "NameOfPhysiciansReadingStudy",
    "PhysiciansOfRecord",
    "RequestingPhysician",
    "StudyDescription",
    "SeriesDescription",
    "ProtocolName",
    "RequestedProcedureDescription",
    "PerformedProcedureStepDescription",
    "ImageComments",
    "StationName",
    "AccessionNumber",
    "StudyID",
    "AdmissionID",
    "RequestAttributesSequenceComment",
    "DeviceSerialNumber",
    "AdmittingDiagnosesDescription",
    "DerivationDescription",
]
TEXTS = [word for word in WORDS if word != "RequestAttributesSequenceComment"]
# Where PS3.3 C.7 wants the patient and the study of the source to stand.
COPIED = {
    "PatientName", "PatientID", "AccessionNumber", "StudyID", "ReferringPhysicianName", "StudyDescription",
    "PatientBirthDate",
}  # fmt: skip


def mark(_index: int, dataset: pydicom.Dataset) -> None:
    for word in TEXTS:
        value = CANARY[:16] if dictionary_VR(word) in {"SH", "CS"} else f"{CANARY} {word[:20]}"
        setattr(dataset, word, value)
    dataset.PatientBirthDate = "19010203"
    # Further kinds of text, in a nested sequence and in a private block too.
    dataset.TextComments = f"{CANARY} LT"
    dataset.TextValue = f"{CANARY} UT"
    inner = pydicom.Dataset()
    inner.CodeMeaning = f"{CANARY} inner LO"
    inner.CodeValue = CANARY
    step = pydicom.Dataset()
    step.ScheduledProcedureStepDescription = f"{CANARY} LO"
    step.ScheduledProcedureStepID = CANARY
    step.ReasonForTheRequestedProcedure = f"{CANARY} LO"
    step.ScheduledProtocolCodeSequence = [inner]
    dataset.RequestAttributesSequence = [step]
    block = dataset.private_block(0x0011, CANARY, create=True)
    block.add_new(0x01, "LO", f"{CANARY} private LO")
    block.add_new(0x02, "UT", f"{CANARY} private UT")
    block.add_new(0x03, "ST", f"{CANARY} private ST")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with warnings.catch_warnings():
        log.configure(Log(level="debug"), role="keep")
        yield stream
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


@pytest.fixture
def finished(tmp_path: Path, said: io.StringIO) -> Iterator[tuple[Root, Path]]:
    """A node that took a marked series, and the folder of its results."""
    volume, _, where = chest((60, 128, 128), (5.0, 3.0, 3.0))
    source = tmp_path / "source"
    source.mkdir()
    write_series(source, volume, where, study_uid=STUDY, series_uid=SERIES, edit=mark)
    root = Root(tmp_path / "node")
    list(import_paths(root.layout, [source], door="import"))
    root.settle()
    # One that cannot be settled stays where only its bytes know the patient.
    journal = root.spool.open_association(opened())
    broken = journal.directory / f"{10**18 * 2:019d}-000001.dcm"
    broken.write_bytes(CANARY.encode())
    journal.close("released")
    root.settle()
    root.settle()
    root.complete()
    with root.database.immediate():
        revisions.queue(root.database, revisions.newest(root.database, 1))
    lease = jobs.claim(root.database, "one")
    assert lease is not None
    out = root.layout.result_directory(STUDY, SERIES, 1, 1)
    out.mkdir(parents=True)
    order = {
        "parent": os.getpid(),
        "files": [str(root.layout.store / path) for path in revisions.frozen_paths(root.database, 1)],
        "study": STUDY,
        "series": SERIES,
        "revision": 1,
        "made_at": datetime(2026, 1, 1, tzinfo=UTC).timestamp(),
        "out": str(out),
        "pipeline": Pipeline(spacing_mm=3.0).model_dump(),
        "wanted": Outputs().model_dump(),
        "lungs": LungMask().model_dump(),
    }
    child = subprocess.run(
        [sys.executable, "-m", "ctnode.flow.child"], input=json.dumps(order).encode(), capture_output=True, check=True
    )
    assert CANARY not in child.stdout.decode() + child.stderr.decode()
    (report,) = json.loads(child.stdout.splitlines()[-1])["reports"]
    jobs.finish(root.database, lease, [report], "done", lambda _newest: None)
    with Role("keep", root.layout.run, "digest") as role:
        role.report(waiting=0)
        role.write_report()
        for file in root.layout.run.glob("*.json"):
            assert CANARY not in file.read_text()
    yield root, out
    root.close()


def holds_canary(content: bytes) -> bool:
    return CANARY.encode() in content or CANARY.lower().encode() in content.lower() or b"19010203" in content


def test_the_patient_stands_in_images_and_nowhere_else(
    finished: tuple[Root, Path], said: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = finished
    assert len(TEXTS) >= 30
    allowed = ("store", "incoming", "quarantine")
    for path in root.layout.root.rglob("*"):
        relative = path.relative_to(root.layout.root)
        assert CANARY.lower() not in str(relative).lower()
        if path.is_file() and relative.parts[0] not in allowed and path.name not in {"report.dcm", "seg.dcm", "sr.dcm"}:
            content = path.read_bytes()
            if path.suffix == ".gz":
                content = gzip.decompress(content)
            assert not holds_canary(content), relative
    assert holds_canary(next(iter((root.layout.store).rglob("*.dcm"))).read_bytes())
    assert holds_canary(next(iter((root.layout.quarantine).rglob("*.dcm"))).read_bytes())
    assert "instance not settled" in said.getvalue()
    assert not holds_canary(said.getvalue().encode())
    shown = [*catalog.listing(root.database), *examine(Config(storage=Storage(root=str(root.layout.root))))]
    assert not holds_canary(repr(shown).encode())


WRITTEN = ("SeriesDescription", "StudyDescription", "ProtocolName", "ImageComments")


@pytest.mark.parametrize("described", [False, True], ids=["technique only", "descriptions"])
def test_process_says_no_more_than_it_is_asked_for(tmp_path: Path, described: bool) -> None:
    voxels, _, where = chest((40, 48, 48), (8.0, 8.0, 8.0))
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    write_series(source, voxels, where, study_uid=STUDY, series_uid=SERIES, edit=mark)
    arguments = ["process", str(source), "--out", str(out), "--json", "--set", "outputs.png16=true"]
    arguments += ["--set", f"outputs.descriptions={str(described).lower()}"]
    done = subprocess.run([sys.executable, "-m", "ctnode", *arguments], capture_output=True, check=True)
    assert not holds_canary(done.stdout + done.stderr)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {"ct.json", "measurements.json", "ct.nii.gz", "lungs.png", "slices.zip"} <= {path.name for path in files}
    for path in files:
        assert CANARY.lower() not in str(path.relative_to(tmp_path)).lower()
        if path.name == "ct.json":
            told = json.loads(path.read_text("utf-8"))
            marked = {name for name, value in told.items() if holds_canary(json.dumps(value).encode())}
            assert marked == (set(WRITTEN) if described else set())
        elif path.suffix != ".dcm":
            content = path.read_bytes()
            assert not holds_canary(gzip.decompress(content) if path.suffix == ".gz" else content), path.name


def test_the_report_names_the_patient_only_where_the_standard_wants_it(finished: tuple[Root, Path]) -> None:
    _, out = finished
    for name in ("report.dcm", "seg.dcm", "sr.dcm"):
        made = pydicom.dcmread(out / name)
        marked = {element.keyword for element in made.iterall() if holds_canary(str(element.value).encode())}
        assert "PatientName" in marked
        assert "PatientID" in marked
        assert marked <= COPIED


def test_headers_and_chunks_of_results_hold_technique_only(finished: tuple[Root, Path]) -> None:
    _, out = finished
    for file in out.glob("*.nii.gz"):
        assert not holds_canary(repr(dict(nibabel.load(file).header)).encode())
    for file in out.glob("*.png"):
        with Picture.open(file) as picture:
            assert not holds_canary(repr(picture.info).encode())
    for file in out.glob("*.json"):
        text = json.dumps(json.loads(file.read_text()))
        assert not holds_canary(text.encode())
        for word in ("Institution", "Physician", "Description", "Operators", "Station"):
            assert word not in text
    pictures = {"preview.png", "mpr.png", "lungs.png", "histogram.png", "surface.png"}
    assert pictures | {"ct.json", "ct.nii.gz", "report.dcm", "lungs.nii.gz"} <= {path.name for path in out.iterdir()}
