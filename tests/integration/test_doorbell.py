"""The doorbell rings where a keeper is, and never minds where none is."""

from __future__ import annotations

import select
from pathlib import Path

import pytest

from ctnode.archive import doorbell
from ctnode.archive.doorbell import Doorbell, open_doorbell

pytestmark = pytest.mark.integration


def test_it_rings_below_the_longest_of_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorbell, "RING_S", 0.0)
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


def test_many_arrivals_ring_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr(doorbell.time, "monotonic", lambda: now_s[0])
    bell = Doorbell(tmp_path)
    # Nobody heard the first: it does not count.
    bell.ring()
    with open_doorbell(tmp_path) as keeper:
        for _ in range(50):
            bell.ring()
        now_s[0] += 2 * doorbell.RING_S
        bell.ring()
        assert [keeper.recv(16) for _ in range(2)] == [b"\0", b"\0"]
        with pytest.raises(BlockingIOError):
            keeper.recv(16)
    bell.close()
