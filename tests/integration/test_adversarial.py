"""Series that readers get wrong: exact, repaired and labelled, or refused; never silently wrong."""

from __future__ import annotations

import numpy as np
import pytest

from ctnode.ct.grid import Volume
from ctnode.words import Refusal
from tests.adversarial import CASES, GRADIENT, Expectation
from tests.phantom_series import read, world

pytestmark = pytest.mark.integration

ROUNDING_HU = 1e-3  # float32, and positions written with 16 characters


def worst(volume: Volume, expected: Expectation) -> float:
    truth = world(volume.grid) @ GRADIENT
    counted = np.ones(volume.grid.shape, bool) if volume.padding is None else ~volume.padding
    for point, value in expected.special.items():
        index = np.rint(np.linalg.solve(volume.grid.affine, (*point, 1.0))[:3]).astype(int)[::-1]
        truth[tuple(index)] = value
        assert counted[tuple(index)]
    assert counted.mean() > 0.4
    return float(np.abs(volume.voxels - truth)[counted].max())


@pytest.mark.parametrize("name", CASES)
def test_no_series_is_silently_wrong(tmp_path, name):
    expected = CASES[name](tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    if expected.status == "REFUSED":
        with pytest.raises(Refusal) as caught:
            read(files)
        assert {caught.value.code} == expected.codes
        return
    volume = read(files)
    assert str(volume.status) == expected.status, volume.issues
    assert expected.codes <= {issue.code for issue in volume.issues}
    assert worst(volume, expected) <= expected.worst_hu + ROUNDING_HU
    if expected.shape is not None:
        assert volume.grid.shape == expected.shape
    if expected.affine is not None:
        corners = np.array(np.meshgrid(*[(0, side - 1) for side in reversed(volume.grid.shape)])).reshape(3, -1).T
        off = volume.grid.to_lps_mm(corners) - (corners @ expected.affine[:3, :3].T + expected.affine[:3, 3])
        assert np.abs(off).max() <= 0.01
