"""What scanners, archives and operators say of a series, from their requests to the verdict and to `why`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ctnode.archive import catalog, evidence, revisions
from ctnode.archive.notices import NoticeKind, journal_fields
from ctnode.archive.spool import Journal
from ctnode.cli import cli
from ctnode.flow.completion import Decision
from ctnode.words import Evidence, EvidenceKind, RevisionState, Verdict, WrongState
from tests.archive_root import SERIES, STUDY, opened, stack
from tests.integration.test_hearing import EXPLICIT, encoded
from tests.integration.test_services import step
from tests.integration.test_waiting import QUIET_S, Watch

pytestmark = pytest.mark.integration

STEP = "1.2.77"
SLICES = tuple(f"{SERIES}.{k}" for k in range(1, 5))


@pytest.fixture
def watch(tmp_path: Path):
    watch = Watch(tmp_path / "node")
    yield watch
    watch.root.close()


def tell(watch: Watch, status: str, *instances: str, series: str = SERIES, modality: str = "", study: str = "") -> None:
    """Create or change a procedure step over an association of its own, as scanners do."""
    data = step(status, (series, list(instances))) if instances else step(status)
    if modality:
        data.Modality = modality
    if study:
        data.StudyInstanceUID = study
    with watch.root.spool.open_association(opened()) as journal:
        _note(journal, data)
    watch.turn()


def _note(journal: Journal, data: object) -> None:
    journal.notice(NoticeKind.STEP, journal_fields(STEP, "N-SET", EXPLICIT, encoded(data)))  # type: ignore[arg-type]


def begin(watch: Watch, modality: str = "CT") -> None:
    tell(watch, "IN PROGRESS", modality=modality, study=STUDY)


def only(ripe: list[object]) -> Decision:
    (one,) = ripe
    return one.decision  # type: ignore[attr-defined,no-any-return]


# ---------------------------------------------------------------------------------------- procedure steps


def test_a_step_in_progress_says_that_more_is_to_come(watch: Watch) -> None:
    begin(watch)
    watch.root.push(stack(3))
    watch.turn()
    assert watch.go(300.0, step=5.0) == []
    assert watch.root.one("SELECT awaits FROM revisions") == "the procedure step of SENDER has not ended"
    watch.root.push(stack(4)[3:])
    watch.turn()
    tell(watch, "COMPLETED", *SLICES)
    watch.go(0.5)
    assert watch.root.rows("SELECT state, verdict FROM revisions") == [("COMPLETE", "COMPLETE")]


def test_a_step_of_another_modality_says_nothing(watch: Watch) -> None:
    begin(watch, "MR")
    watch.root.push(stack(3))
    watch.turn()
    assert only(watch.go(QUIET_S + 1)).verdict is Verdict.LIKELY


def test_the_end_of_a_step_has_the_study_and_modality_of_its_beginning(watch: Watch) -> None:
    begin(watch)
    tell(watch, "DISCONTINUED")
    (row,) = watch.root.rows("SELECT kind, study, series, modality FROM evidence")
    assert row == ("mpps_discontinued", STUDY, "", "CT")


@pytest.mark.parametrize(
    ("words", "named", "verdict", "says"),
    [
        ("lists nothing", (), Verdict.SUSPECT, "was discontinued and lists no instances"),
        ("lists what is here", SLICES[:3], Verdict.COMPLETE, "mpps discontinued from SENDER with 3 instances"),
        ("lists less than is here", SLICES[:2], Verdict.LIKELY, "quiet for 5 s"),
    ],
)
def test_a_step_that_was_broken_off(
    watch: Watch, words: str, named: tuple[str, ...], verdict: Verdict, says: str
) -> None:
    begin(watch)
    watch.root.push(stack(3))
    tell(watch, "DISCONTINUED", *named)
    ripe = watch.go(QUIET_S + 1)
    ((found, reasons),) = watch.root.rows("SELECT verdict, evidence FROM revisions")
    assert found == verdict, words
    assert says in str(reasons)
    assert len(ripe) <= 1


def test_a_step_that_was_broken_off_with_more_than_came_waits_and_is_suspect(watch: Watch) -> None:
    begin(watch)
    watch.root.push(stack(3))
    tell(watch, "DISCONTINUED", *SLICES)
    assert watch.go(880.0, step=10.0) == []
    decision = only(watch.go(40.0, step=1.0))
    assert decision.verdict is Verdict.SUSPECT
    assert "1 instances of its list are absent" in " ".join(decision.evidence)


def test_two_steps_that_made_one_series_are_one_list(watch: Watch) -> None:
    watch.root.push(stack(4))
    watch.turn()
    for name, part in (("1.2.71", SLICES[:2]), ("1.2.72", SLICES[2:])):
        with watch.root.database.immediate():
            one = Evidence(EvidenceKind.MPPS_COMPLETED, 1.0, "CT1", STUDY, SERIES, name, len(part), part)
            evidence.record(watch.root.database, one)
        ripe = watch.turn()
    assert only(ripe).verdict is Verdict.COMPLETE


# ----------------------------------------------------------------------------------------------- evidence


def test_the_same_signal_again_takes_the_place_of_the_first(watch: Watch) -> None:
    for count in (3, 4):
        with watch.root.database.immediate():
            one = Evidence(EvidenceKind.QUERY_RESULT, float(count), "PACS", STUDY, SERIES, count=count)
            evidence.record(watch.root.database, one)
    watch.root.hold(*stack(3))
    (known,) = evidence.of_series(watch.root.database, 1)
    assert (known.count, known.at) == (4, 4.0)
    assert evidence.version(watch.root.database) == 2


def test_what_is_said_of_a_study_or_of_instances_is_said_of_the_series(watch: Watch) -> None:
    watch.root.hold(*stack(3))
    said = [
        Evidence(EvidenceKind.AVAILABILITY_NOTICE, 3.0, "PACS", STUDY, "", "1.2.5"),
        Evidence(EvidenceKind.COMMITMENT_REQUEST, 2.0, "CT1", name="1.2.6", count=1, instances=(f"{SERIES}.2",)),
        Evidence(EvidenceKind.COMMITMENT_REQUEST, 1.0, "CT1", name="1.2.7", count=1, instances=("1.2.999",)),
        Evidence(EvidenceKind.MPPS_COMPLETED, 1.0, "CT1", STUDY, "1.2.3.2", "1.2.8"),
    ]
    for one in said:
        with watch.root.database.immediate():
            evidence.record(watch.root.database, one)
    assert [one.name for one in evidence.of_series(watch.root.database, 1)] == ["1.2.6", "1.2.5"]
    assert evidence.missing(watch.root.database, said[2]) == ("1.2.999",)
    assert evidence.missing(watch.root.database, said[1]) == ()


# ----------------------------------------------------------------------------------------- the operator


def command(watch: Watch, *words: str) -> Result:
    root = watch.root.layout.root
    settings = {"CTNODE_STORAGE__ROOT": str(root)}
    return CliRunner().invoke(cli, ["series", *words], env=settings)


def entries(watch: Watch) -> list[str]:
    return [str(row[0]) for row in watch.root.rows("SELECT kind || ': ' || text FROM timeline ORDER BY id")]


def test_hold_and_release_each_leave_an_entry(watch: Watch) -> None:
    watch.root.hold(*stack(3))
    watch.root.complete()
    assert command(watch, "hold", SERIES, "--reason", "wrong patient").exit_code == 0
    assert revisions.startable(watch.root.database) == ()
    assert "awaited now: the operator, for it is held (wrong patient)" in command(watch, "why", SERIES).output
    assert command(watch, "release", SERIES).exit_code == 0
    assert [one.series_id for one in revisions.startable(watch.root.database)] == [1]
    assert entries(watch)[-4:] == [
        "held: wrong patient", "operator: held by a command",
        "released: no longer held (wrong patient)", "operator: released by a command",
    ]  # fmt: skip
    with pytest.raises(WrongState, match="nothing holds"):
        revisions.release(watch.root.database, 1)


def test_the_operators_word_completes_at_once_and_proves_nothing(watch: Watch) -> None:
    watch.root.push(stack(3))
    watch.turn()
    assert command(watch, "complete", SERIES).exit_code == 0
    decision = only(watch.turn())
    assert (decision.verdict, decision.rule) == (Verdict.LIKELY, "the operator's word")
    assert "told: the operator said that it is complete" in entries(watch)
    with pytest.raises(WrongState, match="has its verdict already"):
        revisions.tell_complete(watch.root.database, 1)


def test_the_operators_word_is_for_one_revision(watch: Watch) -> None:
    watch.root.push(stack(3))
    watch.turn()
    revisions.tell_complete(watch.root.database, 1)
    assert len(watch.turn()) == 1
    watch.root.push(stack(4)[3:])
    watch.turn()
    assert watch.go(QUIET_S) == [], "the second revision waits twice as long"
    assert catalog.by_id(watch.root.database, 1).state is RevisionState.RECEIVING


# -------------------------------------------------------------------------------------------------- why


def test_why_tells_all_that_happened_in_order_and_what_is_awaited(watch: Watch) -> None:
    begin(watch)
    watch.root.push(image for image in stack(5) if image.number != "3")
    watch.turn()
    watch.go(QUIET_S + 2)
    told = command(watch, "why", SERIES).output
    happened = told.partition("what happened\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in happened] == sorted(line.split()[0] for line in happened)
    for words in (
        "mpps in progress (CT) from SENDER",
        "the first of 4 instances",
        "the last of 4 instances",
        "opened by SENDER at 10.0.0.1:4711",
        " released",
        "first instance, from SENDER",
    ):
        assert any(words in line for line in happened), words
    assert "1 instance number(s) missing between 1 and 5: 3" in told
    assert "awaited now: the procedure step of SENDER has not ended" in told
    assert f"study  {STUDY}, OPEN" in told


def test_why_tells_programs_the_same(watch: Watch) -> None:
    watch.root.push(stack(3))
    watch.turn()
    tell(watch, "COMPLETED", *SLICES[:3])
    told = json.loads(command(watch, "why", SERIES, "--json").output)
    assert told["study_state"] == "OPEN"
    assert {event["kind"] for event in told["history"]} >= {"arrival", "association", "signal", "opened"}
    assert told["headers"] == ["instance numbers 1 to 3, 3 different ones", "3 slice positions without a gap"]
    assert all(event["at"].endswith("Z") for event in told["history"])
