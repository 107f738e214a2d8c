"""Sequences are read by name, whatever their lengths are; hostile ones end in an error and never in a hang."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from ctnode.archive.notices import NoticeKind, listed_in, parse
from ctnode.archive.tree import read_tree
from ctnode.words import BadInstance

pytestmark = pytest.mark.unit

EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
BIG = "1.2.840.10008.1.2.2"
OUTER, INNER, VALUE = 0x00081199, 0x00081198, 0x00081155


def encoded(data: Dataset, syntax: str) -> bytes:
    file = DicomBytesIO()
    file.is_implicit_VR = syntax == IMPLICIT
    file.is_little_endian = syntax != BIG
    write_dataset(file, data)
    return file.getvalue()


def nested(names: list[list[str]], *, undefined: bool) -> Dataset:
    data = Dataset()
    outer = []
    for group in names:
        item = Dataset()
        item.ReferencedSOPClassUID = "1.2"
        item.ReferencedSOPInstanceUID = group[0] if group else "0"
        item.FailedSOPSequence = Sequence([])
        for name in group:
            inner = Dataset()
            inner.ReferencedSOPInstanceUID = name
            inner.is_undefined_length_sequence_item = undefined
            item.FailedSOPSequence.append(inner)
        item["FailedSOPSequence"].is_undefined_length = undefined
        item.is_undefined_length_sequence_item = undefined
        outer.append(item)
    data.ReferencedSOPSequence = Sequence(outer)
    data["ReferencedSOPSequence"].is_undefined_length = undefined
    data.PatientID = "X"
    return data


UIDS = st.lists(st.lists(st.from_regex(r"1\.[1-9][0-9]{0,8}", fullmatch=True), max_size=4), max_size=4)


@given(UIDS, st.booleans(), st.sampled_from([EXPLICIT, IMPLICIT, BIG]))
def test_what_was_written_is_read(names: list[list[str]], undefined: bool, syntax: str) -> None:
    data = encoded(nested(names, undefined=undefined), syntax)
    item = read_tree(data, syntax, {VALUE}, {OUTER, INNER})
    read = [[inner.text(VALUE) for inner in one.items(INNER)] for one in item.items(OUTER)]
    assert read == names
    # What is not named is passed over.
    assert read_tree(data, syntax, {VALUE}, {INNER}).sequences == {}


@given(UIDS, st.booleans(), st.data())
def test_a_cut_or_changed_data_set_is_an_error_or_a_list(
    names: list[list[str]], undefined: bool, draw: st.DataObject
) -> None:
    data = bytearray(encoded(nested(names, undefined=undefined), EXPLICIT))
    place = draw.draw(st.integers(0, len(data) - 1))
    data[place] = draw.draw(st.integers(0, 255))
    for content in (data, data[:place]):
        try:
            read_tree(content, EXPLICIT, {VALUE}, {OUTER, INNER})
        except BadInstance:
            continue


def test_depth_is_limited() -> None:
    deep = struct.pack("<HHL", 0x0008, 0x1199, 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    with pytest.raises(BadInstance, match="nested deeper"):
        read_tree(deep * 5000, IMPLICIT, {VALUE}, {OUTER})


def test_a_step_lists_images_and_others_by_series() -> None:
    data, series = Dataset(), Dataset()
    image, other = Dataset(), Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = "1.2.3", "1.5"
    other.ReferencedSOPClassUID, other.ReferencedSOPInstanceUID = "1.2.4", "1.6"
    series.SeriesInstanceUID = "1.7"
    series.ReferencedImageSequence = Sequence([image])
    series.ReferencedNonImageCompositeSOPInstanceSequence = Sequence([other])
    data.PerformedSeriesSequence = Sequence([series])
    (listed,) = listed_in(parse(encoded(data, EXPLICIT), EXPLICIT), NoticeKind.STEP)
    assert (listed.series, [one.sop_instance for one in listed.references]) == ("1.7", ["1.5", "1.6"])
