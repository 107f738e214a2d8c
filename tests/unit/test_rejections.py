"""What is written down of those who were turned away."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctnode.archive import rejections
from ctnode.archive.rejections import INTERVAL_S, KINDS_LIMIT, KINDS_OF_ADDRESS_LIMIT, Rejections

pytestmark = pytest.mark.unit


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def rejected(calling: str = "CT9", address: str = "10.0.0.9") -> dict[str, str]:
    return {"address": address, "calling_ae": calling, "called_ae": "CTNODE", "reason": "not known"}


def test_the_first_is_told_at_once_and_the_others_when_the_minute_is_over(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "rejections.jsonl"
    written = Rejections(path, clock)
    for _ in range(3):
        written.add(rejected())
    written.flush()
    assert [(found.calling_ae, found.count, found.at) for found in rejections.read(path)] == [("CT9", 1, 1000.0)]
    written.add(rejected())
    clock.now += INTERVAL_S
    written.flush()
    assert [found.count for found in rejections.read(path)] == [1, 3]
    written.flush(is_last=True)
    assert len(list(rejections.read(path))) == 2


def test_whoever_varies_titles_is_counted_without_them(tmp_path: Path) -> None:
    path = tmp_path / "rejections.jsonl"
    written = Rejections(path, Clock())
    for number in range(1000):
        written.add(rejected(f"CT{number}"))
    for number in range(1000):
        written.add(rejected("X", f"10.1.{number // 250}.{number % 250}"))
    written.flush(is_last=True)
    found = list(rejections.read(path))
    assert sum(line.count for line in found) == 2000
    assert len({(line.address, line.calling_ae) for line in found}) <= KINDS_LIMIT + 1
    of_one = {line.calling_ae for line in found if line.address == "10.0.0.9"}
    assert len(of_one) == KINDS_OF_ADDRESS_LIMIT + 1


def test_two_files_are_kept_and_a_cut_line_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejections, "LIMIT_BYTES", 300)
    clock, path = Clock(), tmp_path / "rejections.jsonl"
    written = Rejections(path, clock)
    for number in range(50):
        written.add(rejected(f"CT{number}"))
        clock.now += INTERVAL_S
        written.flush()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 1200
    with path.open("a") as file:
        file.write('{"addr')
    assert [found.calling_ae for found in rejections.read(path)][-1] == "CT49"


def test_a_disk_that_does_not_take_it_costs_the_entry_only(tmp_path: Path) -> None:
    written = Rejections(tmp_path / "nowhere" / "rejections.jsonl", Clock())
    written.add(rejected())
    written.flush()
    assert list(rejections.read(tmp_path / "nowhere" / "rejections.jsonl")) == []
