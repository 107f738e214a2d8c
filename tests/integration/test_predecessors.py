"""A later revision says so, and names what came before it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset

from ctnode.results.predecessors import name_predecessors
from tests.wire_peers import EXPLICIT, uid

pytestmark = pytest.mark.integration

SC = "1.2.840.10008.5.1.4.1.1.7"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
SR = "1.2.840.10008.5.1.4.1.1.88.34"


def result(folder: Path, sop_class: str, revision: int, description: str = "ctnode lung report") -> None:
    folder.mkdir(exist_ok=True)
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = EXPLICIT
    made.SOPClassUID, made.SOPInstanceUID = sop_class, uid(4, revision)
    made.StudyInstanceUID, made.SeriesInstanceUID = uid(1), uid(5, revision)
    made.SeriesDescription = description
    made.save_as(folder / "object.dcm", enforce_file_format=True)


@pytest.mark.parametrize("sop_class", [SC, SEG, SR])
def test_the_third_names_both_before_it_the_latest_first(tmp_path: Path, sop_class: str) -> None:
    for revision in (1, 2):
        result(tmp_path / f"r{revision}", sop_class, revision)
    result(tmp_path / ".tmp-3-1", sop_class, 3)
    name_predecessors(tmp_path / ".tmp-3-1", ["object.dcm", "ct.nii.gz"], 3)
    once = (tmp_path / ".tmp-3-1" / "object.dcm").read_bytes()
    found = dcmread(tmp_path / ".tmp-3-1" / "object.dcm")
    assert found.SeriesDescription == "ctnode lung report, revision 3"
    assert found.SOPInstanceUID == uid(4, 3)
    if sop_class == SR:
        documents = [item.ReferencedSeriesSequence[0] for item in found.PredecessorDocumentsSequence]
        assert [one.SeriesInstanceUID for one in documents] == [uid(5, 2), uid(5, 1)]
        named = [one.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for one in documents]
        assert named == [uid(4, 2), uid(4, 1)]
    else:
        assert [item.SeriesInstanceUID for item in found.RelatedSeriesSequence] == [uid(5, 2), uid(5, 1)]
        named = [item.ReferencedSOPInstanceUID for item in found.get("ReferencedImageSequence") or ()]
        assert named == ([uid(4, 2), uid(4, 1)] if sop_class == SC else [])
    # A run that is done again gives the same bytes.
    result(tmp_path / ".tmp-3-1", sop_class, 3)
    name_predecessors(tmp_path / ".tmp-3-1", ["object.dcm"], 3)
    assert (tmp_path / ".tmp-3-1" / "object.dcm").read_bytes() == once


def test_the_first_is_left_as_it_is_and_what_is_gone_is_not_named(tmp_path: Path) -> None:
    result(tmp_path / "r1", SC, 1)
    before = (tmp_path / "r1" / "object.dcm").read_bytes()
    name_predecessors(tmp_path / "r1", ["object.dcm"], 1)
    assert (tmp_path / "r1" / "object.dcm").read_bytes() == before
    (tmp_path / "r1" / "object.dcm").write_bytes(b"damaged")
    result(tmp_path / "new", SC, 2, description="x" * 64)
    name_predecessors(tmp_path / "new", ["object.dcm"], 2)
    found = dcmread(tmp_path / "new" / "object.dcm")
    assert found.SeriesDescription == "x" * 52 + ", revision 2"
    assert "RelatedSeriesSequence" not in found
