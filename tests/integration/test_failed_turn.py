"""A turn of the keeper that fails half-way shortens no wait and forgets no word; nor does a race in a scan."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from ctnode.archive import associations, catalog, revisions
from ctnode.archive.rooms import is_begun
from ctnode.config import CompletionRule
from ctnode.flow.waiting import Ripe
from tests.archive_root import SERIES, stack
from tests.simulation import Clocks, World, on_clocks

pytestmark = pytest.mark.integration

LOCKED = sqlite3.OperationalError("database is locked")
ROUTERS = CompletionRule(name="routers", called_ae="CTNODE", association_hold_s=60.0)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    clocks = Clocks()
    with on_clocks(clocks):
        world = World(tmp_path / "node", clocks, [ROUTERS])
        yield world
        world.close()


def fail_once(world: World, module: object, name: str) -> None:
    """Let a turn fail where it calls a function for the first time."""
    assert world.keeper is not None
    with mock.patch.object(module, name, side_effect=LOCKED) as failing:
        world.keeper._turn()
    assert failing.called
    assert world.role.counters.pop("errors")
    world.stir()


def test_the_operators_word_outlives_a_turn_that_failed(world: World) -> None:
    with world.open() as journal:
        world.put(journal, *stack(3))
        world.stir()
        world.go(30)
        revisions.tell_complete(world.others, 1)
        fail_once(world, revisions, "complete")
        world.go(31)
        assert [(one.rule, one.at_s) for one in world.verdicts] == [("the operator's word", 30)]


def test_a_list_outlives_a_turn_that_failed(world: World) -> None:
    with world.open() as journal:
        world.put(journal, *stack(3))
        world.stir()
        world.go(30)
        world.notify("1.2.77", SERIES, [image.sop for image in stack(3)])
        fail_once(world, revisions, "complete")
        world.go(31)
        assert [(one.verdict, one.at_s) for one in world.verdicts] == [("COMPLETE", 30)]


def test_what_a_turn_settled_before_it_failed_starts_the_wait_anew(world: World) -> None:
    first, second = stack(2)
    for image in (first, second):
        with world.open() as journal:
            world.put(journal, image)
        if image is first:
            world.turn()
            world.clocks.passed_s = 8.0
    # The journal of the first goes in the scan that settles the second.
    fail_once(world, associations, "end")
    world.go(17)
    assert world.verdicts == []
    assert world.others.execute("SELECT state FROM studies").fetchall() == [("OPEN",)]
    world.go(19)
    assert [one.instances for one in world.verdicts] == [2]


def test_a_slice_that_ends_while_a_scan_looks_at_it_is_waited_for(world: World) -> None:
    *most, last = stack(4)
    with world.open() as journal:
        world.put(journal, *most)
        world.stir()
        world.go(50)
        incoming = journal.receive(
            transfer_syntax="1.2.840.10008.1.2.1", sop_class=last.sop_class, sop_instance=last.sop
        )
        incoming.write(last.encode())
        world.go(70)

        def look_too_late(directory: Path, name: str) -> bool:
            incoming.commit()
            return is_begun(directory, name)

        with mock.patch("ctnode.archive.settle.is_begun", look_too_late):
            world.clocks.passed_s = 71.0
            world.turn()
        assert world.verdicts == []
        world.stir()
        world.settle()
        assert [(one.revision, one.instances) for one in world.verdicts] == [(1, 4)]


def test_a_series_of_which_nobody_said_anything_is_not_looked_at_for_what_is_said_of_another(world: World) -> None:
    with world.open() as journal:
        for number in range(5):
            series = f"{SERIES}{number}"
            world.put(journal, *stack(3, series=series))
        world.stir()
        world.go(30)
        assert world.keeper is not None
        with mock.patch.object(
            world.keeper.waiting, "_situation", side_effect=world.keeper.waiting._situation
        ) as looked_at:
            world.notify("1.2.77", f"{SERIES}2", [image.sop for image in stack(3, series=f"{SERIES}2")])
            world.stir()
            world.go(31)
        assert len(looked_at.mock_calls) == 1
        assert [one.series for one in world.verdicts] == [f"{SERIES}2"]


def test_the_end_of_an_association_with_many_series_keeps_no_proof_waiting(world: World) -> None:
    *many, other = (f"{SERIES}{number}" for number in range(5))
    order: list[str] = []
    with world.open() as open_journal, world.open() as journal:
        for uid in many:
            world.put(journal, *stack(3, series=uid))
        world.put(open_journal, *stack(3, series=other))
        world.stir()
        world.go(30)
        journal.close("released")
        assert world.keeper is not None
        complete = world.keeper._complete

        def complete_slowly(ripe: Ripe) -> None:
            order.append(catalog.by_id(world.others, ripe.revision.series_id).uid)
            complete(ripe)
            world.clocks.passed_s += 1.0
            if len(order) == 1:
                world.notify("1.2.77", other, [image.sop for image in stack(3, series=other)])

        with mock.patch.object(world.keeper, "_complete", complete_slowly):
            world.turn()
    assert order == [many[0], other, *many[1:]]


def test_a_sender_that_was_cut_off_in_a_pause_by_a_restart_has_the_quiet_time_to_begin_anew(world: World) -> None:
    journal = world.open()
    world.put(journal, *stack(6)[:3])
    world.stir()
    world.go(30)
    journal.close("drained")
    world.stir()
    world.go(31)
    world.stop()
    world.go(33)
    world.start()
    world.go(38)
    with world.open() as journal:
        world.put(journal, *stack(6))
    world.stir()
    world.settle()
    assert [(one.verdict, one.instances) for one in world.verdicts] == [("LIKELY", 6)]
