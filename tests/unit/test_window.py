"""Every int16 input against the formula of PS3.3 C.11.2.1.2, written here a second time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctnode.ct.window import LUNG, MEDIASTINUM, PRESETS, Window, apply, grey, table

pytestmark = pytest.mark.unit

INPUTS = np.arange(-32768, 32768).astype(np.int16)


def by_the_standard(x: float, c: float, w: float, exact: bool) -> float:
    if exact:
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
        (Window(40, 400, exact=True), 0, 102.0),
        (Window(40, 400, exact=True), 40, 127.5),
        (LUNG, -600, 127.585),
    ],
)
def test_vectors(window, x, expected):
    assert float(grey(np.array([float(x)]), window)[0]) == pytest.approx(expected, abs=0.005)


def test_a_window_of_the_output_range_changes_nothing():
    inputs = np.arange(256).astype(np.int16)
    np.testing.assert_array_equal(apply(inputs, Window(128, 256)), inputs)


@settings(max_examples=15, deadline=None)
@given(st.integers(-2000, 3000), st.integers(1, 5000), st.booleans())
def test_the_table_is_the_formula_at_all_inputs(center, width, exact):
    found = apply(INPUTS, Window(center, width, exact))
    expected = [math.floor(by_the_standard(int(x), center, width, exact) + 0.5) for x in INPUTS]
    np.testing.assert_array_equal(found, expected)


def test_a_width_of_one_is_a_step():
    np.testing.assert_array_equal(apply(np.array([39, 40], np.int16), Window(40, 1)), [0, 255])


@pytest.mark.parametrize("window", [Window(0, 0.5), Window(0, 0, exact=True), Window(0, -1, exact=True)])
def test_widths_that_the_standard_forbids(window):
    with pytest.raises(ValueError, match="width"):
        table(window)


def test_float_values_beyond_int16_are_white():
    assert apply(np.array([64511.0, -2000.0], np.float32), PRESETS["bone"]).tolist() == [255, 0]
