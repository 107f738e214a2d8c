"""The bounded scanner: what pydicom finds it finds, and what is hostile it leaves quickly and quietly."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from io import BytesIO

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, Sequence
from pydicom.dataelem import DataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.tag import Tag

from ctnode.archive import elements
from ctnode.archive.elements import (
    DEFLATED_LITTLE,
    DEPTH_LIMIT,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    ShortBuffer,
    inflate,
    scan,
)
from ctnode.archive.header import read_meta, read_uids
from ctnode.words import BadInstance
from tests.archive_root import Image, element

pytestmark = pytest.mark.unit

SYNTAXES = (EXPLICIT_LITTLE, IMPLICIT_LITTLE, EXPLICIT_BIG)
WANTED = frozenset({0x00080016, 0x00080018, 0x00080060, 0x0020000D, 0x0020000E, 0x00280010})
ITEM = b"\xfe\xff\x00\xe0"
ITEM_END = b"\xfe\xff\x0d\xe0\0\0\0\0"
SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"
UNDEFINED = b"\xff\xff\xff\xff"


def encode(dataset: Dataset, transfer_syntax: str) -> bytes:
    stream = DicomBytesIO()
    stream.is_little_endian = transfer_syntax != EXPLICIT_BIG
    stream.is_implicit_VR = transfer_syntax == IMPLICIT_LITTLE
    write_dataset(stream, dataset)
    return bytes(stream.getvalue())


VALUES = st.sampled_from(
    [
        (0x00080016, "UI", "1.2.840.10008.5.1.4.1.1.2"), (0x00080018, "UI", "1.2.3"), (0x00080060, "CS", "CT"),
        (0x00081030, "LO", "text of some length"), (0x00091001, "LO", "private"), (0x00091002, "UT", "x" * 70000),
        (0x00100010, "PN", "A^B"), (0x0020000D, "UI", "1.2"), (0x0020000E, "UI", "1.2.4"), (0x00200013, "IS", "7"),
        (0x00280010, "US", 512), (0x00281050, "DS", "40"), (0x00191001, "OB", b"\0\1" * 50),
    ]
)  # fmt: skip


@st.composite
def data_sets(draw: st.DrawFn, depth: int = 3) -> Dataset:
    dataset = Dataset()
    for tag, vr, value in draw(st.lists(VALUES, max_size=8)):
        dataset.add(DataElement(tag, vr, value))
    if depth:
        for tag in draw(st.lists(st.sampled_from([0x00081110, 0x00081140, 0x00091010, 0x00189346]), max_size=2)):
            items = draw(st.lists(data_sets(depth - 1), max_size=3))
            for item in items:
                item.is_undefined_length_sequence_item = draw(st.booleans())
            sequence = DataElement(tag, "SQ", Sequence(items))
            sequence.is_undefined_length = draw(st.booleans())
            dataset.add(sequence)
    return dataset


@settings(deadline=None)
@given(dataset=data_sets(), transfer_syntax=st.sampled_from(SYNTAXES))
def test_it_finds_what_pydicom_finds(dataset: Dataset, transfer_syntax: str) -> None:
    data = encode(dataset, transfer_syntax)
    read = reread(data, transfer_syntax)
    expected = {tag: read.get_item(Tag(tag)).value[:4096] for tag in WANTED if tag in read}
    assert scan(data, transfer_syntax, WANTED) == expected


def reread(data: bytes, transfer_syntax: str) -> Dataset:
    return read_dataset(
        BytesIO(data),
        is_implicit_VR=transfer_syntax == IMPLICIT_LITTLE,
        is_little_endian=transfer_syntax != EXPLICIT_BIG,
    )


@settings(deadline=None)
@given(dataset=data_sets(), transfer_syntax=st.sampled_from(SYNTAXES), cut=st.floats(0, 1))
def test_a_part_is_enough_or_says_that_it_is_not(dataset: Dataset, transfer_syntax: str, cut: float) -> None:
    data = encode(dataset, transfer_syntax)
    part = data[: int(len(data) * cut)]
    whole = scan(data, transfer_syntax, WANTED)
    with suppress(ShortBuffer):
        assert scan(part, transfer_syntax, WANTED, whole=False) == whole
    found = scan(part, transfer_syntax, WANTED, whole=True)
    assert found.items() <= whole.items()


def unknown_of_undefined_length() -> bytes:
    """Return UN of undefined length with an implicit item in it (PS3.5 6.2.2)."""
    inner = struct.pack("<HHL", 0x0008, 0x0018, 4) + b"9.9\0"
    return (
        struct.pack("<HH2sH", 0x0009, 0x1001, b"UN", 0) + UNDEFINED + ITEM + UNDEFINED + inner + ITEM_END + SEQUENCE_END
    )


def test_unknown_of_undefined_length_is_implicit_inside() -> None:
    image = Image("1.2.3.1.7").encode()
    cut = image.index(b"\x10\0\x10\0")
    data = image[:cut] + unknown_of_undefined_length() + image[cut:]
    assert scan(data, EXPLICIT_LITTLE, WANTED) == scan(image, EXPLICIT_LITTLE, WANTED)


def bomb(depth: int, *, explicit: bool = True) -> bytes:
    begin = struct.pack("<HH", 0x0008, 0x1140) + (b"SQ\0\0" if explicit else b"") + UNDEFINED + ITEM + UNDEFINED
    return begin * depth + (ITEM_END + SEQUENCE_END) * depth


@pytest.mark.parametrize("explicit", [True, False])
def test_nesting_ends_at_a_limit(explicit: bool) -> None:
    syntax = EXPLICIT_LITTLE if explicit else IMPLICIT_LITTLE
    assert scan(bomb(DEPTH_LIMIT // 2, explicit=explicit), syntax, WANTED) == {}
    for depth in (DEPTH_LIMIT, 10_000, 100_000):
        with pytest.raises(BadInstance, match="nested deeper"):
            scan(bomb(depth, explicit=explicit), syntax, WANTED)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<HH", 0x0008, 0x1140) + b"SQ\0\0" + UNDEFINED + (ITEM + bytes(4)) * 2_000_000,
        b"".join(struct.pack("<HH2sH", 0x0009 + 2 * (k >> 16), k & 0xFFFF, b"LO", 0) for k in range(1_000_000)),
    ],
    ids=["items", "elements"],
)
def test_millions_of_empty_elements_end_at_a_limit(data: bytes) -> None:
    with pytest.raises(BadInstance, match="more than"):
        scan(data, EXPLICIT_LITTLE, WANTED)


@pytest.mark.parametrize("length", [0xFFFFFFFE, 0x7FFFFFFF, 1 << 20])
@pytest.mark.parametrize("vr", [b"OB", b"UN", b"SQ", b"UT"])
def test_a_lying_length_is_the_end_of_the_data_set(vr: bytes, length: int) -> None:
    image = Image("1.2.3.1.7").encode()
    cut = image.index(b"\x10\0\x10\0")
    data = image[:cut] + struct.pack("<HH2sHL", 0x0009, 0x1001, vr, 0, length) + image[cut:]
    found = scan(data, EXPLICIT_LITTLE, WANTED)
    assert 0x00080018 in found
    assert 0x0020000D not in found
    with pytest.raises(ShortBuffer):
        scan(data, EXPLICIT_LITTLE, WANTED, whole=False)
    with pytest.raises(BadInstance):
        scan(element(8, 0x18, "UI", "1.2") + element(8, 0x16, "UI", "1.2"), EXPLICIT_LITTLE, WANTED)


@pytest.mark.parametrize("delimiter", [ITEM_END, SEQUENCE_END + SEQUENCE_END])
def test_wrong_delimiters_are_no_data_set(delimiter: bytes) -> None:
    head = (
        struct.pack("<HH", 0x0008, 0x1140)
        + b"SQ\0\0"
        + UNDEFINED
        + (b"" if delimiter == ITEM_END else ITEM + UNDEFINED)
    )
    with pytest.raises(BadInstance):
        scan(head + delimiter + bytes(64), EXPLICIT_LITTLE, WANTED)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=400), st.sampled_from(SYNTAXES), st.booleans())
@example(b"\x08\0\x16\0UI\xff\xff", EXPLICIT_LITTLE, True)
@example(b"\x08\0\x40\x11SQ\0\0", EXPLICIT_LITTLE, True)
@example(b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0OB\0\0", EXPLICIT_LITTLE, False)
def test_no_bytes_make_it_fail_otherwise(data: bytes, transfer_syntax: str, whole: bool) -> None:
    try:
        found = scan(data, transfer_syntax, WANTED, whole=whole)
    except BadInstance:
        return
    assert set(found) <= WANTED
    assert all(value in data for value in found.values())


@settings(deadline=None, max_examples=300)
@given(
    dataset=data_sets(),
    transfer_syntax=st.sampled_from(SYNTAXES),
    changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_nor_do_changed_bytes_of_a_sound_data_set(
    dataset: Dataset, transfer_syntax: str, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(encode(dataset, transfer_syntax))
    for place, value in changes if data else ():
        data[place % len(data)] = value
    for whole in (True, False):
        try:
            assert set(scan(bytes(data), transfer_syntax, WANTED, whole=whole)) <= WANTED
        except BadInstance:
            continue


@settings(deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_nor_does_any_file_meta(data: bytes, has_preamble: bool) -> None:
    content = bytes(128) + b"DICM" + data if has_preamble else data
    try:
        meta = read_meta(content)
    except BadInstance:
        return
    assert meta is None or meta.dataset_start <= len(content)


@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from((*SYNTAXES, DEFLATED_LITTLE, "1.2.3", "")))
def test_nor_does_reading_uids(data: bytes, transfer_syntax: str) -> None:
    try:
        read_uids(data, transfer_syntax, whole=True)
    except BadInstance:
        return


def test_values_are_cut_and_inflating_ends() -> None:
    data = element(0x08, 0x16, "UI", "1.2") + element(0x08, 0x60, "OB", bytes(100_000))
    assert len(scan(data, EXPLICIT_LITTLE, WANTED)[0x00080060]) == elements.VALUE_LIMIT_BYTES
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bombed = packer.compress(bytes(200 << 20)) + packer.flush()
    assert len(inflate(bombed)) == elements.INFLATE_LIMIT_BYTES


def test_scanning_stops_at_the_pixels_and_behind_the_last_wanted() -> None:
    data = Image("1.2.3.1.7").encode() + b"whatever follows"
    assert scan(data[: data.index(b"\xe0\x7f") + 8], EXPLICIT_LITTLE, WANTED, whole=False)[0x00280010] == b"\4\0"
