"""Damaged sessions against the receive role; ``python -m tests.fuzz_sessions`` runs as many as one likes."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.fuzz_sessions import WARM_UP, Figures, Run

pytestmark = pytest.mark.acceptance

AT_LEAST = 1000
SECONDS = 40.0


def test_no_session_breaks_anything(tmp_path: Path) -> None:
    # Each run is another one; what fails names its seed and session.
    seed = int(os.environ.get("CTNODE_TEST_SEED", random.randrange(1 << 32)))
    run = Run(tmp_path, seed)
    try:
        run.sessions(WARM_UP)
        before = run.figures()
        run.sessions(AT_LEAST, until_s=time.monotonic() + SECONDS)
        after = run.figures()
        run.finish()
    finally:
        run.close()
    assert run.wrong == []
    assert run.counts["acknowledged"] > AT_LEAST / 4
    assert before.growth_to(after) == []


def test_growth_is_seen() -> None:
    before = Figures(threads=2, descriptors=8, resident_mb=100.0)
    assert before.growth_to(Figures(1, 8, 120.0)) == []
    assert before.growth_to(Figures(3, 9, 130.0)) == [
        "threads grew from 2 to 3", "descriptors grew from 8 to 9", "megabytes grew from 100 to 130",
    ]  # fmt: skip
