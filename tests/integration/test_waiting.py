"""Waiting on a clock that only runs forward, while the wall clock does what it likes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctnode.archive import revisions
from ctnode.archive.settle import Open
from ctnode.config import Completion
from ctnode.flow.waiting import Ripe, WaitingRoom
from ctnode.words import RevisionState, Verdict
from tests.archive_root import Image, Root, opened, put, stack

pytestmark = pytest.mark.integration

QUIET_S = 5.0
HOUR_S = 3600.0


class Clocks:
    """A monotonic clock, and a wall clock that somebody may set."""

    def __init__(self) -> None:
        self.mono = 1000.0
        self.set_by = 0.0
        self._started = time.time()

    def monotonic(self) -> float:
        return self.mono

    def wall(self) -> float:
        return self._started + self.mono - 1000.0 + self.set_by


class Watch:
    """A root, its waiting room and the clocks that both see."""

    def __init__(self, place: Path) -> None:
        self.root = Root(place, lambda _association, n: QUIET_S * 2 ** (n - 1))
        self.clocks = Clocks()
        self.settings = Completion(quiet_s=QUIET_S, max_wait_s=900.0, association_hold_s=60.0)
        self.room = self.new_room()

    def new_room(self) -> WaitingRoom:
        return WaitingRoom(self.root.database, monotonic=self.clocks.monotonic, wall=self.clocks.wall)

    def restart(self) -> None:
        self.root.restart()
        self.room = self.new_room()
        self.room.restore()

    def turn(self) -> list[Ripe]:
        """Scan once and return what got its verdict, as the keeper does."""
        began = self.clocks.monotonic()
        scan = self.root.settler.scan()
        touched = {placement.series_id for placement in scan.settled}
        self.room.touch(touched)
        if not scan.is_whole:
            return []
        ripe = self.room.ripe(began, touched, scan.open_associations, self.settings)
        for one in ripe:
            with self.root.database.immediate():
                revisions.complete(self.root.database, one.revision, one.decision.verdict, one.decision.evidence)
            self.room.leave(one.revision.id)
        return ripe

    def go(self, seconds: float, *, step: float = 0.5) -> list[Ripe]:
        """Let time pass and turn every half second."""
        ripe = []
        end = self.clocks.mono + seconds
        while self.clocks.mono < end - 1e-9:
            self.clocks.mono += min(step, end - self.clocks.mono)
            ripe += self.turn()
        return ripe


@pytest.fixture
def watch(tmp_path: Path):
    watch = Watch(tmp_path / "node")
    yield watch
    watch.root.close()


def test_quiet_time_passes_and_the_series_is_complete(watch: Watch) -> None:
    watch.root.push(stack(4))
    assert watch.turn() == []
    assert watch.go(4.5) == []
    (ripe,) = watch.go(1.0)
    assert ripe.decision.verdict is Verdict.LIKELY
    assert revisions.newest(watch.root.database, 1).state is RevisionState.COMPLETE
    assert len(watch.room) == 0
    assert watch.room.next_look_s() is None


def test_each_arrival_starts_the_wait_anew(watch: Watch) -> None:
    for image in stack(4):
        watch.root.push([image])
        assert watch.go(4.0) == []
    assert len(watch.go(2.0)) == 1


def test_a_resend_starts_it_anew_as_well(watch: Watch) -> None:
    for _ in range(4):
        watch.root.push(stack(2))
        assert watch.go(4.0) == []
    assert len(watch.go(2.0)) == 1


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
@pytest.mark.parametrize("after_s", [0.0, 2.0, 4.9])
def test_a_step_of_the_wall_clock_changes_nothing(watch: Watch, step_s: float, after_s: float) -> None:
    watch.root.push(stack(4))
    watch.turn()
    watch.go(after_s)
    watch.clocks.set_by += step_s
    assert watch.go(4.9 - after_s) == []
    assert len(watch.go(0.6)) == 1


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
def test_a_step_of_the_wall_clock_neither_frees_nor_chains_what_an_association_holds(
    watch: Watch, step_s: float
) -> None:
    with watch.root.spool.open_association(opened()) as journal:
        put(journal, Image("1.2.3.1.1"))
        watch.turn()
        watch.go(2.0)
        watch.clocks.set_by += step_s
        assert watch.go(56.0) == [], "an association that was silent for less than a minute holds its series"
        assert len(watch.go(4.0)) == 1, "a minute of silence frees it"


def test_an_open_association_holds_until_it_ends(watch: Watch) -> None:
    journal = watch.root.spool.open_association(opened())
    put(journal, Image("1.2.3.1.1"))
    watch.turn()
    assert watch.go(20.0) == []
    journal.close("released")
    assert len(watch.go(1.6)) == 1, "its end is noticed at once, not when the hold would have ended"


def test_an_association_in_the_middle_of_a_store_holds_up_to_the_longest_wait(watch: Watch) -> None:
    with watch.root.spool.open_association(opened()) as journal:
        put(journal, Image("1.2.3.1.1"))
        incoming = journal.receive(transfer_syntax="1.2.840.10008.1.2.1", sop_class="1.2", sop_instance="1.3")
        watch.turn()
        assert watch.go(899.0, step=10.0) == []
        (ripe,) = watch.go(2.0)
        assert ripe.decision.verdict is Verdict.LIKELY
        assert ripe.decision.rule == "longest wait"
        incoming.discard()


def test_an_association_that_went_on_to_other_series_holds_no_longer(watch: Watch) -> None:
    watch.root.push([Image("1.2.3.1.1")])
    watch.turn()
    last = float(str(watch.root.one("SELECT last_arrival FROM association_series")))
    began = watch.clocks.mono

    def ripe(elsewhere_s: float, *, heard: float) -> list[Ripe]:
        watch.clocks.mono = began + elsewhere_s
        busy = Open(1, last + heard, is_storing=True)
        return watch.room.ripe(watch.clocks.mono, set(), (busy,), watch.settings)

    assert ripe(0.0, heard=0.0) == []
    assert ripe(QUIET_S - 0.1, heard=1.0) == []
    # What it brought for others an hour of the wall clock later came no later than it was seen.
    assert len(ripe(QUIET_S + 2.0, heard=HOUR_S)) == 1


def test_an_aborted_association_makes_it_suspect(watch: Watch) -> None:
    journal = watch.root.spool.open_association(opened())
    put(journal, Image("1.2.3.1.1"))
    journal.close("aborted")
    watch.turn()
    (ripe,) = watch.go(6.0)
    assert ripe.decision.verdict is Verdict.SUSPECT


# ------------------------------------------------------------------------------------------------ restarts


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(down_s=st.floats(0, 20), step_s=st.sampled_from([0.0, HOUR_S, -HOUR_S]), before_s=st.floats(0, 4.9))
def test_what_remains_after_a_restart_is_between_nothing_and_all(
    tmp_path_factory: pytest.TempPathFactory, down_s: float, step_s: float, before_s: float
) -> None:
    watch = Watch(tmp_path_factory.mktemp("node"))
    watch.root.push(stack(3))
    watch.turn()
    watch.go(before_s)
    watch.clocks.mono += down_s
    watch.clocks.set_by += step_s
    watch.restart()
    remaining_s = watch.room.next_look_s()
    assert remaining_s is not None
    assert 0 <= remaining_s <= QUIET_S + 1e-6, "but for the rounding of a difference of floats"
    if step_s == 0:
        assert remaining_s == pytest.approx(max(0.0, QUIET_S - before_s - down_s), abs=0.2)
    assert len(watch.go(QUIET_S + 1)) == 1
    watch.root.close()


def test_a_restart_inside_the_wait_changes_nothing(watch: Watch) -> None:
    watch.root.push(stack(4))
    watch.turn()
    for _ in range(8):
        watch.go(0.5)
        watch.restart()
    assert watch.go(0.5) == []
    assert len(watch.go(1.2)) == 1


def test_a_deadline_in_the_far_future_is_brought_back_in_the_index_too(watch: Watch) -> None:
    watch.root.push(stack(4))
    watch.turn()
    watch.clocks.set_by -= HOUR_S
    watch.restart()
    deadline = watch.root.one("SELECT deadline FROM revisions")
    assert float(str(deadline)) == pytest.approx(watch.clocks.wall() + QUIET_S)


def test_what_arrived_while_the_keeper_was_down_is_waited_for(watch: Watch) -> None:
    watch.root.push(stack(2))
    watch.turn()
    watch.clocks.mono += 100.0
    watch.root.push([Image("1.2.3.1.77", position=5.0)])
    watch.restart()
    assert watch.turn() == [], "the scan found something for the series"
    assert watch.go(4.5) == []
    assert len(watch.go(1.0)) == 1


# --------------------------------------------------------------------------------------- the empty journal


def test_no_verdict_from_a_scan_that_began_before_the_deadline(watch: Watch) -> None:
    watch.root.push(stack(2))
    watch.turn()
    began = watch.clocks.mono + QUIET_S - 0.001
    watch.clocks.mono += QUIET_S + 10
    assert watch.room.ripe(began, set(), (), watch.settings) == []
    assert len(watch.room.ripe(watch.clocks.mono, set(), (), watch.settings)) == 1


def test_no_verdict_from_a_scan_that_found_something_for_the_series(watch: Watch) -> None:
    watch.root.push(stack(2))
    watch.turn()
    watch.clocks.mono += QUIET_S + 10
    assert watch.room.ripe(watch.clocks.mono, {1}, (), watch.settings) == []
    assert len(watch.room.ripe(watch.clocks.mono, {2}, (), watch.settings)) == 1


def test_a_full_journal_delays_the_verdict_until_it_is_empty(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctnode.archive.settle.BATCH", 2)
    watch.root.push(stack(2))
    watch.turn()
    watch.clocks.mono += QUIET_S + 1
    watch.root.push(stack(5, series="1.2.3.2"))
    assert watch.turn() == []
    assert watch.turn() == []
    (ripe,) = watch.turn()
    assert ripe.revision.series_id == 1


def test_a_wait_that_began_unseen_is_taken_over(watch: Watch) -> None:
    """A turn that fails half-way has committed rows that nobody was told of."""
    watch.root.push(stack(2))
    watch.root.settler.scan()
    assert len(watch.room) == 0
    watch.room.restore()
    assert len(watch.go(QUIET_S + 1)) == 1


def test_taking_over_does_not_shorten_what_waits_already(watch: Watch) -> None:
    watch.root.push(stack(2))
    watch.turn()
    watch.clocks.set_by += HOUR_S
    watch.room.restore()
    assert watch.go(4.5) == []
    assert len(watch.go(1.0)) == 1


def test_silence_of_an_association_seen_first_is_read_from_the_wall_clock(watch: Watch) -> None:
    watch.root.push(stack(2))
    watch.turn()
    watch.clocks.mono += QUIET_S + 1
    long_ago = Open(1, watch.clocks.wall() - 100.0, is_storing=False)
    assert len(watch.room.ripe(watch.clocks.mono, set(), (long_ago,), watch.settings)) == 1
