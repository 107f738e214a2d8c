"""The transition tables, walked pair by pair, and the sentences of the design that they must say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from itertools import product

import pytest

from ctnode import words
from ctnode.words import (
    DELIVERY_TRANSITIONS,
    JOB_TRANSITIONS,
    REVISION_TRANSITIONS,
    STUDY_TRANSITIONS,
    BadInstance,
    ConfigError,
    CtnodeError,
    DeliveryEvent,
    DeliveryState,
    DimseStatus,
    ExitCode,
    Issue,
    JobEvent,
    JobState,
    LungStatus,
    Mismatch,
    RevisionEvent,
    RevisionState,
    Severity,
    StorageError,
    StudyEvent,
    StudyState,
    Unavailable,
    Verdict,
    VolumeReport,
    VolumeStatus,
    WrongState,
    next_state,
)

pytestmark = pytest.mark.unit

Table = Mapping[tuple[StrEnum, StrEnum], StrEnum]
TABLES: list[tuple[Table, type[StrEnum], type[StrEnum], str]] = [
    (REVISION_TRANSITIONS, RevisionState, RevisionEvent, "RECEIVING"),  # type: ignore[list-item]
    (STUDY_TRANSITIONS, StudyState, StudyEvent, "OPEN"),  # type: ignore[list-item]
    (JOB_TRANSITIONS, JobState, JobEvent, "QUEUED"),  # type: ignore[list-item]
    (DELIVERY_TRANSITIONS, DeliveryState, DeliveryEvent, "PENDING"),  # type: ignore[list-item]
]
each_table = pytest.mark.parametrize(("table", "states", "events", "first"), TABLES, ids=lambda value: "")


@each_table
def test_every_pair_is_in_the_table_or_raises(
    table: Table, states: type[StrEnum], events: type[StrEnum], first: str
) -> None:
    for state, event in product(states, events):
        if (state, event) in table:
            assert next_state(table, state, event) is table[state, event]
            assert isinstance(table[state, event], states)
        else:
            with pytest.raises(WrongState, match=state) as wrong:
                next_state(table, state, event)
            assert event.replace("_", " ") in str(wrong.value)


@each_table
def test_every_state_is_reached_and_every_event_is_used(
    table: Table, states: type[StrEnum], events: type[StrEnum], first: str
) -> None:
    reached, before = {states(first)}, set()
    while reached != before:
        before = set(reached)
        reached |= {after for (state, _), after in table.items() if state in reached}
    assert reached == set(states)
    assert {event for _, event in table} == set(events)


@each_table
def test_tables_cannot_be_changed(table: Table, states: type[StrEnum], events: type[StrEnum], first: str) -> None:
    with pytest.raises(TypeError):
        table[next(iter(states)), next(iter(events))] = next(iter(states))  # type: ignore[index]


def ends(table: Table) -> set[str]:
    """Return the states that nothing leads out of."""
    return {str(after) for after in table.values()} - {str(state) for state, _ in table}


def ways(table: Table, before: str) -> set[str]:
    return {str(after) for (state, _), after in table.items() if state == before}


def events_to(table: Table, after: str) -> set[str]:
    return {str(event) for (_, event), reached in table.items() if reached == after}


def test_revisions() -> None:
    """RECEIVING > COMPLETE > QUEUED > PROCESSING > DONE | FAILED | KEPT; requeue: DONE, FAILED, KEPT > QUEUED."""
    assert ways(REVISION_TRANSITIONS, "RECEIVING") == {"COMPLETE"}
    assert ways(REVISION_TRANSITIONS, "COMPLETE") == {"QUEUED", "KEPT", "SUPERSEDED"}
    assert ways(REVISION_TRANSITIONS, "QUEUED") == {"PROCESSING", "KEPT", "SUPERSEDED"}
    assert ways(REVISION_TRANSITIONS, "PROCESSING") == {"DONE", "FAILED", "KEPT", "QUEUED", "SUPERSEDED"}
    requeued = {str(state) for state, event in REVISION_TRANSITIONS if event == RevisionEvent.REQUEUE}
    assert requeued == {"DONE", "FAILED", "KEPT"}
    assert ends(REVISION_TRANSITIONS) == {"SUPERSEDED"}


def test_held_is_a_flag_and_no_state() -> None:
    assert "HELD" not in set(RevisionState)


def test_what_receives_is_never_superseded() -> None:
    """A newer revision opens only when the older one has its verdict."""
    assert (RevisionState.RECEIVING, RevisionEvent.SUPERSEDE) not in REVISION_TRANSITIONS


def test_failed_only_when_the_job_is_dead() -> None:
    assert events_to(REVISION_TRANSITIONS, "FAILED") == {"die"}
    assert events_to(JOB_TRANSITIONS, "DEAD") == {"die"}


def test_jobs() -> None:
    """QUEUED > RUNNING > DONE | RETRY > QUEUED | DEAD | SUPERSEDED | CANCELLED."""
    assert ways(JOB_TRANSITIONS, "QUEUED") == {"RUNNING", "SUPERSEDED", "CANCELLED"}
    assert ways(JOB_TRANSITIONS, "RUNNING") == {"DONE", "RETRY", "DEAD", "QUEUED", "SUPERSEDED", "CANCELLED"}
    assert ways(JOB_TRANSITIONS, "RETRY") == {"QUEUED", "SUPERSEDED", "CANCELLED"}
    assert ways(JOB_TRANSITIONS, "DEAD") == {"QUEUED"}
    assert ends(JOB_TRANSITIONS) == {"SUPERSEDED"}
    assert events_to(JOB_TRANSITIONS, "RUNNING") == {"claim"}


def test_deliveries() -> None:
    """PENDING > SENDING > SENT > CONFIRMED | RETRY > PENDING | DEAD | CANCELLED; a lost lease: SENDING > RETRY.

    What was claimed and not tried goes back: SENDING > PENDING. What failed for too long is given up, tried or not.
    """
    assert ways(DELIVERY_TRANSITIONS, "PENDING") == {"SENDING", "DEAD", "CANCELLED"}
    assert ways(DELIVERY_TRANSITIONS, "SENDING") == {"PENDING", "SENT", "RETRY", "DEAD", "CANCELLED"}
    assert ways(DELIVERY_TRANSITIONS, "SENT") == {"CONFIRMED", "PENDING"}
    assert ways(DELIVERY_TRANSITIONS, "RETRY") == {"PENDING", "DEAD", "CANCELLED"}
    assert ends(DELIVERY_TRANSITIONS) == set()


def test_studies() -> None:
    assert STUDY_TRANSITIONS[StudyState.COMPLETE, StudyEvent.ARRIVE] is StudyState.OPEN


def test_vocabularies_are_those_of_the_contract() -> None:
    assert set(Verdict) == {"COMPLETE", "LIKELY", "SUSPECT"}
    assert set(VolumeStatus) == {"EXACT", "REPAIRED", "REFUSED"}
    assert set(LungStatus) == {"OK", "SUSPECT", "TRUNCATED", "NO_LUNGS", "NOT_RUN"}
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0, "FINDINGS": 1, "USAGE": 2, "UNAVAILABLE": 69, "BAD_CONFIG": 78
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "status", "exit_code"),
    [
        (StorageError, 0xA700, 1), (Mismatch, 0xA900, 1), (BadInstance, 0xC000, 1), (ConfigError, 0x0110, 78),
        (Unavailable, 0x0110, 69), (WrongState, 0x0110, 1),
    ],
)  # fmt: skip
def test_errors_carry_their_answers(error: type[CtnodeError], status: int, exit_code: int) -> None:
    assert error("what").dimse_status == status
    assert error("what").exit_code == exit_code
    assert str(error("what", hint="do this")) == "what (do this)"


def test_every_error_is_one_of_ours_and_described() -> None:
    errors = [value for value in vars(words).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(errors) > 8
    assert all(issubclass(error, CtnodeError) and error.__doc__ for error in errors)
    assert [status for status in DimseStatus if status == 0] == [DimseStatus.SUCCESS]


def test_a_report_is_the_line_of_the_contract() -> None:
    issue = Issue("GAP", Severity.WARNING, "filled", (3, 4))
    line = VolumeReport(
        "1.2", "1.2.3", 1, VolumeStatus.REPAIRED, (issue,), LungStatus.OK, (), "/out", {"decode": 1.0}, 5, ("ct.json",)
    ).as_json()
    assert list(line) == [
        "study", "series", "volume", "status", "issues", "lungs", "reasons", "dir", "seconds", "peak_rss_bytes"
    ]  # fmt: skip
    assert line["issues"] == [{"code": "GAP", "severity": "warning", "frames": [3, 4], "action": "filled"}]
    assert all(re.fullmatch(r"[a-z_]+", key) for key in line)
