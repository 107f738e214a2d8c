"""The lease queue: claim with an attempt number as fencing token, renew, finish; a job and its revision move together.

Two counts are kept apart: a child that failed (three and the job is DEAD) and an attempt cut short by the death of its
worker or node (ten). An attempt that ended because the node drained counts for neither.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ctnode.archive import timeline
from ctnode.archive.database import Database
from ctnode.archive.revisions import get, keep, move
from ctnode.words import (
    JOB_TRANSITIONS,
    JobEvent,
    JobState,
    LostLease,
    NotFound,
    RevisionEvent,
    next_state,
)

# The kind of a job that asks a peer what it holds of a series.
ASK: Final = "ask"
LEASE_S: Final = 60.0
MAX_FAILURES: Final = 3
MAX_INTERRUPTIONS: Final = 10
FIRST_RETRY_S: Final = 5.0
MAX_RETRY_S: Final = 600.0
# So many of the newest are looked at for some that nobody has acknowledged.
UNSEEN_AMONG: Final = 1000

# Only with these very conditions does the planner take the partial index.
_OPEN: Final = "state IN ('QUEUED', 'RUNNING', 'RETRY')"
# Nothing is put off for longer than MAX_RETRY_S: what seems to be was written before somebody set the clock back.
_DUE: Final = f"(due_at <= ?1 OR due_at > ?1 + {MAX_RETRY_S})"
# Questions to peers are the affair of another role and move no revision (see ``archive.asks``).
_WORK: Final = f"{_OPEN} AND kind <> 'ask'"


@dataclass(frozen=True, slots=True)
class Lease:
    """A claimed job; ``attempt`` fences off whoever held it before."""

    job_id: int
    revision_id: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is shown."""

    id: int
    kind: str
    study: str
    series: str
    split: int
    revision: int
    state: JobState
    attempt: int
    failures: int
    interruptions: int
    due_at: float
    started_at: float | None
    ended_at: float | None
    message: str


def retry_after_s(times: int, *, first_s: float = FIRST_RETRY_S, longest_s: float = MAX_RETRY_S) -> float:
    """Return the wait before the next try after ``times`` failures: doubled each time, up to a limit."""
    return float(min(longest_s, first_s * 2.0 ** min(max(0, times - 1), 30)))


def claim(database: Database, owner: str) -> Lease | None:
    """Take the oldest job of the highest priority that is due, and move its revision to PROCESSING."""
    now = time.time()
    if not _anything_due(database, now):
        return None
    with database.immediate():
        _release_lost(database, now)
        database.execute(
            f"UPDATE jobs SET state = 'QUEUED' WHERE {_WORK} AND state = 'RETRY' AND {_DUE}",
            (now,),
        )
        row = database.execute(
            "UPDATE jobs SET state = 'RUNNING', attempt = attempt + 1, owner = ?2, lease_until = ?3, started_at = ?1,"
            f" ended_at = NULL WHERE id = (SELECT id FROM jobs WHERE {_WORK} AND state = 'QUEUED' AND {_DUE}"
            " ORDER BY priority DESC, due_at, id LIMIT 1) RETURNING id, revision_id, attempt",
            (now, owner, now + LEASE_S),
        ).fetchone()
        if row is None:
            return None
        lease = Lease(*row)
        move(database, lease.revision_id, RevisionEvent.CLAIM)
        revision = get(database, lease.revision_id)
        words = f"attempt {lease.attempt} began"
        timeline.note(database, revision.series_id, revision.n, "attempt", words, at=now)
    return lease


def _anything_due(database: Database, now: float) -> bool:
    return (
        database.execute(
            f"SELECT 1 FROM jobs WHERE {_WORK}"
            f" AND CASE state WHEN 'RUNNING' THEN lease_until <= ?1 ELSE {_DUE} END LIMIT 1",
            (now,),
        ).fetchone()
        is not None
    )


def _release_lost(database: Database, now: float) -> None:
    """Give back the jobs whose worker died: their lease has run out."""
    lost = database.execute(
        f"SELECT id, revision_id, attempt, interruptions FROM jobs WHERE {_WORK}"
        " AND state = 'RUNNING' AND lease_until <= ?",
        (now,),
    ).fetchall()
    for job_id, revision_id, attempt, interruptions in lost:
        lease = Lease(job_id, revision_id, attempt)
        count = interruptions + 1
        words = f"attempt {attempt} was cut short by the death of its worker ({count} of {MAX_INTERRUPTIONS})"
        database.execute("UPDATE jobs SET interruptions = ? WHERE id = ?", (count, job_id))
        _end_failed(database, lease, words, dead=count >= MAX_INTERRUPTIONS, wait_s=retry_after_s(count))


def release_interrupted(database: Database, owner: str) -> None:
    """Give back at once what a dead process of this name still holds, instead of waiting for its lease."""
    with database.immediate():
        database.execute(f"UPDATE jobs SET lease_until = 0 WHERE {_WORK} AND state = 'RUNNING' AND owner = ?", (owner,))
        _release_lost(database, time.time())


def renew(database: Database, lease: Lease) -> None:
    """Prolong a lease.

    Raises
    ------
    LostLease
        If another attempt has begun or the job was taken away.
    """
    with database.immediate():
        changed = database.execute(
            "UPDATE jobs SET lease_until = ? WHERE id = ? AND attempt = ? AND state = 'RUNNING'",
            (time.time() + LEASE_S, lease.job_id, lease.attempt),
        )
    if not changed.rowcount:
        raise LostLease(f"job {lease.job_id} is no longer held by attempt {lease.attempt}")


def finish(
    database: Database, lease: Lease, report: Sequence[dict[str, Any]], words: str, publish: Callable[[bool], None]
) -> bool:
    """Publish and finish in one transaction; return whether the revision is still the newest of its series.

    ``publish`` runs after the fence was checked and before the commit, so that a worker that lost its lease publishes
    nothing; it is told whether the revision is the newest.

    Raises
    ------
    LostLease
        If another attempt owns the job.
    """
    with database.immediate():
        _check(database, lease)
        revision = get(database, lease.revision_id)
        is_newest = _is_newest(database, revision.series_id, revision.n)
        publish(is_newest)
        now = time.time()
        _move_job(
            database, lease.job_id, JobEvent.FINISH, "message = '', ended_at = ?, report = ?", now, json.dumps(report)
        )
        move(database, revision.id, RevisionEvent.FINISH if is_newest else RevisionEvent.SUPERSEDE)
        timeline.note(database, revision.series_id, revision.n, "done", words, at=now)
    return is_newest


def fail(database: Database, lease: Lease, message: str) -> JobState:
    """Count a failed child; try again later, or give up after the third."""
    with database.immediate():
        _check(database, lease)
        (failures,) = database.execute("SELECT failures FROM jobs WHERE id = ?", (lease.job_id,)).fetchone()
        count = failures + 1
        database.execute("UPDATE jobs SET failures = ? WHERE id = ?", (count, lease.job_id))
        return _end_failed(
            database,
            lease,
            f"attempt {lease.attempt} failed ({count} of {MAX_FAILURES}): {message}",
            dead=count >= MAX_FAILURES,
            wait_s=retry_after_s(count),
        )


def give_back(database: Database, lease: Lease, reason: str, *, wait_s: float = 0.0) -> None:
    """Give back a job that is not to blame, as when the node stops or the disk is full; the attempt is not counted."""
    with database.immediate():
        _check(database, lease)
        revision = get(database, lease.revision_id)
        now = time.time()
        if _is_newest(database, revision.series_id, revision.n):
            _move_job(database, lease.job_id, JobEvent.DRAIN, "due_at = ?, message = ?", now + wait_s, reason)
            move(database, revision.id, RevisionEvent.RELEASE)
        else:
            _supersede(database, lease, now, reason)
        words = f"attempt {lease.attempt} ended: {reason}"
        timeline.note(database, revision.series_id, revision.n, "attempt", words, at=now)


def cancel(database: Database, job_id: int) -> None:
    """Cancel a job by hand; its series stays stored."""
    with database.immediate():
        row = database.execute("SELECT revision_id, kind FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise NotFound(f"no job {job_id}")
        _move_job(database, job_id, JobEvent.CANCEL, "ended_at = ?, message = 'cancelled by the operator'", time.time())
        if row[1] != ASK:
            keep(database, get(database, row[0]), "cancelled by the operator")


def _end_failed(database: Database, lease: Lease, message: str, *, dead: bool, wait_s: float) -> JobState:
    revision = get(database, lease.revision_id)
    now = time.time()
    if not _is_newest(database, revision.series_id, revision.n):
        state = _supersede(database, lease, now, message)
    elif dead:
        state = _move_job(database, lease.job_id, JobEvent.DIE, "ended_at = ?, message = ?", now, message)
        move(database, revision.id, RevisionEvent.DIE, reason=message)
    else:
        state = _move_job(database, lease.job_id, JobEvent.FAIL, "due_at = ?, message = ?", now + wait_s, message)
        move(database, revision.id, RevisionEvent.RELEASE)
    timeline.note(database, revision.series_id, revision.n, "failed", message, at=now)
    return state


def _supersede(database: Database, lease: Lease, now: float, message: str) -> JobState:
    """End a job that a newer revision of its series has made pointless."""
    move(database, lease.revision_id, RevisionEvent.SUPERSEDE, reason="a newer revision came")
    return _move_job(database, lease.job_id, JobEvent.SUPERSEDE, "ended_at = ?, message = ?", now, message)


def _check(database: Database, lease: Lease) -> None:
    row = database.execute("SELECT attempt, state FROM jobs WHERE id = ?", (lease.job_id,)).fetchone()
    if row is None or row[0] != lease.attempt or row[1] != JobState.RUNNING:
        raise LostLease(f"job {lease.job_id} is no longer held by attempt {lease.attempt}")


def _move_job(database: Database, job_id: int, event: JobEvent, assignments: str, *values: object) -> JobState:
    (state,) = database.execute("SELECT state FROM jobs WHERE id = ?", (job_id,)).fetchone()
    after = next_state(JOB_TRANSITIONS, JobState(state), event)
    database.execute(
        f"UPDATE jobs SET state = ?, owner = '', lease_until = NULL, {assignments} WHERE id = ?",
        (after, *values, job_id),
    )
    return after


def _is_newest(database: Database, series_id: int, n: int) -> bool:
    (newest,) = database.execute("SELECT max(n) FROM revisions WHERE series_id = ?", (series_id,)).fetchone()
    return bool(newest == n)


_SHOWN: Final = (
    "SELECT jobs.id, jobs.kind, studies.uid AS study, series.uid AS series, series.split, revisions.n AS revision,"
    " jobs.state, jobs.attempt, jobs.failures, jobs.interruptions, jobs.due_at, jobs.started_at, jobs.ended_at,"
    " jobs.message FROM jobs JOIN revisions ON revisions.id = jobs.revision_id"
    " JOIN series ON series.id = revisions.series_id JOIN studies ON studies.id = series.study_id"
)


def listing(database: Database, *, state: JobState | None = None, limit: int = 100) -> tuple[Job, ...]:
    """Return jobs, newest first."""
    # With a constant the planner takes the index of dead jobs.
    where = f"WHERE jobs.state = '{JobState(state)}'" if state else ""
    rows = database.rows(f"{_SHOWN} {where} ORDER BY jobs.id DESC LIMIT ?", (limit,))
    return tuple(Job(**{**row, "state": JobState(row["state"])}) for row in rows)


def unseen(database: Database, *, limit: int) -> tuple[Job, ...]:
    """Return DEAD jobs that nobody has acknowledged, the newest first, out of the newest ``UNSEEN_AMONG``."""
    rows = database.rows(
        f"{_SHOWN} WHERE jobs.id IN (SELECT id FROM jobs WHERE state = 'DEAD' ORDER BY id DESC LIMIT {UNSEEN_AMONG})"
        " AND revisions.state <> 'SUPERSEDED'"
        " AND (revisions.acknowledged_at IS NULL OR jobs.ended_at > revisions.acknowledged_at)"
        " ORDER BY jobs.id DESC LIMIT ?",
        (limit,),
    )
    return tuple(Job(**{**row, "state": JobState(row["state"])}) for row in rows)


def pending(database: Database) -> int:
    """Return how many jobs wait or run."""
    counters = database.counters()
    return sum(counters.get(f"jobs.{state}", 0) for state in (JobState.QUEUED, JobState.RUNNING, JobState.RETRY))


def of_series(database: Database, series_id: int) -> tuple[Job, ...]:
    """Return the jobs of a series, oldest first."""
    rows = database.rows(f"{_SHOWN} WHERE series.id = ? ORDER BY jobs.id", (series_id,))
    return tuple(Job(**{**row, "state": JobState(row["state"])}) for row in rows)


def series_of(database: Database, job_id: int) -> int:
    """Return the series of a job."""
    row = database.execute(
        "SELECT revisions.series_id FROM jobs JOIN revisions ON revisions.id = jobs.revision_id WHERE jobs.id = ?",
        (job_id,),
    ).fetchone()
    if row is None:
        raise NotFound(f"no job {job_id}")
    return int(row[0])
