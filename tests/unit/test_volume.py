"""Stored values to HU: bits, padding, rescale, type; with frames made in memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset

from ctnode.ct.encapsulated import codestream_size
from ctnode.ct.repair import shifted
from ctnode.ct.sanity import suspicion
from ctnode.ct.source import attributes
from ctnode.ct.technique import descriptions, technique
from ctnode.ct.values import assumed_padding, connected_to_border, could_be_measured, declared_padding, significant_bits
from ctnode.ct.volume import unit_of
from tests.phantom_series import frame

pytestmark = pytest.mark.unit


@given(st.lists(st.integers(0, 4095), min_size=1, max_size=20), st.integers(0, 15))
def test_dirty_bits_above_an_unsigned_value_are_dropped(values, dirt):
    clean = np.array(values, np.uint16)
    dirty = clean | np.uint16(dirt << 12)
    np.testing.assert_array_equal(significant_bits(dirty, frame(bits_stored=12, high_bit=11)), clean)


@given(st.lists(st.integers(-2048, 2047), min_size=1, max_size=20), st.integers(0, 15))
def test_a_signed_value_is_extended_from_its_own_sign_bit(values, dirt):
    clean = np.array(values, np.int16)
    dirty = ((clean.view(np.uint16) & 0x0FFF) | np.uint16(dirt << 12)).view(np.int16)
    np.testing.assert_array_equal(significant_bits(dirty, frame(bits_stored=12, high_bit=11, signed=True)), clean)


def test_a_value_in_the_upper_bits_is_brought_down():
    raw = (np.array([1, 4095], np.uint16) << 4) | 7
    np.testing.assert_array_equal(significant_bits(raw, frame(bits_stored=12, high_bit=15)), [1, 4095])


@pytest.mark.parametrize("declared", [-2000, 63536])
def test_padding_is_found_whatever_sign_it_was_written_with(declared):
    values = np.array([[-2000, 0], [5, -1999]], np.int16)
    found = declared_padding(values, values, frame(signed=True, padding=declared))
    np.testing.assert_array_equal(found, values == -2000)


def test_padding_outside_of_the_stored_bits_is_compared_with_all_bits():
    raw = np.array([[63536, 0], [5, 2096]], np.uint16)
    settings = frame(bits_stored=12, high_bit=11, padding=63536)
    np.testing.assert_array_equal(declared_padding(raw, significant_bits(raw, settings), settings), raw == 63536)


def test_a_range_of_padding_goes_either_way():
    values = np.array([[0, 1, 2, 3]], np.uint16)
    for ends in ((1, 2), (2, 1)):
        found = declared_padding(values, values, frame(padding=ends[0], padding_limit=ends[1]))
        np.testing.assert_array_equal(found, [[False, True, True, False]])


def test_equal_corners_under_air_are_taken_as_outside():
    values = np.full((4, 4), 100, np.int16)
    values[0, 0] = values[0, -1] = values[-1, 0] = values[-1, -1] = -2000
    assert assumed_padding(values, frame(signed=True)).sum() == 4
    assert assumed_padding(values, frame(signed=True, intercept=1000.0)) is None
    values[0, 0] = -1999
    assert assumed_padding(values, frame(signed=True)) is None


def test_technique_holds_no_identity():
    header = Dataset()
    header.PatientName = "DOE^JANE"
    header.InstitutionName = "Somewhere"
    header.StudyDate = "20200101"
    header.SeriesDescription = "Chest of Jane"
    header.KVP = "120"
    header.ConvolutionKernel = ["B70f", "x" * 100]
    header.SpiralPitchFactor = 0.9
    assert technique(header) == {"KVP": 120, "ConvolutionKernel": ["B70f", "x" * 64], "SpiralPitchFactor": 0.9}
    assert descriptions(header) == {"SeriesDescription": "Chest of Jane"}


def test_technique_has_the_names_and_units_of_dcm2niix():
    header = Dataset()
    header.BodyPartExamined = "CHEST"
    header.ExposureTime = "478"
    header.Exposure = "73"
    header.ImageOrientationPatient = [1, 0, 0, 0, 0.948324, -0.317305]
    header.SeriesNumber = "3"
    assert technique(header) == {
        "BodyPart": "CHEST",
        "ExposureTime": 0.478,
        "XRayExposure": 73,
        "ImageOrientationPatientDICOM": [1, 0, 0, 0, 0.948324, -0.317305],
        "SeriesNumber": 3,
    }


def test_the_size_that_a_codestream_declares():
    siz = b"\xff\x4f\xff\x51\x00\x29\x00\x00" + np.array([512, 300, 0, 0], ">u4").tobytes() + b"\0" * 16 + b"\0\x01"
    assert codestream_size(siz) == (300, 512, 1)
    assert codestream_size(b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc3\x00\x0b\x10\x01\x2c\x02\x00\x01") == (300, 512, 1)
    assert codestream_size(b"\xff\xd8" + b"\0" * 30) is None


def test_padding_that_a_scanner_can_measure_is_only_what_touches_the_border():
    assert could_be_measured(frame(padding=0, intercept=-1024.0))
    assert not could_be_measured(frame(padding=0, intercept=-1025.0))
    assert not could_be_measured(frame(padding=63536, bits_stored=12, high_bit=11))
    assert could_be_measured(frame(padding=0, padding_limit=100, intercept=-1100.0))
    mask = np.zeros((6, 7), bool)
    mask[0, :3] = mask[3:5, 3] = mask[5, 6] = True
    found = connected_to_border(mask)
    assert found.sum() == 4
    assert not found[3:5].any()


@pytest.mark.parametrize(
    ("kind", "rescale_type", "unit"),
    [("VMI", "", "HU"), ("VMI", "HU", "HU"), ("MAT_SPECIFIC", "HU", "US"), ("ELECTRON_DENSITY", "ED", "ED")],
)
def test_maps_of_materials_are_no_hounsfield_units(kind, rescale_type, unit):
    image_type = ("ORIGINAL", "PRIMARY", "AXIAL", kind)
    assert unit_of(frame(image_type=image_type, rescale_type=rescale_type)) == unit


def body(air=-1000, tissue=40, share=0.4):
    values = np.full((8, 40, 40), air, np.int16)
    values[:, : int(40 * share)] = tissue
    noise = np.random.default_rng(5).normal(0, 15, values.shape)
    return (values + noise).astype(np.int16)


@pytest.mark.parametrize("offset", [1000, 1024, -1024, 400, -300])
def test_a_scale_that_cannot_be_hounsfield_units_is_suspected(offset):
    assert "Hounsfield" in suspicion(body() + np.int16(offset), None)


@pytest.mark.parametrize(
    "voxels",
    [
        body(), body(tissue=-90), body(air=-1024, share=0.1), np.zeros((4, 40, 40), np.int16),
        np.linspace(-50, 300, 6400, dtype=np.float32).reshape(4, 40, 40), body(air=-100, tissue=40),
        np.linspace(-2000, 3000, 6400, dtype=np.float32).reshape(4, 40, 40),
    ],
)  # fmt: skip
def test_what_is_in_order_or_shows_nothing_is_not_suspected(voxels):
    assert suspicion(voxels, None) == ""


def test_padding_is_no_evidence():
    voxels = body()
    assert suspicion(np.where(voxels < -500, np.int16(-2000), voxels), voxels < -500) == ""


def group(**values):
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    outer = Dataset()
    outer.PixelValueTransformationSequence = [item]
    return outer


def test_the_groups_of_a_frame_come_before_the_shared_ones_and_those_before_the_data_set():
    whole = Dataset()
    whole.RescaleSlope, whole.RescaleIntercept, whole.RescaleType = "1", "1", "all"
    whole.SharedFunctionalGroupsSequence = [group(RescaleSlope="2", RescaleIntercept="2")]
    whole.PerFrameFunctionalGroupsSequence = [group(RescaleSlope="3"), group(RescaleSlope="4")]
    found = attributes(whole, 1)
    assert (found.get("RescaleSlope"), found.get("RescaleIntercept"), found.get("RescaleType")) == (4, 2, "all")
    assert found.get("KVP") is None
    assert "RescaleType" in found
    assert "KVP" not in found
    assert attributes(whole, 7).get("RescaleSlope") == 2


@given(st.floats(0, 5), st.floats(0, 5))
def test_a_shifted_plane_is_the_same_plane_elsewhere(right, down):
    j, i = np.mgrid[:9, :8].astype(np.float32)
    mask = np.zeros((9, 8), bool)
    mask[4, 4] = True
    moved, outside = shifted(10 * i - 7 * j, mask, (right, down), 15, 14)
    rows, columns = np.mgrid[:15, :14]
    truth = 10 * (columns - right) - 7 * (rows - down)
    assert np.abs(moved - truth)[~outside].max() < 2e-3
    # What is inside lies between pixels that are there, none of which is padding.
    inside = (columns >= right - 1e-3) & (columns <= right + 7.001) & (rows >= down - 1e-3) & (rows <= down + 8.001)
    assert not (~outside & ~inside).any()
    hole = (np.abs(columns - right - 4) < 0.999) & (np.abs(rows - down - 4) < 0.999)
    assert outside[hole].all()
    assert (~outside).sum() >= 7 * 8 - 4
