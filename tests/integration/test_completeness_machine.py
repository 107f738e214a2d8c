"""The whole keeper under any order of arrivals, signals, restarts and clock steps: nothing is lost, early or twice.

``CTNODE_TEST_EXAMPLES`` sets how many histories are tried; ``--hypothesis-seed`` repeats a run.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ctnode.archive import jobs, revisions
from ctnode.archive.settle import Scan
from ctnode.flow.completion import PROOF
from ctnode.words import LostLease, WrongState
from tests.archive_root import CT, Image
from tests.simulation import EXPLICIT, STARTED, Clocks, Verdict, World, on_clocks

pytestmark = pytest.mark.integration

QUIET_S = 10.0
SERIES = st.sampled_from(["1.2.3.1", "1.2.3.2"])
SLICES = st.integers(1, 4)
PIXELS = st.sampled_from([*[b"1234"] * 5, b"9876"])
LISTS = st.sets(st.integers(1, 5), min_size=1)
WHO = st.integers(0, 2)
AWAKE = precondition(lambda self: self.world.keeper is not None)


class Killed(Exception):
    """The keeper was killed here."""


class Machine(RuleBasedStateMachine):
    """One node, what it has acknowledged, and what it was told."""

    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        place = Path(tempfile.mkdtemp(prefix="ctnode-completeness-"))
        self.stack.callback(shutil.rmtree, place)
        self.clocks = Clocks()
        self.stack.enter_context(on_clocks(self.clocks))
        # Many a journal is more than one scan takes.
        self.stack.enter_context(mock.patch("ctnode.archive.settle.BATCH", 3))
        self.world = World(place, self.clocks, max_wait_s=120.0)
        self.stack.callback(self.world.close)
        self.journals: dict[int, object] = {}
        self.begun: dict[int, tuple[object, Image]] = {}
        # Which series somebody has brought some of over the association that is open.
        self.brought: dict[int, set[str]] = {}
        self.acknowledged: set[tuple[str, str, bytes]] = set()
        self.last_s: dict[str, float] = {}
        self.steps: dict[str, tuple[str, set[str]]] = {}
        self.lists: list[set[str]] = []
        self.finished: dict[int, int] = {}
        self.requeued: dict[int, int] = {}
        self.is_stepped = False
        self.excused: set[str] = set()
        self.judged = 0
        self.told = 0
        self.late = 0

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self._come_to_rest()
            finally:
                self.stack.close()

    # ---------------------------------------------------------------------------------------------- senders

    def _journal(self, who: int):
        if who not in self.journals:
            self.journals[who] = self.world.open("PACS" if who == 2 else "SENDER")
        return self.journals[who]

    def _acknowledge(self, image: Image) -> None:
        self.acknowledged.add((image.series, image.sop, image.pixels))
        self.last_s[image.series] = self.clocks.passed_s
        self.excused.discard(image.series)
        self.world.stir()

    @rule(
        who=WHO,
        series=SERIES,
        numbers=st.lists(SLICES, min_size=1, max_size=4),
        pixels=st.sampled_from([b"1234"] * 5 + [b"9876"]),
    )
    def slices_come(self, who: int, series: str, numbers: list[int], pixels: bytes) -> None:
        journal = self._journal(who)
        if who in self.begun:
            return
        for number in numbers:
            image = Image(f"{series}.{number}", series=series, position=2.5 * number, pixels=pixels)
            self.world.put(journal, image)
            self._acknowledge(image)
            self.brought.setdefault(who, set()).add(series)

    @rule(series=SERIES, count=SLICES, is_listed=st.booleans(), is_claimed=st.booleans())
    def a_series_comes_and_is_quiet(self, series: str, count: int, is_listed: bool, is_claimed: bool) -> None:
        """Reach what single steps rarely do: something that is complete, with a job that waits or runs."""
        for number in range(1, count + 1):
            self.one_association_a_slice(series, number)
        if is_listed:
            self.a_step_is_performed(series, set(range(1, count)) or {1}, "COMPLETED")
        self.time_passes(1.0)
        self.time_passes(11.0)
        if is_claimed:
            self.a_worker_claims()

    @rule(series=SERIES, is_claimed=st.booleans())
    def a_late_slice_comes_and_is_settled(self, series: str, is_claimed: bool) -> None:
        self.late += 1
        image = Image(f"{series}.9{self.late}", series=series, position=2.5 * (9 + self.late))
        journal = self.world.open()
        self.world.put(journal, image)
        journal.close("released")
        self._acknowledge(image)
        self.time_passes(2.0)
        if is_claimed:
            self.a_worker_claims()
        self.time_passes(61.0)

    @rule(series=SERIES, number=SLICES)
    def one_association_a_slice(self, series: str, number: int) -> None:
        image = Image(f"{series}.{number}", series=series, position=2.5 * number)
        journal = self.world.open()
        self.world.put(journal, image)
        journal.close("released")
        self._acknowledge(image)

    @rule(who=WHO, series=SERIES, number=SLICES)
    def a_store_begins(self, who: int, series: str, number: int) -> None:
        journal = self._journal(who)
        if who in self.begun:
            return
        image = Image(f"{series}.{number}", series=series, position=2.5 * number)
        incoming = journal.receive(transfer_syntax=EXPLICIT, sop_class=CT, sop_instance=image.sop)
        incoming.write(image.encode())
        self.begun[who] = (incoming, image)

    @rule(who=WHO)
    def a_store_ends(self, who: int) -> None:
        if who in self.begun:
            incoming, image = self.begun.pop(who)
            incoming.commit()
            self._acknowledge(image)
            self.brought.setdefault(who, set()).add(image.series)

    @rule(who=WHO, how=st.sampled_from(["released", "released", "aborted", "lost"]))
    def an_association_ends(self, who: int, how: str) -> None:
        if who in self.begun:
            self.begun.pop(who)[0].discard()
        if who in self.journals:
            self.journals.pop(who).close(how)
            self.brought.pop(who, None)
            self.world.stir()

    # ---------------------------------------------------------------------------------------------- signals

    def _uid(self) -> str:
        self.told += 1
        return f"1.9.{self.told}"

    @rule(series=SERIES, numbers=LISTS, status=st.sampled_from(["IN PROGRESS", "COMPLETED", "DISCONTINUED"]))
    def a_step_is_performed(self, series: str, numbers: set[int], status: str) -> None:
        uid = self._uid()
        names = {f"{series}.{number}" for number in numbers}
        self.world.step(uid, status, series, names)
        if status != "IN PROGRESS":
            self.steps[uid] = (series, names)
        self.world.stir()

    @rule(numbers=LISTS, series=st.sets(SERIES, min_size=1), kind=st.sampled_from(["commitment", "availability"]))
    def a_list_comes(self, numbers: set[int], series: set[str], kind: str) -> None:
        if kind == "availability":
            series = {min(series)}
        names = {f"{one}.{number}" for one in series for number in numbers}
        self.lists.append(names)
        if kind == "availability":
            self.world.notify(self._uid(), min(series), names)
        else:
            self.world.ask_commitment(self._uid(), names)
        self.world.stir()

    @rule(numbers=LISTS)
    def the_archive_answers(self, numbers: set[int]) -> None:
        for series in ("1.2.3.1", "1.2.3.2"):
            names = {f"{series}.{number}" for number in numbers}
            if self.world.answer(names):
                # Whichever series was asked about is the archive's affair.
                self.lists.append(names)
                self.lists.append({f"{other}.{number}" for other in ("1.2.3.1", "1.2.3.2") for number in numbers})
                self.world.stir()

    # ------------------------------------------------------------------------------------- clocks and keeper

    @rule(seconds=st.sampled_from([0.3, 2.0, 6.0, 11.0, 25.0, 61.0, 130.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.go(self.clocks.passed_s + seconds)

    @rule(how=st.sampled_from([3600.0, -3600.0, 0.0]))
    def the_clock_is_set(self, how: float) -> None:
        in_1970 = 60.0 - STARTED
        self.clocks.set_by_s = max(in_1970, self.clocks.set_by_s + how) if how else in_1970
        self.is_stepped = True

    @AWAKE
    @rule()
    def the_keeper_is_killed(self) -> None:
        self.world.stop()

    @rule()
    def a_keeper_starts(self) -> None:
        if self.world.keeper is not None:
            self.world.stop()
        if self.is_stepped:
            # It cannot know how long it was away, so nobody can ask it to wait exactly.
            self.excused = set(self.last_s)
        self.world.start()

    @AWAKE
    @rule(point=st.sampled_from(["keeper.between-commit-and-rename", "keeper.after-rename"]))
    def the_keeper_is_killed_between_index_and_store(self, point: str) -> None:
        def die(name: str) -> None:
            if name == point:
                raise Killed

        with mock.patch("ctnode.archive.settle.crash_point", die):
            try:
                self.world.turn()
            except Killed:
                self.a_keeper_starts()

    @AWAKE
    @rule(seconds=st.sampled_from([5.0, 40.0]))
    def the_keeper_hangs(self, seconds: float) -> None:
        self.world.hang(seconds)

    @AWAKE
    @rule(series=SERIES, number=SLICES, earlier_s=st.sampled_from([0.2, 0.4, 3.0]))
    def a_slice_comes_while_the_keeper_scans(self, series: str, number: int, earlier_s: float) -> None:
        """Its deadline passes between the beginning of the scan, which does not see the slice, and the verdict."""
        look_s = self.world.keeper.waiting.next_look_s()
        self.time_passes(max(0.0, min(look_s or 0.0, 200.0) - earlier_s))
        if self.world.keeper.waiting.next_look_s() == 0.0:
            # It hung past a deadline: quiet was proven before the scan begins, and what comes now is late.
            return
        scan, is_slow = self.world.keeper.settler.scan, [True]

        def slow_scan() -> Scan:
            found = scan()
            if is_slow and is_slow.pop():
                self.clocks.passed_s += 0.3
                self.one_association_a_slice(series, number)
                self.clocks.passed_s += 0.3
            return found

        with mock.patch.object(self.world.keeper.settler, "scan", slow_scan):
            self.world.turn()
        self.world.stir()

    @AWAKE
    @rule(number=SLICES, is_full=st.booleans())
    def the_keeper_is_late_for_a_deadline(self, number: int, is_full: bool) -> None:
        """A slice came before it, and the scan after it finds that slice, or first as many others as it takes."""
        row = self.world.others.execute(
            "SELECT uid FROM revisions JOIN series ON series.id = series_id WHERE state = 'RECEIVING'"
            " ORDER BY deadline LIMIT 1"
        ).fetchone()
        if row is None:
            return
        (series,) = row
        look_s = self.world.keeper.waiting.next_look_s()
        self.time_passes(max(0.0, min(look_s or 0.0, 200.0) - 0.5))
        if is_full:
            (other,) = {"1.2.3.1", "1.2.3.2"} - {series}
            for place in (1, 2, 3):
                self.one_association_a_slice(other, place)
        self.one_association_a_slice(series, number)
        self.clocks.passed_s += 1.0
        self.world.turn()
        self.world.stir()

    # --------------------------------------------------------------------------------------------- the jobs

    @rule()
    def a_worker_claims(self) -> None:
        lease = self.world.claim()
        if lease is None:
            return
        revision = self.world.revision(lease)
        (newest,) = self.world.others.execute(
            "SELECT max(n) FROM revisions WHERE series_id = ?", (revision.series_id,)
        ).fetchone()
        assert revision.n == newest, "a job runs on a revision that is not the newest"
        assert revision.verdict, "a job runs on a revision without a verdict"
        (frozen,) = self.world.others.execute("SELECT instances FROM revisions WHERE id = ?", (revision.id,)).fetchone()
        held = self.world.others.execute(
            "SELECT id FROM instances WHERE series_id = ? ORDER BY id", (revision.series_id,)
        ).fetchall()
        assert json.loads(frozen) == [row[0] for row in held], "a job runs on less than the series has"
        before = self.finished.get(lease.revision_id, 0)
        assert before <= self.requeued.get(lease.revision_id, 0), "a finished revision is processed again"

    @rule(how=st.sampled_from(["finishes", "finishes", "fails", "gives back"]))
    def a_worker_ends(self, how: str) -> None:
        if not self.world.leases:
            return
        lease = self.world.leases[0]
        # The keeper looks at the index every second; here it has to be told.
        self.world.stir()
        try:
            if how == "finishes":
                self.world.finish()
                self.finished[lease.revision_id] = self.finished.get(lease.revision_id, 0) + 1
                return
            self.world.leases.pop(0)
            if how == "fails":
                jobs.fail(self.world.others, lease, "fault")
            else:
                jobs.give_back(self.world.others, lease, "stop")
        except LostLease:
            pass

    @rule(series_id=st.integers(1, 2), what=st.sampled_from(["hold", "release", "complete", "requeue"]))
    def the_operator_acts(self, series_id: int, what: str) -> None:
        database = self.world.others
        if database.execute("SELECT 1 FROM series WHERE id = ?", (series_id,)).fetchone() is None:
            return
        with suppress(WrongState):
            if what == "hold":
                revisions.hold(database, series_id, "look first")
            elif what == "release":
                revisions.release(database, series_id)
            elif what == "complete":
                revisions.tell_complete(database, series_id)
            else:
                revision = revisions.requeue(database, series_id)
                self.requeued[revision.id] = self.requeued.get(revision.id, 0) + 1
        self.world.stir()

    # ----------------------------------------------------------------------------------------- what must hold

    @invariant()
    def each_verdict_was_right(self) -> None:
        if not hasattr(self, "world"):
            return
        for verdict in self.world.verdicts[self.judged :]:
            self._judge(verdict)
        self.judged = len(self.world.verdicts)

    def _judge(self, verdict: Verdict) -> None:
        if verdict.rule == "quiet time" and verdict.series not in self.excused:
            # What came for the series since then is another matter.
            silent_s = verdict.at_s - min(self.last_s[verdict.series], verdict.at_s)
            assert silent_s == 0 or silent_s >= QUIET_S - 0.01, f"a verdict after {silent_s:g} s of silence"
        if verdict.rule == "quiet time":
            assert not any(verdict.series in series for series in self.brought.values()), "an open association feeds it"
        assert (verdict.verdict == "COMPLETE") == (verdict.rule == PROOF)
        if verdict.verdict == "COMPLETE":
            named = [names for names in self.lists if any(name.startswith(f"{verdict.series}.") for name in names)]
            named.append(set().union(*(names for series, names in self.steps.values() if series == verdict.series)))
            frozen = self._frozen(verdict)
            everything = {sop for _, sop, _ in self.acknowledged}
            assert any(frozen <= names <= everything for names in named), "COMPLETE without a list that is held whole"

    def _frozen(self, verdict: Verdict) -> set[str]:
        rows = self.world.others.execute(
            "SELECT sop_instance FROM instances WHERE id IN (SELECT value FROM json_each((SELECT r.instances"
            " FROM revisions AS r JOIN series ON series.id = r.series_id WHERE uid = ? AND split = ? AND n = ?)))",
            (verdict.series, verdict.split, verdict.revision),
        ).fetchall()
        return {row[0] for row in rows}

    @invariant()
    def nothing_is_lost_and_states_agree(self) -> None:
        if hasattr(self, "world"):
            assert self.world.breaches() == []
            for series_id, newest in self.world.others.execute(
                "SELECT series_id, max(n) FROM revisions GROUP BY series_id"
            ).fetchall():
                states = dict(
                    self.world.others.execute(
                        "SELECT n, state FROM revisions WHERE series_id = ?", (series_id,)
                    ).fetchall()
                )
                assert sum(state in {"QUEUED", "PROCESSING"} for state in states.values()) <= 1
                assert {state for n, state in states.items() if n != newest} <= {"SUPERSEDED", "PROCESSING"}

    def _come_to_rest(self) -> None:
        """Let all senders leave and time pass: everything that was acknowledged is in a revision with a verdict."""
        for who in range(3):
            self.an_association_ends(who, "released")
        if self.world.keeper is None:
            self.a_keeper_starts()
        for series_id in (1, 2):
            self.the_operator_acts(series_id, "release")
        self.world.go(self.clocks.passed_s + 50.0)
        self.world.settle()
        for _ in range(30):
            # Also those that were lost long ago: one that is claimed now has to end before its lease does.
            while self.world.leases:
                self.a_worker_ends("finishes")
            self.world.go(self.clocks.passed_s + 61.0)
            self.a_worker_claims()
        self.each_verdict_was_right()
        self.nothing_is_lost_and_states_agree()
        rows = self.world.others.execute(
            "SELECT r.series_id, r.n, r.state FROM revisions AS r"
            " WHERE r.verdict = '' OR r.state NOT IN ('DONE', 'FAILED', 'SUPERSEDED')"
        ).fetchall()
        assert rows == [], "something never ended"
        assert self.world.others.execute("SELECT DISTINCT state FROM studies").fetchall() in ([], [("COMPLETE",)])
        assert list(self.world.layout.incoming.iterdir()) == []
        kept = self.world.others.execute(
            "SELECT count(*) FROM instances JOIN revisions AS r ON r.series_id = instances.series_id"
            " AND r.n = (SELECT max(n) FROM revisions WHERE series_id = instances.series_id)"
            " WHERE instances.id IN (SELECT value FROM json_each(r.instances))"
        ).fetchone()[0]
        assert kept == len(self.acknowledged), "what was acknowledged is not in the newest revision"


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=int(os.environ.get("CTNODE_TEST_EXAMPLES", "50")),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
