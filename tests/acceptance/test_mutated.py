"""``ctnode process`` over files that are not as they should be; the whole count is ``python -m tests.mutate``."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pydicom
import pytest

from tests.mutate import as_they_are, run

pytestmark = pytest.mark.acceptance

FILES = 200


def seed() -> int:
    return int(os.environ.get("CTNODE_TEST_SEED") or random.randrange(1 << 30))


def test_mutated_files_end_in_results_or_a_refusal():
    number = seed()
    outcome = run(_data(), FILES, number)
    assert not outcome.faults, f"python -m tests.mutate --files {FILES} --seed {number}: {outcome.faults[:5]}"
    assert outcome.files >= FILES
    assert outcome.statuses["REFUSED"]


@pytest.mark.parametrize("name", ["awkward", "chest", "mask", "nolung", "pydicom"])
def test_files_as_they_are(name):
    data = _data()
    place = Path(pydicom.__file__).parent / "data" / "test_files" if name == "pydicom" else data and data / name
    if place is None:
        pytest.skip("no real data; set CTNODE_TEST_DATA")
    outcome = as_they_are(place)
    assert not outcome.faults
    assert outcome.statuses


def _data() -> Path | None:
    place = Path(os.environ.get("CTNODE_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
    return place if place.is_dir() else None
