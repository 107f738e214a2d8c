"""Patients and studies as badly written as hospitals write them: our objects say the same, byte for byte.

An archive files objects by these bytes. If ours differ from those of the images, the results of one patient stand under
two. So nothing is mended, nothing is decoded, and only what has to be there and is not is added.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import replace
from datetime import UTC, datetime

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.datadict import dictionary_VR, tag_for_keyword

from ctnode.ct.lungs import segment
from ctnode.ct.measure import measure
from ctnode.ct.phantom import chest
from ctnode.ct.phantom_dicom import write_series
from ctnode.ct.source import read_frames, read_header
from ctnode.results.objects import Origin, patient_and_study
from ctnode.results.predecessors import name_predecessors
from ctnode.results.report import write_report
from ctnode.results.seg import write_seg
from ctnode.results.sr import write_sr
from ctnode.words import Issue, Severity
from tests.phantom_series import SERIES, STUDY, read

pytestmark = pytest.mark.integration

MADE_AT = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
MADE = ("seg.dcm", "sr.dcm", "report.dcm")
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
CHARSET = "SpecificCharacterSet"
UMLAUTS = {"PatientName": "Müller^Jörg", "StudyDescription": "Übersicht", "PatientID": "Ä1"}


def coded(charset: str | None, codec: str, **values: str) -> dict[str, bytes | None]:
    """Return the bytes of texts, which need not be of the character set that is declared (None: none)."""
    declared = None if charset is None else charset.encode()
    return {CHARSET: declared, **{word: value.encode(codec) for word, value in (values or UMLAUTS).items()}}


CASES: dict[str, dict[str, bytes | None]] = {
    "UTF-8": coded("ISO_IR 192", "utf-8", PatientName="Wang^XiaoDong=王^小東", StudyDescription="胸部 ñ"),
    "half-width katakana": coded("ISO_IR 13", "shift_jis", PatientName="ﾔﾏﾀﾞ^ﾀﾛｳ", StudyDescription="ｷｮｳﾌﾞ"),
    "katakana and kanji": {
        CHARSET: b"ISO 2022 IR 13\\ISO 2022 IR 87",
        "PatientName": b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J",
    },
    "kanji": {
        CHARSET: b"\\ISO 2022 IR 87",
        "PatientName": b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B",
        "StudyDescription": b"\x1b$B6;It\x1b(B CT",
    },
    "hangul": {
        CHARSET: b"\\ISO 2022 IR 149",
        "PatientName": b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
    },
    "hanzi": coded("GB18030", "gb18030", PatientName="Wang^XiaoDong=王^小东"),
    "Latin 1 called UTF-8": coded("ISO_IR 192", "latin-1"),
    "UTF-8 called Latin 1": coded("ISO_IR 100", "utf-8"),
    "Latin 1 without a character set": coded(None, "latin-1"),
    "Latin 1 called ASCII": coded("ISO_IR 6", "latin-1"),
    "Shift JIS without a character set": coded(None, "shift_jis", PatientName="山田^太郎", StudyDescription="胸部ソ"),
    "a character set that no standard knows": coded("WINDOWS-1251", "cp1251", PatientName="Иванов^Иван"),
    "escapes that end nowhere": {
        CHARSET: b"\\ISO 2022 IR 87", "PatientName": b"Yamada=\x1b$B;3E", "StudyDescription": b"\x1b$B\xff\xfe \xe4",
    },
    "five components": {"PatientName": b"Adams^John Robert Quincy^Middle^Rev.^B.A. M.Div."},
    "six components, two names": {"PatientName": b"A^B^C^D^E^F\\Eve^Mary", "ReferringPhysicianName": b"^^^Dr."},
    "too long": {
        "PatientName": b"A" * 100, "StudyDescription": b"x" * 500, "StudyID": b"y" * 64, "PatientID": b"p" * 200,
        "AccessionNumber": b"z" * 64,
    },
    "dates and times that are none": {
        "StudyDate": b"2020-01-01", "StudyTime": b"12:30:00 PM", "PatientBirthDate": b"1901.02.03",
    },
    "rubbish": {
        "StudyDate": b"garbage!", "StudyTime": b"zz", "PatientBirthDate": b"00000000", "PatientSex": b"male",
        "PatientAge": b"63", "PatientSize": b"abc", "PatientWeight": b"7,5", "TimezoneOffsetFromUTC": b"+25:99xx",
    },
    "control characters": {"PatientName": b"Ad\0ams\r\n^J\tohn", "StudyDescription": b"two\r\nlines\x07\\three"},
}  # fmt: skip


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    voxels, _, grid = chest((40, 48, 48), (8.0, 8.0, 8.0))
    volume = read(write_series(tmp_path_factory.mktemp("in"), voxels, grid, study_uid=STUDY, series_uid=SERIES))
    lungs = segment(volume)
    return volume, grid, lungs, measure(volume, lungs)


def image_with(folder, example, values, syntax=EXPLICIT):
    """Write one image whose attributes hold the very bytes of ``values`` (None: it has none)."""
    padded = {word: value + b" " * (len(value) % 2) for word, value in values.items() if value}

    def edit(_index, dataset):
        for word, value in values.items():
            if value is None:
                dataset.pop(word, None)
            elif word != CHARSET:
                dataset[word] = pydicom.DataElement(tag_for_keyword(word), "LO", "9" * len(padded.get(word, "")))
        for word in {CHARSET} & padded.keys():
            dataset[word] = pydicom.DataElement(tag_for_keyword(word), "LO", ["ISO_IR 100"])

    volume, grid, *_ = example
    (path,) = write_series(
        folder, volume.voxels[:1], replace(grid, shape=(1, *grid.shape[1:])), study_uid=STUDY, series_uid=SERIES,
        edit=edit, transfer_syntax=syntax,
    )  # fmt: skip
    data = path.read_bytes()
    for word, value in padded.items():
        tag = tag_for_keyword(word)
        number = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        at = data.index(number, 132)
        if syntax == IMPLICIT:
            length, head = data[at + 4 : at + 8], number + struct.pack("<I", len(value))
        else:
            length, head = data[at + 6 : at + 8], number + dictionary_VR(word).encode() + struct.pack("<H", len(value))
        data = data[:at] + head + value + data[at + 8 + int.from_bytes(length, "little") :]
    path.write_bytes(data)
    return path


def objects_of(image, out, example):
    """Write our three objects of a volume that has the header of ``image``."""
    volume, _, lungs, numbers = example
    (frame,), faults = read_frames([image])
    assert not faults
    volume = replace(volume, header=read_header(frame))
    out.mkdir(parents=True)
    origin = Origin(STUDY, SERIES, 1, MADE_AT, "d")
    write_report(
        out / "report.dcm", volume, lungs, numbers, study=STUDY, series=SERIES, revision=1, made_at=MADE_AT,
        settings_digest="d",
    )  # fmt: skip
    write_seg(out / "seg.dcm", volume, lungs, origin)
    write_sr(out / "sr.dcm", volume, numbers, origin)
    return [out / name for name in MADE]


def bytes_of(path, words):
    """Return the values of attributes as they stand in a file; None: it has none."""
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    found = {word: dataset.get_item(word) for word in words}
    return {word: None if one is None else plain(one.value) for word, one in found.items()}


def plain(value):
    """Return the bytes of a value without padding; pydicom reads the character set at once, and only that."""
    if isinstance(value, pydicom.multival.MultiValue):
        value = "\\".join(value)
    return (value.encode("ascii") if isinstance(value, str) else value or b"").rstrip(b" ")


def errors(path):
    told = subprocess.run(["dciodvfy", str(path)], capture_output=True, check=False).stderr
    assert told
    return {line for line in told.splitlines() if line.startswith(b"Error")}


@pytest.mark.parametrize("values", CASES.values(), ids=CASES.keys())
def test_objects_hold_the_bytes_of_the_source_and_no_error_of_their_own(tmp_path, example, values):
    image = image_with(tmp_path, example, values)
    wanted = {word: None if value is None else value.rstrip(b" ") for word, value in values.items()}
    assert bytes_of(image, values) == wanted
    objects = objects_of(image, tmp_path / "r1", example)
    # Those of a later revision are rewritten to name the earlier ones.
    shutil.copytree(tmp_path / "r1", tmp_path / "r2")
    name_predecessors(tmp_path / "r2", MADE, 2)
    for path in (*objects, *(tmp_path / "r2" / name for name in MADE)):
        assert bytes_of(path, values) == wanted, path
    # What was copied hurts no reader.
    assert highdicom.seg.segread(objects[0]).NumberOfFrames > 0
    assert len(highdicom.sr.srread(objects[1]).content.get_volumetric_roi_measurement_groups()) == 2
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    own = errors(image)
    for path in objects:
        assert errors(path) <= own, path


GAPS = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
        "AccessionNumber", "ReferringPhysicianName")  # fmt: skip


@pytest.mark.parametrize("value", [None, b""], ids=["missing", "empty"])
def test_what_has_to_be_there_is_there_and_empty(tmp_path, example, value):
    values = {**dict.fromkeys(GAPS, value), CHARSET: None}
    for path in objects_of(image_with(tmp_path, example, values), tmp_path / "out", example):
        assert bytes_of(path, GAPS) == dict.fromkeys(GAPS, b"")
        assert CHARSET not in pydicom.dcmread(path)
        if shutil.which("dciodvfy"):
            assert not errors(path)


def test_implicit_sources_give_the_same_objects(tmp_path, example):
    values = coded("ISO_IR 192", "latin-1")
    made = []
    for syntax in (EXPLICIT, IMPLICIT):
        folder = tmp_path / syntax
        folder.mkdir()
        image = image_with(folder, example, values, syntax)
        made.append([path.read_bytes() for path in objects_of(image, folder / "out", example)])
        assert bytes_of(image, ["PatientID"]) == {"PatientID": values["PatientID"]}
    assert made[0] == made[1]


def test_how_an_identity_was_removed_goes_along(tmp_path, example):
    def edit(_index, image):
        image.PatientIdentityRemoved = "YES"
        code = pydicom.Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "113100", "DCM", "Basic Profile Ä"
        image.DeidentificationMethodCodeSequence = [code]

    volume, grid, *_ = example
    one = replace(grid, shape=(1, *grid.shape[1:]))
    for number, syntax in enumerate((EXPLICIT, IMPLICIT)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (image,) = write_series(
            folder, np.asarray(volume.voxels[:1]), one, study_uid=STUDY, series_uid=SERIES, edit=edit,
            transfer_syntax=syntax,
        )  # fmt: skip
        for path in objects_of(image, folder / "out", example):
            made = pydicom.dcmread(path)
            assert made.DeidentificationMethodCodeSequence[0].CodeMeaning == "Basic Profile Ä"
            assert "DeidentificationMethod" not in made


@pytest.mark.parametrize(
    ("offset", "date", "time"),
    [
        (b"+0900", "20250102", "120405.000000"),
        (b"-0330", "20250101", "233405.000000"),
        (b"", "20250102", "030405.000000"),
        (b"+25:99", "20250102", "030405.000000"),
        (b"+1500", "20250102", "030405.000000"),
    ],
)
def test_our_times_are_in_the_zone_that_the_study_says(tmp_path, example, offset, date, time):
    # One element gives the zone of every time in an object: that of the source is copied, so ours have to follow it.
    for path in objects_of(image_with(tmp_path, example, {"TimezoneOffsetFromUTC": offset}), tmp_path / "out", example):
        made = pydicom.dcmread(path)
        assert (made.ContentDate, made.ContentTime) == (made.SeriesDate, made.SeriesTime) == (date, time)
        assert made.ContributingEquipmentSequence[0].ContributionDateTime == date + time
        assert bytes_of(path, ["TimezoneOffsetFromUTC"])["TimezoneOffsetFromUTC"] == (offset or None)


@pytest.mark.parametrize(
    ("values", "taken"),
    [
        ({}, "20200101120000"),
        ({"TimezoneOffsetFromUTC": b"+0900"}, "20200101030000"),
        ({"AcquisitionDateTime": b"20200101080000.5-0500", "TimezoneOffsetFromUTC": b"+0900"}, "20200101130000"),
        ({"AcquisitionDateTime": b"20201301080000"}, "20200101120000"),
        ({"AcquisitionDateTime": b"00010101000000+1400"}, "20200101120000"),
        ({"AcquisitionDate": b"", "AcquisitionTime": b"12", "ContentDate": b"2020.1.1"}, ""),
    ],
)
def test_when_an_image_was_taken_is_told_in_utc_where_it_can_be(tmp_path, example, values, taken):
    def edit(_index, image):
        for word, value in values.items():
            image[word] = pydicom.DataElement(tag_for_keyword(word), "LO", value.decode())

    volume, grid, *_ = example
    (path,) = write_series(
        tmp_path, volume.voxels[:1], replace(grid, shape=(1, *grid.shape[1:])), study_uid=STUDY, series_uid=SERIES,
        edit=edit,
    )  # fmt: skip
    (frame,), _ = read_frames([path])
    assert frame.taken_at == taken


def test_uids_that_are_padded_with_blanks_are_the_same_uids(tmp_path, example):
    values = {
        "StudyInstanceUID": b"1.2.3.4.5 ",
        "SeriesInstanceUID": b"1.2.3.4.5.67 ",
        "FrameOfReferenceUID": b"1.2.3 ",
    }
    seg, sr, report = (
        pydicom.dcmread(path) for path in objects_of(image_with(tmp_path, example, values), tmp_path / "out", example)
    )
    assert [made.StudyInstanceUID for made in (seg, sr, report)] == ["1.2.3.4.5"] * 3
    assert seg.FrameOfReferenceUID == "1.2.3"
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.4.5.67"
    named = [item.UID for _, item in elements(sr) if "UID" in item and item.ValueType == "UIDREF"]
    assert "1.2.3.4.5.67" in named


def elements(dataset):
    """Yield the keyword of each sequence with each of its items, to any depth."""
    for element in dataset:
        for item in element.value if element.VR == "SQ" else ():
            yield element.keyword, item
            yield from elements(item)


def test_who_gave_the_identifiers_goes_along(tmp_path, example):
    def edit(_index, image):
        image.IssuerOfPatientID = "HOSPITAL"
        for word in ("IssuerOfPatientIDQualifiersSequence", "IssuerOfAccessionNumberSequence"):
            item = pydicom.Dataset()
            item.UniversalEntityID, item.UniversalEntityIDType = "1.2.3", "ISO"
            setattr(image, word, [item])

    volume, grid, *_ = example
    (image,) = write_series(
        tmp_path, volume.voxels[:1], replace(grid, shape=(1, *grid.shape[1:])), study_uid=STUDY, series_uid=SERIES,
        edit=edit,
    )  # fmt: skip
    for path in objects_of(image, tmp_path / "out", example):
        made = pydicom.dcmread(path)
        assert made.IssuerOfPatientID == "HOSPITAL"
        assert made.IssuerOfPatientIDQualifiersSequence[0].UniversalEntityID == "1.2.3"
        assert made.IssuerOfAccessionNumberSequence[0].UniversalEntityID == "1.2.3"


@pytest.mark.parametrize("lossy", [False, True])
def test_a_loss_of_the_source_is_a_loss_of_what_is_made_of_it(tmp_path, example, lossy):
    volume, grid, lungs, numbers = example
    values = {"LossyImageCompression": b"01", "LossyImageCompressionRatio": b"12.5"} if lossy else {}
    image = image_with(tmp_path, example, {**values, "LossyImageCompressionMethod": b"ISO_15444_1"})
    issues = (Issue("LOSSY", Severity.INFO, "compressed with loss"),) if lossy else ()
    seg, _, report = objects_of(image, tmp_path / "out", (replace(volume, issues=issues), grid, lungs, numbers))
    for path in (seg, report):
        made = pydicom.dcmread(path)
        assert made.LossyImageCompression == ("01" if lossy else "00")
        assert made.get("LossyImageCompressionRatio") == (12.5 if lossy else None)
        assert made.get("LossyImageCompressionMethod") == ("ISO_15444_1" if lossy else None)
        if shutil.which("dciodvfy"):
            assert errors(path) <= errors(image)


def test_an_empty_element_of_a_vr_that_does_not_exist_is_no_value():
    header = pydicom.Dataset()
    tag = pydicom.tag.Tag(tag_for_keyword("PatientAge"))
    header[tag] = pydicom.dataelem.RawDataElement(tag, "XX", 0, None, 0, False, True)
    header.PatientID = "7"
    made = patient_and_study(header, STUDY)
    assert "PatientAge" not in made
    assert made.PatientID == "7"
