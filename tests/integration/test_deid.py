"""What leaves for external destinations: nothing of the patient, at any depth, and still one coherent project."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pydicom
import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from ctnode.config import Config, load
from ctnode.ct.phantom import chest
from ctnode.ct.phantom_dicom import write_series
from ctnode.flow.outgoing import outgoing
from ctnode.results.deid import Profile, deidentify, deidentify_file
from ctnode.results.leaving import LISTED
from ctnode.words import ConfigError, Refusal

pytestmark = pytest.mark.integration

CANARY = "KANARIENVOGEL"
STUDY, SERIES = "1.2.826.0.1.3680043.8.498.7", "1.2.826.0.1.3680043.8.498.7.1"
PROFILE = Profile("STUDYA", b"k" * 32)
TEXT_VRS = {"LO": 20, "SH": 16, "PN": 20, "LT": 20, "ST": 20, "UT": 20, "UC": 20, "AE": 16}


def poison(dataset: Dataset, depth: int = 3) -> None:
    """Write the canary into every text attribute that may not leave, into private ones, and into sequences of them."""
    for word in pydicom.datadict.keyword_dict:
        if not word or word in LISTED or word.startswith(("FileSet", "Command")):
            continue
        tag = pydicom.tag.Tag(pydicom.datadict.tag_for_keyword(word))
        vr = dictionary_VR(tag)
        if vr in TEXT_VRS and 0x0008 <= tag.group < 0x5000 and word not in dataset and len(dataset) < 600:
            setattr(dataset, word, CANARY[: TEXT_VRS[vr]])
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = CANARY, CANARY[:12], "19010203"
    block = dataset.private_block(0x0019, CANARY, create=True)
    block.add_new(0x01, "LO", CANARY)
    block.add_new(0x02, "UN", CANARY.encode())
    for word in ("SourceImageSequence", "ReferencedSeriesSequence", "RequestAttributesSequence") if depth else ():
        item = Dataset()
        poison(item, depth - 1)
        item.ReferencedSOPInstanceUID = "1.2.3.4"
        setattr(dataset, word, Sequence([item]))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    volume, _, where = chest((3, 32, 32), (5.0, 12.0, 12.0))
    write_series(folder, volume, where, study_uid=STUDY, series_uid=SERIES)
    file = min(folder.iterdir())
    dataset = pydicom.dcmread(file)
    poison(dataset)
    dataset.StudyDate, dataset.StudyTime, dataset.AcquisitionDateTime = "20260131", "101112", "20260131101112.5"
    dataset.save_as(file)
    assert CANARY.encode() in file.read_bytes()
    return file


def test_no_canary_leaves_at_any_depth_and_no_uid_of_the_source(source: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.dcm"
    deidentify_file(source, made, PROFILE)
    content = made.read_bytes()
    for word in (CANARY, CANARY[:12], "19010203", "20260131", STUDY, "1.2.3.4"):
        assert word.encode() not in content, word
    dataset = pydicom.dcmread(made)
    assert not any(element.tag.is_private for element in dataset.iterall())
    assert dataset.PatientIdentityRemoved == "YES"
    assert [code.CodeValue for code in dataset.DeidentificationMethodCodeSequence] == ["113100", "113107"]
    assert dataset.LongitudinalTemporalInformationModified == "MODIFIED"
    assert dataset.SourceImageSequence[0].ReferencedSOPInstanceUID == PROFILE.mapped_uid("1.2.3.4")


def test_the_image_stays_what_it_is(source: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.dcm"
    deidentify_file(source, made, PROFILE)
    before, after = pydicom.dcmread(source), pydicom.dcmread(made)
    assert after.PixelData == before.PixelData
    for word in ("ImagePositionPatient", "PixelSpacing", "RescaleSlope", "Rows", "SOPClassUID", "StudyTime"):
        assert after[word].value == before[word].value
    assert after.file_meta.TransferSyntaxUID == before.file_meta.TransferSyntaxUID


def test_the_same_key_gives_the_same_object_and_another_one_nothing_in_common(source: Path) -> None:
    dataset = pydicom.dcmread(source)
    first, again = (deidentify(dataset, PROFILE) for _ in range(2))
    other = deidentify(dataset, Profile("STUDYA", b"x" * 32))
    assert first == again
    for word in ("PatientID", "StudyInstanceUID", "SOPInstanceUID"):
        assert first[word].value != other[word].value
    assert first.PatientID.startswith("STUDYA-")


def test_the_days_between_two_studies_of_a_subject_stay(source: Path) -> None:
    dataset = pydicom.dcmread(source)
    first = deidentify(dataset, PROFILE)
    dataset.StudyDate = "20260210"
    second = deidentify(dataset, PROFILE)
    days = [datetime.strptime(one.StudyDate, "%Y%m%d").replace(tzinfo=UTC) for one in (first, second)]
    assert (days[1] - days[0]).days == 10
    assert first.AcquisitionDateTime[:8] == first.StudyDate


@pytest.mark.parametrize(
    "change",
    [
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1", "Manufacturer": "ctnode"},
        {"BurnedInAnnotation": "YES"},
        {"ImageType": ["DERIVED", "SECONDARY"]},
    ],
)
def test_what_cannot_be_judged_does_not_leave(source: Path, change: dict[str, object]) -> None:
    dataset = pydicom.dcmread(source)
    for word, value in change.items():
        setattr(dataset, word, value)
    with pytest.raises(Refusal):
        deidentify(dataset, PROFILE)


def test_a_structured_report_keeps_its_numbers_and_loses_its_free_text(source: Path) -> None:
    report = pydicom.dcmread(source, stop_before_pixels=True)
    report.SOPClassUID, report.Manufacturer = "1.2.840.10008.5.1.4.1.1.88.33", "ctnode"
    number, text, code = Dataset(), Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "X1", "99HOSPITAL", CANARY
    number.ValueType, text.ValueType, text.TextValue = "NUM", "TEXT", CANARY
    number.ConceptNameCodeSequence = [code]
    report.ContentSequence = [text, number]
    made = deidentify(report, PROFILE)
    assert [item.ValueType for item in made.ContentSequence] == ["NUM"]
    assert list(made.ContentSequence[0].ConceptNameCodeSequence) == []
    assert CANARY not in str(made)


def test_a_broken_file_does_not_leave_and_no_file_appears(tmp_path: Path) -> None:
    (tmp_path / "broken.dcm").write_bytes(b"DICM" * 50)
    with pytest.raises(Refusal):
        deidentify_file(tmp_path / "broken.dcm", tmp_path / "made.dcm", PROFILE)
    assert not (tmp_path / "made.dcm").exists()


EXTERNAL = """
[[targets]]
name = "out"
ae_title = "OUT"
host = "127.0.0.1"
port = 104
external = true
"""
PROFILED = (
    EXTERNAL
    + """deidentify = "a"
[[deidentification]]
name = "a"
project = "A"
key_file = "a.key"
"""
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (EXTERNAL, "names no profile"),
        (EXTERNAL + 'deidentify = "b"', "names no profile b"),
        (PROFILED, "at least 32 random bytes"),
    ],
)
def test_an_external_target_without_profile_or_key_stops_the_node(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError) as wrong:
        load(tmp_path / "config.toml", environment={})
    assert words in str(wrong.value)


def test_the_file_for_an_external_target_is_another_one_and_for_others_the_same(source: Path, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(PROFILED)
    (tmp_path / "a.key").write_bytes(b"k" * 32)
    config: Config = load(tmp_path / "config.toml", environment={}).config
    made = outgoing(config, config.targets[0], source, tmp_path)
    assert CANARY.encode() not in made.read_bytes()
    inside = config.targets[0].model_copy(update={"external": False, "deidentify": ""})
    assert outgoing(config, inside, source, tmp_path) == source
