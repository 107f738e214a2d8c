"""What strangers write into URLs and headers of DICOMweb: read by rules, and never more than refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctnode.web import wado
from ctnode.web.attributes import as_json, matches, tag_of
from ctnode.web.media import accepted, covers
from ctnode.web.qido import LARGEST_LIMIT, BadQuery, parse_query

pytestmark = pytest.mark.unit

OCTETS = "multipart/related; type=application/octet-stream"
J2K = "1.2.840.10008.1.2.4.90"
PATIENT_ID, PATIENT_NAME, STUDY_DATE, STUDY_TIME, ROWS = 0x00100020, 0x00100010, 0x00080020, 0x00080030, 0x00280010


def test_ranges_come_by_their_weight_and_quotes_hold_separators() -> None:
    found = accepted(
        'image/png;q=0.1, multipart/related; type="application/dicom"; x="a,b;c"; transfer-syntax=*, */*;q=0'
    )
    assert [media.name for media in found] == ["multipart/related", "image/png"]
    assert found[0].parameters == {"type": "application/dicom", "x": "a,b;c", "transfer-syntax": "*"}
    assert covers(found[0], "application/dicom")
    assert not covers(found[0], "image/png")


@given(st.text())
def test_no_header_is_more_than_not_understood(text: str) -> None:
    for media in accepted(text):
        assert "/" in media.name


@pytest.mark.parametrize(
    ("accept", "stored", "form"),
    [
        ("*/*", J2K, (False, "application/octet-stream")),
        (f"{OCTETS}; transfer-syntax=*", J2K, (True, "application/octet-stream")),
        (f"{OCTETS}; transfer-syntax={J2K}", J2K, (True, "application/octet-stream")),
        ("multipart/related; type=image/jp2", J2K, (True, "image/jp2")),
        (f"multipart/related; type=image/jls, {OCTETS}", J2K,
         (False, "application/octet-stream")),
        ("multipart/related; type=image/jls", J2K, None),
        (f"multipart/related; type=image/jp2; transfer-syntax={J2K}1", J2K, None),
    ],
)  # fmt: skip
def test_frames_go_out_in_the_first_form_that_there_is(accept: str, stored: str, form: tuple[bool, str] | None) -> None:
    choice = wado.choose_frames(stored, accepted(accept), single=False)
    assert (choice and (choice.is_stored, choice.media_type)) == form


@pytest.mark.parametrize(
    ("tag", "value", "wanted", "does_match"),
    [
        (PATIENT_ID, "A1", "A?", True),
        (PATIENT_ID, "A1", "a1", False),
        (PATIENT_ID, "[x]", "[x]", True),
        (PATIENT_ID, "x", "[x]", False),
        (PATIENT_ID, "", "", True),
        (PATIENT_NAME, "Doe^Jane", "doe*", True),
        (PATIENT_NAME, "Yamada^Tarou=山田^太郎", "山田*", True),
        (STUDY_DATE, "20200131", "20200131", True),
        (STUDY_DATE, "20200131", "20200201-", False),
        (STUDY_DATE, "20200131", "-2020", True),
        (STUDY_DATE, "", "-2020", False),
        (STUDY_TIME, "103059.5", "10-1030", True),
        (STUDY_TIME, "103100", "10-1030", False),
        (ROWS, 512.0, "512", True),
        (ROWS, 512.0, "x", False),
    ],
)
def test_values_match_as_the_standard_says(tag: int, value: str | float, wanted: str, does_match: bool) -> None:
    assert matches(tag, (value,), wanted) is does_match


@given(st.sampled_from([PATIENT_ID, PATIENT_NAME, STUDY_DATE, ROWS]), st.text(), st.text())
def test_matching_never_fails_and_what_was_not_asked_for_always_matches(tag: int, value: str, wanted: str) -> None:
    matches(tag, (value,), wanted)
    assert matches(tag, (value,), "")
    assert matches(tag, (), "*")
    as_json(tag, (value,) if tag != ROWS else (float("nan"), 1.0))


@given(st.lists(st.tuples(st.one_of(st.text(), st.sampled_from(["limit", "offset", "includefield"])), st.text())))
def test_a_query_is_read_or_refused(pairs: list[tuple[str, str]]) -> None:
    try:
        query = parse_query(pairs, "studies")
    except BadQuery:
        return
    assert 0 <= query.limit <= LARGEST_LIMIT


@given(st.dictionaries(st.sampled_from(["window", "viewport", "quality"]), st.text()))
def test_a_look_is_read_or_refused(parameters: dict[str, str]) -> None:
    try:
        look = wado.look_of(parameters)
    except BadQuery:
        return
    assert 1 <= look.quality <= 100


def test_names_of_attributes_are_keywords_or_tags_that_can_be_read() -> None:
    assert tag_of("PatientID") == tag_of("00100020") == PATIENT_ID
    assert [tag_of(name) for name in ("PixelData", "FFFFFFFF", "ReferencedSeriesSequence", "x", "")] == [None] * 5
