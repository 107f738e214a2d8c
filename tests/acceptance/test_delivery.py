"""The deliverer as a real process that dies at any moment: nothing is lost, nothing stands twice at a destination."""

from __future__ import annotations

import os
import random
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.delivery_root import DeliverProcess, Office, office, target
from tests.harness import storescp
from tests.wire_peers import data_set_of, uid

pytestmark = pytest.mark.acceptance


def names(count: int, series: int = 7) -> list[str]:
    return [uid(series, number + 1) for number in range(count)]


def test_a_deliverer_that_is_killed_at_any_moment_loses_nothing_and_repeats_harmlessly(tmp_path: Path) -> None:
    kills = int(os.environ.get("CTNODE_TEST_DELIVERY_KILLS", "20"))
    dice = random.Random(int(os.environ.get("CTNODE_TEST_SEED", "1")))
    shelf = tmp_path / "archive"
    shelf.mkdir()
    with ExitStack() as stack:
        port = stack.enter_context(storescp(shelf, title="THERE"))
        other = tmp_path / "folder"
        other.mkdir()
        targets = [target("pacs", port, associations=2), {"name": "folder", "kind": "folder", "path": str(other)}]
        node = stack.enter_context(office(tmp_path / "office", *targets))
        owed: list[str] = []
        revisions = node.series(4)
        # Between the answer and its row, before and behind the commit, and then wherever the dice say.
        points = ["deliver.before-commit:2", "deliver.after-commit:2"]
        for number in range(kills):
            made = names(60, 100 + number)
            for place, revision in enumerate(revisions):
                node.owe(revision, made[place::4], "pacs", "folder")
            owed += made
            armed = {"CTNODE_TEST_CRASH": points[number]} if number < len(points) else {}
            with DeliverProcess(node, tmp_path, **armed) as process:
                if armed:
                    process.process.wait(60)
                else:
                    before = _arrived(node)
                    process.wait_for(lambda before=before: _arrived(node) > before, "it delivers")  # type: ignore[misc]
                    time.sleep(dice.uniform(0.0, 0.05))
        with DeliverProcess(node, tmp_path) as process:
            process.wait_for(lambda: set(node.states()) == {"SENT"}, "the rest is delivered")
        assert len(node.deliveries()) == 2 * len(owed)
        stored = _stored(shelf)
        assert sorted(stored) == sorted(owed)
        assert {name: data_set_of(path) for name, path in stored.items()} == {
            path.stem: data_set_of(path) for path in node.root.layout.results.glob("*/*.dcm")
        }
        assert sorted(path.stem for path in other.rglob("*.dcm")) == sorted(owed)
        repeated = node.root.database.counters().get("deliveries.repeated", 0)
        print(f"{kills} kills, {len(owed)} objects for each of 2 destinations, {repeated} sent again")
        assert repeated > 0


def _stored(folder: Path) -> dict[str, Path]:
    """Return what storescp has, by SOP Instance UID: it puts an abbreviation of the SOP class before it."""
    return {path.name.partition(".")[2]: path for path in folder.iterdir()}


def _arrived(node: Office) -> int:
    return int(str(node.root.one("SELECT count(*) FROM deliveries WHERE state = 'SENT'")))
