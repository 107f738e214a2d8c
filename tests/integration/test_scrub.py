"""A bit that fell over in the store is found, and reading keeps to its rate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from ctnode.archive.scrub import Pace, scrub
from ctnode.cli import cli
from tests.archive_root import Root, stack

pytestmark = pytest.mark.integration


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    root = Root(tmp_path / "node")
    root.hold(*stack(4))
    yield root
    root.close()


def faults(root: Root) -> dict[str, str]:
    return {one.path: one.fault for one in scrub(root.database, root.layout, Pace(0)) if one.fault}


def test_what_is_as_it_came_has_no_fault(root: Root) -> None:
    assert len(list(scrub(root.database, root.layout, Pace(0)))) == 4
    assert faults(root) == {}


def test_a_changed_a_cut_and_a_foreign_file_are_found(root: Root) -> None:
    flipped, cut, foreign, _ = sorted(root.layout.store.rglob("*.dcm"))
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-2])
    foreign.write_bytes(b"something else")
    found = faults(root)
    assert set(found) == {f"store/{file.relative_to(root.layout.store)}" for file in (flipped, cut, foreign)}


def test_a_row_whose_file_still_waits_in_the_journal_is_no_fault(root: Root) -> None:
    min(root.layout.store.rglob("*.dcm")).unlink()
    assert faults(root) == {}


def test_the_rate_is_kept(root: Root) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    pace = Pace(100.0, clock=lambda: now, sleep=sleep)
    size = sum(one.bytes for one in scrub(root.database, root.layout, pace))
    assert now == pytest.approx(size / 100.0)


def test_the_command_says_what_differs_and_exits_with_1(root: Root, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'[storage]\nroot = "{root.layout.root}"\n')
    run = CliRunner().invoke
    assert run(cli, ["--config", str(file), "verify"]).exit_code == 0
    damaged = min(root.layout.store.rglob("*.dcm"))
    damaged.write_bytes(damaged.read_bytes()[:-2])
    told = run(cli, ["--config", str(file), "verify", "--json", "--rate", "0"])
    assert told.exit_code == 1
    assert json.loads(told.output)["files"] == 4
    assert len(json.loads(told.output)["faults"]) == 1
