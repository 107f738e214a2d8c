"""Every int16 input against the formula of PS3.3 C.11.2.1.2, written here a second time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from ctnode.ct.window import LUNG, MEDIASTINUM, PRESETS, Window, apply, grey, table, views_of

pytestmark = pytest.mark.unit

INPUTS = np.arange(-32768, 32768).astype(np.int16)


def by_the_standard(x: float, c: float, w: float, function: str) -> float:
    if function == "SIGMOID":
        exponent = -4 * (x - c) / w
        return 0.0 if exponent > 700 else 255 / (1 + math.exp(exponent))
    if function == "LINEAR_EXACT":
        if x <= c - w / 2:
            return 0.0
        return 255.0 if x > c + w / 2 else ((x - c) / w + 0.5) * 255
    if x <= c - 0.5 - (w - 1) / 2:
        return 0.0
    return 255.0 if x > c - 0.5 + (w - 1) / 2 else ((x - (c - 0.5)) / (w - 1) + 0.5) * 255


@pytest.mark.parametrize(
    ("window", "x", "expected"),
    [
        (MEDIASTINUM, 0, 102.26),
        (MEDIASTINUM, 40, 127.82),
        (MEDIASTINUM, 239, 255),
        (Window(40, 400, function="LINEAR_EXACT"), 0, 102.0),
        (Window(40, 400, function="LINEAR_EXACT"), 40, 127.5),
        (LUNG, -600, 127.585),
    ],
)
def test_vectors(window, x, expected):
    assert float(grey(np.array([float(x)]), window)[0]) == pytest.approx(expected, abs=0.005)


def test_a_window_of_the_output_range_changes_nothing():
    inputs = np.arange(256).astype(np.int16)
    np.testing.assert_array_equal(apply(inputs, Window(128, 256)), inputs)


FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@settings(max_examples=25, deadline=None)
@given(st.floats(-2000, 3000), st.floats(1, 5000), st.sampled_from(FUNCTIONS), st.booleans())
def test_the_table_is_the_formula_at_all_inputs(center, width, function, inverted):
    found = apply(INPUTS, Window(center, width, function, inverted))
    shades = [by_the_standard(int(x), center, width, function) for x in INPUTS]
    expected = [math.floor((255.0 - y if inverted else y) + 0.5) for y in shades]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_table_is_the_formula_for_floats(function):
    inputs = np.random.default_rng(1).uniform(-3000, 4000, 500).astype(np.float32)
    expected = [math.floor(by_the_standard(float(x), 40, 400, function) + 0.5) for x in inputs]
    np.testing.assert_array_equal(apply(inputs, Window(40, 400, function)), expected)


def data_set(**values) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def test_a_header_offers_its_windows_in_order():
    dataset = data_set(
        WindowCenter=[-600, "40", 50], WindowWidth=["1500", 400, 0.5],
        WindowCenterWidthExplanation=["LUNG", "MEDIASTINUM", "SENSELESS"],
    )  # fmt: skip
    assert views_of(dataset) == (Window(-600, 1500, name="LUNG"), Window(40, 400, name="MEDIASTINUM"))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_header_names_its_function(function):
    dataset = data_set(WindowCenter=40, WindowWidth=400, VOILUTFunction=function)
    assert views_of(dataset) == (Window(40, 400, function),)


def test_a_function_that_the_standard_does_not_know_is_not_guessed():
    assert views_of(data_set(WindowCenter=40, WindowWidth=400, VOILUTFunction="CUBIC")) == ()


def test_monochrome1_inverts_at_the_end():
    dataset = data_set(WindowCenter=128, WindowWidth=256, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(apply(np.arange(256).astype(np.int16), views_of(dataset)[0]), np.arange(256)[::-1])


def lookup(first, data, bits, count=None, vr="US"):
    item = Dataset()
    item.add_new("LUTDescriptor", vr, [len(data) if count is None else count, first, bits])
    item.add_new("LUTData", "OW" if isinstance(data, bytes) else "US", data)
    item.LUTExplanation = "curve"
    return data_set(VOILUTSequence=[item])


@pytest.mark.parametrize("first", [-1000, 64536])
def test_a_voi_lut_holds_its_ends(first):
    vr = "SS" if first < 0 else "US"
    (view,) = views_of(lookup(first, [0, 100, 255], 8, vr=vr))
    assert apply(np.array([-32768, -1000, -999, -998, 5], np.int16), view).tolist() == [0, 0, 100, 255, 255]
    assert apply(np.array([-999.4], np.float32), view).tolist() == [100]
    assert view.name == "curve"


def test_a_voi_lut_of_more_bits_is_scaled_to_eight():
    (view,) = views_of(lookup(0, [0, 2048, 4095], 12))
    assert apply(np.arange(3).astype(np.int16), view).tolist() == [0, math.floor(2048 / 4095 * 255 + 0.5), 255]


def test_a_voi_lut_in_bytes_of_8_or_16_bits():
    (packed,) = views_of(lookup(0, bytes([1, 2, 3, 4]), 8, count=4))
    assert packed.entries == (1, 2, 3, 4)
    (wide,) = views_of(lookup(0, np.array([1, 2, 300], "<u2").tobytes(), 16, count=3))
    assert wide.entries == (1, 2, 300)


@pytest.mark.parametrize("broken", [lookup(0, [1, 2], 8, count=3), lookup(0, [300], 8), lookup(0, [1], 40)])
def test_a_voi_lut_that_is_not_whole_is_left_out(broken):
    assert views_of(broken) == ()


def test_presets():
    assert PRESETS["lung"] is LUNG
    assert set(PRESETS) == {"lung", "mediastinum", "bone", "brain", "soft tissue"}
    assert all(apply(np.array([-32768, 32767], np.int16), window).tolist() == [0, 255] for window in PRESETS.values())


def test_a_width_of_one_is_a_step():
    np.testing.assert_array_equal(apply(np.array([39, 40], np.int16), Window(40, 1)), [0, 255])


@pytest.mark.parametrize(
    "window",
    [
        Window(0, 0.5),
        Window(0, 0, function="LINEAR_EXACT"),
        Window(0, -1, function="LINEAR_EXACT"),
        Window(0, 0, "SIGMOID"),
    ],
)
def test_widths_that_the_standard_forbids(window):
    with pytest.raises(ValueError, match="width"):
        table(window)


def test_float_values_beyond_int16_are_white():
    assert apply(np.array([64511.0, -2000.0], np.float32), PRESETS["bone"]).tolist() == [255, 0]
