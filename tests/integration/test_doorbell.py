"""The doorbell rings where a keeper is, and never minds where none is."""

from __future__ import annotations

import select
from pathlib import Path

import pytest

from ctnode.archive.doorbell import Doorbell, open_doorbell

pytestmark = pytest.mark.integration


def test_it_rings_below_the_longest_of_roots(tmp_path: Path) -> None:
    run = tmp_path / ("d" * 100) / ("e" * 100)
    run.mkdir(parents=True)
    bell = Doorbell(run)
    bell.ring()
    # A keeper that died left its socket behind.
    open_doorbell(run).close()
    bell.ring()
    with open_doorbell(run) as keeper:
        bell.ring()
        assert select.select([keeper], [], [], 10)[0]
        assert keeper.recv(16) == b"\0"
        for _ in range(10_000):
            bell.ring()
    bell.ring()
    bell.close()
