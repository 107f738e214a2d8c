"""``ctnode process`` over files that are not as they should be; the whole count is ``python -m tests.mutate``."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.mutate import run

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


def _data() -> Path | None:
    place = Path(os.environ.get("CTNODE_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
    return place if place.is_dir() else None
