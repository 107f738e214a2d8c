"""The page as Encapsulated PDF: a PDF of the page and of no date but its own, in the study of the source."""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import UTC, datetime

import pydicom
import pytest

from ctnode.config import Outputs, Pipeline
from ctnode.ct.phantom import chest
from ctnode.ct.phantom_dicom import write_series
from ctnode.flow.pipeline import process_series
from tests.phantom_series import SERIES, STUDY

pytestmark = pytest.mark.integration

ONLY = Outputs(iso=False, preview=False, mpr=False, histogram=False, surface=False, document=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    voxels, _, on = chest((40, 48, 48), (8.0, 8.0, 8.0))
    return write_series(tmp_path_factory.mktemp("chest"), voxels, on, study_uid=STUDY, series_uid=SERIES)


def run(files, out, wanted=ONLY):
    out.mkdir()
    (report,) = process_series(
        files, study=STUDY, series=SERIES, revision=1, made_at=datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC), out=out,
        settings=Pipeline(), wanted=wanted,
    )  # fmt: skip
    return report


def test_the_page_is_a_document_of_the_study(files, tmp_path):
    run(files, tmp_path / "out")
    made, source = pydicom.dcmread(tmp_path / "out" / "document.dcm"), pydicom.dcmread(files[0])
    assert (made.Modality, made.StudyInstanceUID, made.PatientID) == ("DOC", source.StudyInstanceUID, source.PatientID)
    assert len(made.SourceInstanceSequence) == len(files)
    content = made.EncapsulatedDocument[: made.EncapsulatedDocumentLength]
    assert content.startswith(b"%PDF-")
    assert content.rstrip().endswith(b"%%EOF")
    assert set(re.findall(rb"D:(\d{14})", content)) == {b"20250102030405"}
    assert source.PatientID.encode() not in content
    if shutil.which("dciodvfy"):
        told = subprocess.run(
            ["dciodvfy", tmp_path / "out" / "document.dcm"], capture_output=True, text=True, check=False
        )
        assert told.stderr.startswith("EncapsulatedPDF")
        assert "Error" not in told.stderr
    if shutil.which("dcm2pdf"):
        command = ["dcm2pdf", tmp_path / "out" / "document.dcm", tmp_path / "page.pdf"]
        subprocess.run(command, check=True, capture_output=True)
        assert (tmp_path / "page.pdf").read_bytes().rstrip(b"\0") == content.rstrip(b"\0")


def test_it_is_the_same_document_again_and_none_unless_asked_for(files, tmp_path):
    run(files, tmp_path / "a")
    run(files[::-1], tmp_path / "b")
    assert (tmp_path / "a" / "document.dcm").read_bytes() == (tmp_path / "b" / "document.dcm").read_bytes()
    assert "document.dcm" not in run(files, tmp_path / "c", ONLY.model_copy(update={"document": False})).outputs
