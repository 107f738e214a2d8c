"""Waiting on a clock that only runs forward, while the wall clock does what it likes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctnode.archive import asks, counts, evidence, revisions
from ctnode.archive.database import Database
from ctnode.archive.settle import Open
from ctnode.cli import cli
from ctnode.config import Completion, CompletionRule, Config
from ctnode.flow.keeper import Keeper
from ctnode.flow.studies import StudyRoom
from ctnode.flow.waiting import Ripe, WaitingRoom, unfed_s
from ctnode.words import Evidence, EvidenceKind, RevisionState, Verdict
from tests.archive_root import Image, Root, opened, put, stack

pytestmark = pytest.mark.integration

QUIET_S = 5.0
HOUR_S = 3600.0
ROUTERS = CompletionRule(name="routers", called_ae="CTNODE", association_hold_s=60.0)


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
        self.settings = Completion(quiet_s=QUIET_S, max_wait_s=900.0)
        self.rules: tuple[CompletionRule, ...] = ()
        self.peers: set[str] = set()
        self.room = self.new_room()
        self.studies = self.new_studies()

    def new_studies(self) -> StudyRoom:
        return StudyRoom(self.root.database, monotonic=self.clocks.monotonic, wall=self.clocks.wall)

    def new_room(self) -> WaitingRoom:
        return WaitingRoom(self.root.database, monotonic=self.clocks.monotonic, wall=self.clocks.wall)

    def restart(self) -> None:
        self.root.restart()
        self.room = self.new_room()
        self.room.restore()
        self.studies = self.new_studies()
        self.studies.restore()

    def turn(self) -> list[Ripe]:
        """Scan once and return what got its verdict, as the keeper does."""
        began = self.clocks.monotonic()
        scan = self.root.settler.scan()
        touched = {placement.series_id for placement in scan.settled}
        new = {placement.series_id for placement in scan.settled if placement.is_new}
        self.room.touch(touched, touched - new)
        self.studies.touch(new)
        if not scan.is_whole:
            return []
        ripe = self.room.ripe(began, scan.open_associations, self.settings, self.rules, self.peers)
        for one in ripe:
            with self.root.database.immediate():
                revisions.complete(
                    self.root.database,
                    one.revision,
                    one.decision.verdict,
                    one.decision.evidence,
                    settles_study=False,
                )
            self.room.leave(one.revision.id)
        self.studies.settle(began, scan.open_associations, self.settings, self.rules)
        return ripe

    def go(self, seconds: float, *, step: float = 0.5) -> list[Ripe]:
        """Let time pass and turn every half second."""
        ripe = []
        end = self.clocks.mono + seconds
        while self.clocks.mono < end - 1e-9:
            self.clocks.mono += min(step, end - self.clocks.mono)
            ripe += self.turn()
        return ripe


@contextmanager
def arrivals_at(watch: Watch) -> Iterator[None]:
    """Let what arrives bear the time of the clock on the wall that the node sees."""
    with mock.patch("ctnode.archive.spool.time", SimpleNamespace(time_ns=lambda: round(watch.clocks.wall() * 1e9))):
        yield


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
@pytest.mark.parametrize("rules", [(), (ROUTERS,)], ids=["without a rule", "with one"])
def test_a_step_of_the_wall_clock_neither_frees_nor_chains_what_an_association_holds(
    watch: Watch, step_s: float, rules: tuple[CompletionRule, ...]
) -> None:
    watch.rules, held_s = rules, 60.0 if rules else 900.0
    with watch.root.spool.open_association(opened()) as journal:
        put(journal, Image("1.2.3.1.1"))
        watch.turn()
        watch.go(2.0)
        watch.clocks.set_by += step_s
        assert watch.go(held_s - 3.0) == []
        assert len(watch.go(2.0)) == 1


def test_an_open_association_holds_until_it_ends_and_the_index_says_so(watch: Watch) -> None:
    journal = watch.root.spool.open_association(opened())
    put(journal, Image("1.2.3.1.1"))
    watch.turn()
    assert watch.go(20.0) == []
    assert watch.root.one("SELECT awaits FROM revisions") == (
        f"an association that is still open feeds it: SENDER to CTNODE (association {journal.directory.name})"
    )
    journal.close("released")
    assert len(watch.turn()) == 1, "its end is noticed at once, not when the hold would have ended"


def test_what_one_of_two_associations_still_holds_waits_for_that_one(watch: Watch) -> None:
    first, second = (watch.root.spool.open_association(opened(title)) for title in ("FIRST", "SECOND"))
    for number, journal in enumerate((first, second), 1):
        put(journal, Image(f"1.2.3.1.{number}", number=str(number), position=float(number)))
    watch.turn()
    assert watch.go(20.0) == []
    assert "FIRST to CTNODE" in str(watch.root.one("SELECT awaits FROM revisions"))
    first.close("released")
    assert watch.turn() == []
    assert "FIRST" not in str(watch.root.one("SELECT awaits FROM revisions"))
    second.close("released")
    assert len(watch.turn()) == 1


def test_what_an_association_holds_is_not_looked_at_until_one_of_them_ends(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that is busy all day holds hundreds of series."""
    journal = watch.root.spool.open_association(opened())
    put(journal, Image("1.2.3.1.1"))
    watch.turn()
    watch.go(QUIET_S + 1)
    looks = []
    monkeypatch.setattr("ctnode.flow.waiting.get", lambda *_: looks.append(_))
    watch.go(600.0, step=1.0)
    assert looks == []
    monkeypatch.undo()
    journal.close("released")
    assert len(watch.turn()) == 1


@pytest.mark.parametrize("series", ["1.2.3.1", "1.2.3.2"])
def test_an_association_in_the_middle_of_a_store_holds_up_to_the_longest_wait(watch: Watch, series: str) -> None:
    """Also with a rule, whatever it is storing: what it began within the hold may be of the series."""
    watch.rules = (ROUTERS,)
    with watch.root.spool.open_association(opened()) as journal:
        put(journal, Image("1.2.3.1.1"))
        if series != "1.2.3.1":
            watch.go(50.0)
            put(journal, Image(f"{series}.1", series=series))
        incoming = journal.receive(transfer_syntax="1.2.840.10008.1.2.1", sop_class="1.2", sop_instance="1.3")
        watch.turn()
        assert watch.go(845.0, step=5.0) == []
        ripe = watch.go(56.0)
        assert {one.decision.verdict for one in ripe} == {Verdict.LIKELY}
        assert {one.decision.rule for one in ripe} == {"longest wait"}
        incoming.discard()


def test_with_a_rule_it_is_free_a_minute_after_its_last_instance_however_busy_the_association_is(watch: Watch) -> None:
    """A router is in the middle of a C-STORE at each look."""
    watch.rules = (ROUTERS,)
    with watch.root.spool.open_association(opened()) as journal, arrivals_at(watch):
        put(journal, Image("1.2.3.1.1"))
        for number in range(61):
            put(journal, Image(f"1.2.3.2.{number}", series="1.2.3.2"))
            incoming = journal.receive(transfer_syntax="1.2.840.10008.1.2.1", sop_class="1.2", sop_instance="1.3")
            ripe = watch.go(1.0)
            incoming.discard()
            assert [one.revision.series_id for one in ripe] == ([1] if number == 60 else []), number


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("rules", [(), (ROUTERS,)], ids=["without a rule", "with one"])
def test_who_sends_another_series_for_long_and_comes_back_is_in_the_middle_of_both(
    watch: Watch, rules: tuple[CompletionRule, ...], *, is_restarted: bool
) -> None:
    watch.rules = rules
    with watch.root.spool.open_association(opened()) as journal:
        put(journal, Image("1.2.3.1.1"))
        for number in range(50):
            put(journal, Image(f"1.2.3.2.{number}", series="1.2.3.2"))
            assert watch.go(1.0) == []
            if is_restarted and number == 25:
                watch.restart()
        put(journal, Image("1.2.3.1.2", number="2", position=2.5))
        watch.turn()
        journal.close("released")
        assert {one.revision.n for one in watch.go(QUIET_S + 1)} == {1}
        assert watch.root.rows("SELECT json_array_length(instances) FROM revisions ORDER BY series_id") == [
            (2,),
            (50,),
        ]


def test_a_restart_does_not_begin_the_hold_anew(watch: Watch) -> None:
    watch.rules = (ROUTERS,)
    with watch.root.spool.open_association(opened()) as journal:
        put(journal, Image("1.2.3.1.1"))
        watch.turn()
        listed(watch, "1.2.3.1", 1)
        put(journal, Image("1.2.3.2.1", series="1.2.3.2"))
        watch.go(50.0)
        watch.restart()
        assert watch.go(9.0) == []
        assert study(watch) == "OPEN"
        assert len(watch.go(3.0)) == 1
        assert study(watch) == "COMPLETE"


@pytest.mark.parametrize(
    ("is_storing", "others_until", "unfed"),
    [
        (False, 0.0, 100.0),
        (False, 99.0, 100.0),
        (True, 0.0, 0.0),
        (True, 30.0, 30.0),
        (True, 99.0, 99.0),
        (True, 3700.0, 100.0),
        (True, -3500.0, 0.0),
    ],
)
def test_what_ends_the_silence_of_a_series(others_until: float, unfed: float, *, is_storing: bool) -> None:
    """The times are of the clock on the wall, which somebody may have set."""
    assert unfed_s(Open(1, 5000.0 + others_until, is_storing), 5000.0, 100.0) == unfed


def test_an_association_that_the_node_ended_for_its_silence_makes_nothing_suspect(watch: Watch) -> None:
    with watch.root.spool.open_association(opened()) as journal:
        put(journal, Image("1.2.3.1.1"))
        journal.close("idle")
    (ripe,) = watch.go(7.0)
    assert ripe.decision.verdict is Verdict.LIKELY
    assert "1 association(s) that fed it were ended by the node for their silence" in ripe.decision.evidence


def test_an_aborted_association_makes_it_suspect(watch: Watch) -> None:
    journal = watch.root.spool.open_association(opened())
    put(journal, Image("1.2.3.1.1"))
    journal.close("aborted")
    watch.turn()
    (ripe,) = watch.go(6.0)
    assert ripe.decision.verdict is Verdict.SUSPECT


# ------------------------------------------------------------------------------------ holes, rules, answers


def test_what_is_missing_by_the_headers_is_waited_for_and_no_longer_once_it_is_there(watch: Watch) -> None:
    *rest, lost = (image for image in stack(6) if image.number != "4"), stack(6)[3]
    watch.root.push(*rest)
    watch.turn()
    assert watch.go(600.0, step=10.0) == []
    awaits = str(watch.root.one("SELECT awaits FROM revisions"))
    assert awaits.startswith("what is missing may still come: 1 gap(s)")
    assert "1 instance number(s) missing between 1 and 6: 4" in awaits
    watch.root.push([lost])
    watch.turn()
    (ripe,) = watch.go(QUIET_S + 1)
    assert (ripe.decision.verdict, ripe.decision.rule) == (Verdict.LIKELY, "quiet time")


def test_nothing_more_is_waited_for_behind_an_import(watch: Watch) -> None:
    broken = [image for image in stack(6) if image.number != "4"]
    with watch.root.spool.open_association(replace(opened(), door="import")) as journal:
        for image in broken:
            put(journal, image)
    watch.turn()
    (ripe,) = watch.go(QUIET_S + 1)
    assert (ripe.decision.verdict, ripe.decision.rule) == (Verdict.SUSPECT, "quiet time")
    watch.root.push(stack(7)[6:])
    watch.turn()
    assert watch.go(60.0, step=1.0) == [], "now somebody sends, too"


def test_what_never_comes_ends_with_the_longest_wait_across_a_restart(watch: Watch) -> None:
    watch.root.push(image for image in stack(6) if image.number != "4")
    watch.turn()
    watch.go(400.0, step=10.0)
    watch.restart()
    assert watch.go(490.0, step=10.0) == []
    (ripe,) = watch.go(20.0, step=1.0)
    assert (ripe.decision.verdict, ripe.decision.rule) == (Verdict.SUSPECT, "longest wait")


def test_a_series_beside_it_brings_the_rest_of_the_acquisition(watch: Watch) -> None:
    stated = ((0x20, 0x12, "IS", "1"), (0x20, 0x1002, "IS", "6"))
    watch.root.push(stack(3, more=stated))
    watch.turn()
    assert watch.go(60.0) == []
    assert "3 of 6 images in acquisition 1" in str(watch.root.one("SELECT awaits FROM revisions"))
    watch.root.push(stack(3, series="1.2.3.2", more=stated))
    ripe = watch.go(2 * QUIET_S + 1)
    assert {one.revision.series_id: one.decision.verdict for one in ripe} == {1: Verdict.LIKELY, 2: Verdict.LIKELY}
    assert "3 of 6 images of acquisition 1, the others in other series" in ripe[0].decision.evidence


def test_a_scanner_whose_counts_are_wrong_is_told_by_a_rule(watch: Watch) -> None:
    watch.rules = (CompletionRule(name="counts-rows", count_images=False),)
    watch.root.push(stack(3, more=((0x20, 0x12, "IS", "1"), (0x20, 0x1002, "IS", "64"))))
    watch.turn()
    (ripe,) = watch.go(QUIET_S + 1)
    assert (ripe.decision.verdict, ripe.policy.rule) == (Verdict.LIKELY, "counts-rows")


def test_all_parts_of_a_cut_image_prove_nothing_of_the_series(watch: Watch) -> None:
    part = [
        ((0x20, 0x9161, "UI", "1.2.8"), (0x20, 0x9162, "US", bytes([k, 0])), (0x20, 0x9163, "US", b"\2\0"))
        for k in (1, 2)
    ]
    watch.root.push([Image("1.2.3.1.1", number="1", position=None, more=part[0])])
    watch.turn()
    assert watch.go(60.0) == []
    watch.root.push([Image("1.2.3.1.2", number="2", position=None, more=part[1])])
    watch.turn()
    assert watch.go(QUIET_S - 0.5) == [], "another image of the series may still come"
    (ripe,) = watch.go(1.0)
    assert ripe.decision.verdict is Verdict.LIKELY
    assert "1 concatenation(s) whole by their total" in ripe.decision.evidence
    assert counts.of_series(watch.root.database, 1).concatenations[0].missing == 0


def test_the_longest_wait_and_the_hold_are_those_of_the_rule(watch: Watch) -> None:
    watch.rules = (
        CompletionRule(name="pet", modality="PT", max_wait_s=1.0),
        CompletionRule(name="ct", modality="CT", association_hold_s=20.0),
    )
    with watch.root.spool.open_association(opened()) as journal:
        put(journal, Image("1.2.3.1.1"))
        watch.turn()
        assert watch.go(19.0) == []
        assert watch.root.one("SELECT policy FROM revisions") == "ct"
        (ripe,) = watch.go(2.0)
    assert ripe.policy.rule == "ct"


def test_a_rule_that_is_new_counts_at_once_for_what_waits(watch: Watch) -> None:
    watch.root.push(image for image in stack(6) if image.number != "4")
    watch.turn()
    watch.go(60.0)
    watch.rules = (CompletionRule(name="short", max_wait_s=30.0),)
    assert watch.turn() == [], "nothing was due"
    watch.room.look_again()
    (ripe,) = watch.turn()
    assert (ripe.decision.rule, ripe.policy.rule) == ("longest wait", "short")


@pytest.fixture
def asked(watch: Watch) -> asks.Ask:
    """Return a question to a peer that is under way about a series that is quiet."""
    watch.root.push(stack(4))
    watch.turn()
    with watch.root.database.immediate():
        watch.root.database.execute("UPDATE associations SET peer = 'pacs'")
        watch.root.database.execute("UPDATE revisions SET last_arrival = last_arrival - 100")
    asks.plan(watch.root.database, {"pacs"})
    assert watch.go(QUIET_S + 10) == [], "a question that is queued is waited for"
    assert watch.root.one("SELECT awaits FROM revisions") == "the answer of pacs to what it holds is awaited"
    ask = asks.claim(watch.root.database, "pacs", "me")
    assert ask is not None
    assert watch.go(10.0) == [], "so is one that is being asked"
    return ask


def test_the_end_of_a_question_ends_its_wait(watch: Watch, asked: asks.Ask) -> None:
    with watch.root.database.immediate():
        asks.done(watch.root.database, asked, "all is here")
    (ripe,) = watch.go(2.0)
    assert ripe.decision.verdict is Verdict.LIKELY


def test_a_peer_that_does_not_answer_is_not_waited_for(watch: Watch, asked: asks.Ask) -> None:
    asks.failed(watch.root.database, asked, "no answer")
    assert len(watch.go(2.0)) == 1


@pytest.mark.usefixtures("asked")
def test_a_question_that_never_ends_is_waited_for_no_longer_than_all_else(watch: Watch) -> None:
    assert watch.go(860.0, step=10.0) == []
    (ripe,) = watch.go(40.0, step=1.0)
    assert ripe.decision.rule == "longest wait"


@pytest.fixture
def answering(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Return what plans and answers a question to the peer that sent the series; false where none is due."""
    monkeypatch.setattr(asks, "time", SimpleNamespace(time=watch.clocks.wall))
    watch.peers = {"pacs"}
    watch.root.push(stack(4))
    watch.turn()
    with watch.root.database.immediate():
        watch.root.database.execute("UPDATE associations SET peer = 'pacs'")
    names = tuple(image.sop for image in stack(4))

    def answer() -> bool:
        asks.plan(watch.root.database, {"pacs"})
        ask = asks.claim(watch.root.database, "pacs", "me")
        if ask is None:
            return False
        with watch.root.database.immediate():
            found = Evidence(EvidenceKind.QUERY_RESULT, watch.clocks.wall(), "pacs", ask.study, ask.series, count=4)
            evidence.record(watch.root.database, replace(found, instances=names))
            asks.done(watch.root.database, ask, "all is here")
        return True

    return answer


def test_an_answer_from_before_the_quiet_time_is_asked_for_again_and_then_proves(
    watch: Watch, answering: Callable[[], bool]
) -> None:
    assert not answering()
    watch.go(3.0)
    assert answering()
    assert not answering(), "once, until it is quiet"
    assert watch.go(3.0) == []
    assert answering()
    (ripe,) = watch.turn()
    assert (ripe.decision.verdict, ripe.decision.rule) == (Verdict.COMPLETE, "a list of the sender is held whole")


@pytest.mark.usefixtures("answering")
def test_a_question_that_nobody_plans_is_not_waited_for(watch: Watch) -> None:
    assert watch.go(QUIET_S + 14.0) == []
    (ripe,) = watch.go(2.0)
    assert ripe.decision.verdict is Verdict.LIKELY


def test_a_peer_that_is_not_asked_is_not_waited_for(watch: Watch, answering: Callable[[], bool]) -> None:
    watch.peers = {"other"}
    assert len(watch.go(QUIET_S + 1.0)) == 1
    assert not answering()


# ------------------------------------------------------------------------------------------------ studies


def study(watch: Watch) -> object:
    return watch.root.one("SELECT state FROM studies")


def listed(watch: Watch, series: str, count: int) -> None:
    """Say as a scanner does that a series has its first instances and no more."""
    names = tuple(f"{series}.{k + 1}" for k in range(count))
    with watch.root.database.immediate():
        evidence.record(
            watch.root.database,
            Evidence(EvidenceKind.MPPS_COMPLETED, watch.clocks.wall(), "CT1", "1.2.3", series, series, count, names),
        )


def test_a_study_is_complete_with_the_last_of_its_series_that_was_quiet(watch: Watch) -> None:
    watch.root.push(stack(3))
    watch.turn()
    watch.go(3.0)
    watch.root.push(stack(3, series="1.2.3.2"))
    watch.go(3.0)
    assert (watch.root.one("SELECT state FROM revisions WHERE series_id = 1"), study(watch)) == ("COMPLETE", "OPEN")
    assert watch.go(2.0) == []
    assert study(watch) == "OPEN"
    assert len(watch.go(1.0)) == 1
    assert (study(watch), len(watch.studies), watch.studies.next_look_s()) == ("COMPLETE", 0, None)


def test_a_proof_completes_its_series_at_once_and_the_study_after_its_quiet_time(watch: Watch) -> None:
    """The next series of the study may not have begun."""
    watch.root.push(stack(3))
    listed(watch, "1.2.3.1", 3)
    assert len(watch.go(1.0)) == 1
    assert study(watch) == "OPEN"
    watch.go(2.0)
    watch.root.push(stack(3, series="1.2.3.2"))
    listed(watch, "1.2.3.2", 3)
    assert len(watch.go(1.0)) == 1
    watch.go(QUIET_S - 1.5)
    assert study(watch) == "OPEN"
    watch.go(1.0)
    assert study(watch) == "COMPLETE"


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
def test_neither_a_step_of_the_clock_nor_a_restart_completes_a_study_or_starves_it(watch: Watch, step_s: float) -> None:
    watch.root.push(stack(3))
    listed(watch, "1.2.3.1", 3)
    watch.go(1.0)
    watch.clocks.set_by += step_s
    watch.go(3.0)
    assert study(watch) == "OPEN"
    watch.clocks.set_by -= step_s
    watch.restart()
    watch.go(0.4)
    assert study(watch) == "OPEN"
    watch.go(1.2)
    assert study(watch) == "COMPLETE"


def test_an_association_that_fed_a_study_holds_it_for_as_long_as_it_is_open(watch: Watch) -> None:
    journal = watch.root.spool.open_association(opened())
    for image in stack(3):
        put(journal, image)
    listed(watch, "1.2.3.1", 3)
    assert len(watch.go(800.0, step=10.0)) == 1
    assert study(watch) == "OPEN"
    journal.close("released")
    watch.go(1.0)
    assert study(watch) == "COMPLETE"


def test_it_holds_the_study_no_longer_than_the_longest_wait(watch: Watch) -> None:
    with watch.root.spool.open_association(opened()) as journal:
        put(journal, Image("1.2.3.1.1"))
        listed(watch, "1.2.3.1", 1)
        watch.turn()
        watch.go(899.0, step=10.0)
        assert study(watch) == "OPEN"
        watch.go(3.0)
        assert study(watch) == "COMPLETE"


def test_a_rule_says_when_an_open_association_holds_a_study_no_longer(watch: Watch) -> None:
    """Another study that it sends meanwhile is no reason to wait, nor is that it stores one more image of that."""
    watch.rules = (ROUTERS,)
    with watch.root.spool.open_association(opened()) as journal, arrivals_at(watch):
        put(journal, Image("1.2.3.1.1"))
        listed(watch, "1.2.3.1", 1)
        for number in range(61):
            put(journal, Image(f"1.2.4.1.{number}", study="1.2.4", series="1.2.4.1"))
            incoming = journal.receive(transfer_syntax="1.2.840.10008.1.2.1", sop_class="1.2", sop_instance="1.3")
            watch.go(1.0)
            incoming.discard()
            states = watch.root.rows("SELECT state FROM studies ORDER BY id")
            assert states == [("OPEN" if number < 60 else "COMPLETE",), ("OPEN",)], number


def test_a_step_in_progress_holds_its_study_up_to_the_longest_wait(watch: Watch) -> None:
    with watch.root.database.immediate():
        begun = Evidence(EvidenceKind.MPPS_IN_PROGRESS, watch.clocks.wall(), "CT1", "1.2.3", "", "1.9", modality="MR")
        evidence.record(watch.root.database, begun)
    watch.root.push(stack(3))
    watch.turn()
    assert len(watch.go(890.0, step=10.0)) == 1, "it is of another modality than the series"
    assert study(watch) == "OPEN"
    watch.go(20.0, step=1.0)
    assert study(watch) == "COMPLETE"


def test_a_late_instance_opens_the_study_again(watch: Watch) -> None:
    watch.root.push(stack(3))
    watch.turn()
    watch.go(QUIET_S + 1)
    assert study(watch) == "COMPLETE"
    watch.root.push([Image("1.2.3.1.4", position=7.5)])
    watch.turn()
    assert study(watch) == "OPEN"
    watch.go(2 * QUIET_S + 1)
    assert study(watch) == "COMPLETE"


def test_an_identical_resend_leaves_a_study_as_it_is(watch: Watch) -> None:
    """Nobody would complete it again: no series of it waits."""
    watch.root.push(stack(3))
    watch.turn()
    watch.go(QUIET_S + 1)
    watch.root.push(stack(3))
    watch.turn()
    assert (study(watch), len(watch.studies)) == ("COMPLETE", 0)


def test_a_new_series_opens_its_study_and_a_resend_of_another_with_it_is_no_matter(watch: Watch) -> None:
    watch.root.push(stack(3))
    watch.turn()
    watch.go(QUIET_S + 1)
    watch.root.push([*stack(3), *stack(2, series="1.2.3.2")])
    watch.turn()
    assert study(watch) == "OPEN"
    watch.go(QUIET_S + 1)
    assert study(watch) == "COMPLETE"


# ------------------------------------------------------------------------------------------------ the keeper


class Silent:
    """A role that reports to nobody."""

    def __init__(self) -> None:
        self.reload_wanted = False
        self.counters: dict[str, object] = {}

    def wake(self) -> None:
        """Nobody sleeps."""

    def report(self, **_counters: object) -> None:
        """Nobody reads it."""


def test_what_happens_to_a_suspect_series_is_reloaded(tmp_path: Path) -> None:
    root = Root(tmp_path / "node")
    broken = [image for image in stack(6) if image.number != "4"]
    configs = [
        Config(completion=Completion(quiet_s=0.01, max_wait_s=0.01, suspect="process")),
        Config(completion=Completion(quiet_s=0.01, max_wait_s=0.01, suspect="hold")),
    ]
    role = Silent()
    keeper = Keeper(configs[0], root.layout, root.database, role, lambda: configs[1])  # type: ignore[arg-type]

    def settle(series: str) -> tuple[object, ...]:
        root.push(replace(image, sop=f"{series}.{image.number}", series=series) for image in broken)
        keeper._turn()
        time.sleep(0.05)
        keeper._turn()
        ((verdict, state, hold),) = root.rows(
            "SELECT verdict, state, hold FROM revisions JOIN series ON series.id = series_id WHERE uid = ?", series
        )
        return verdict, state, hold

    assert settle("1.2.3.1") == ("SUSPECT", "QUEUED", "")
    role.reload_wanted = True
    assert settle("1.2.3.2") == ("SUSPECT", "COMPLETE", "its verdict is SUSPECT")
    with Database(root.layout.database) as operator:
        revisions.release(operator, 2)
    keeper._turn()
    assert root.one("SELECT state FROM revisions WHERE series_id = 2") == "QUEUED"
    root.close()


def test_a_shorter_longest_wait_is_reloaded_for_what_waits_already(tmp_path: Path) -> None:
    root = Root(tmp_path / "node")
    long, short = (Config(completion=Completion(quiet_s=0.01, max_wait_s=most)) for most in (500.0, 0.02))
    role = Silent()
    keeper = Keeper(long, root.layout, root.database, role, lambda: short)  # type: ignore[arg-type]
    root.push(image for image in stack(6) if image.number != "4")
    keeper._turn()
    time.sleep(0.05)
    keeper._turn()
    assert root.one("SELECT state FROM revisions") == "RECEIVING"
    role.reload_wanted = True
    keeper._turn()
    assert root.one("SELECT verdict FROM revisions") == "SUSPECT"
    root.close()


def test_the_keeper_waits_by_the_rule_for_sender_and_modality_and_notes_it(tmp_path: Path) -> None:
    root = Root(tmp_path / "node")
    rules = (
        CompletionRule(name="elsewhere", called_ae="OTHER", quiet_s=0.01),
        CompletionRule(name="quick-ct", called_ae="CTNODE", modality="CT", quiet_s=0.01),
    )
    config = Config(completion=Completion(quiet_s=500.0), completion_rules=rules)
    keeper = Keeper(config, root.layout, root.database, Silent(), lambda: config)  # type: ignore[arg-type]
    root.push(stack(3))
    root.push(stack(3, series="1.2.3.2", modality="MR"))
    keeper._turn()
    time.sleep(0.05)
    keeper._turn()
    assert root.rows("SELECT state, quiet_s, policy FROM revisions ORDER BY series_id") == [
        ("QUEUED", 0.01, "quick-ct"),
        ("RECEIVING", 500.0, ""),
    ]
    told = CliRunner().invoke(cli, ["series", "why", "1.2.3.1"], env={"CTNODE_STORAGE__ROOT": str(root.layout.root)})
    assert "by the policy of [[completion_rules]] quick-ct" in told.output
    root.close()


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
    assert watch.room.ripe(began, (), watch.settings) == []
    assert len(watch.room.ripe(watch.clocks.mono, (), watch.settings)) == 1


def test_no_verdict_from_a_scan_that_found_something_for_the_series(watch: Watch) -> None:
    for series in ("1.2.3.1", "1.2.3.2"):
        watch.root.push(stack(2, series=series))
    watch.turn()
    watch.clocks.mono += QUIET_S + 10
    watch.root.push([Image("1.2.3.1.9", position=22.5)])
    (ripe,) = watch.turn()
    assert ripe.revision.series_id == 2


def test_who_repeats_a_slice_without_a_pause_does_not_keep_the_series_from_its_verdict(watch: Watch) -> None:
    """Each scan finds something for it, and nothing new."""
    watch.settings = Completion(quiet_s=QUIET_S, max_wait_s=30.0)
    watch.root.push(stack(2))
    watch.turn()
    ripe = []
    for _ in range(31):
        watch.root.push([Image("1.2.3.1.1")])
        ripe += watch.go(1.0, step=1.0)
    (verdict,) = ripe
    assert verdict.decision.rule == "longest wait"


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
