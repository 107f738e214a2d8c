"""Jobs of kind ``ask``: the question to a peer what it holds of a series; they move no revision and wait for nobody."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from ctnode.archive import timeline
from ctnode.archive.database import Database
from ctnode.archive.jobs import ASK, LEASE_S, retry_after_s
from ctnode.archive.revisions import Revision
from ctnode.words import JOB_TRANSITIONS, JobEvent, JobState, next_state

MAX_FAILURES: Final = 3
_OPEN: Final = "state IN ('QUEUED', 'RUNNING', 'RETRY')"
# One that runs is due again when its lease is over: the thread that held it is gone.
_DUE: Final = f"{_OPEN} AND kind = 'ask' AND (CASE state WHEN 'RUNNING' THEN lease_until ELSE due_at END) <= ?"


@dataclass(frozen=True, slots=True)
class Ask:
    """A claimed question."""

    job_id: int
    revision_id: int
    series_id: int
    revision: int
    study: str
    series: str
    attempt: int
    failures: int
    is_receiving: bool
    quiet_s: float


def plan(database: Database, peers: Collection[str]) -> None:
    """Queue the question for each revision that has been quiet for half its time and was fed by one of the peers.

    A revision that got more since it was asked about is asked about again, and so is one that is quiet now and was
    not: only then does the answer prove something, for the peer may be receiving itself.
    """
    now = time.time()
    if not peers:
        return
    # The first condition is that of the partial index.
    rows = database.execute(
        "SELECT revisions.id, revisions.last_arrival, revisions.quiet_s, jobs.id, jobs.state, jobs.started_at,"
        " (SELECT associations.peer FROM association_series AS fed JOIN associations"
        "  ON associations.id = fed.association_id WHERE fed.series_id = revisions.series_id"
        "  AND associations.peer IN (SELECT value FROM json_each(?)) ORDER BY fed.last_arrival DESC LIMIT 1)"
        " FROM revisions LEFT JOIN jobs ON jobs.revision_id = revisions.id AND jobs.kind = 'ask'"
        " WHERE revisions.state IN ('RECEIVING', 'COMPLETE') AND revisions.state = 'RECEIVING'"
        " AND revisions.last_arrival + revisions.quiet_s / 2 <= ?",
        (json.dumps(sorted(peers)), now),
    ).fetchall()
    due = [
        (revision_id, job_id, state, peer)
        for revision_id, last_arrival, quiet_s, job_id, state, started_at, peer in rows
        if peer is not None and (job_id is None or _is_outdated(state, started_at or 0.0, last_arrival, quiet_s, now))
    ]
    if not due:
        return
    with database.immediate():
        for revision_id, job_id, state, peer in due:
            if job_id is None:
                database.execute(
                    "INSERT INTO jobs (id, kind, revision_id, state, due_at, peer) VALUES (?, ?, ?, ?, ?, ?)"
                    " ON CONFLICT (revision_id, kind) DO NOTHING",
                    (database.fresh_id("jobs"), ASK, revision_id, JobState.QUEUED, now, peer),
                )
            else:
                after = next_state(JOB_TRANSITIONS, JobState(state), JobEvent.REQUEUE)
                database.execute(
                    "UPDATE jobs SET state = ?, failures = 0, due_at = ?, peer = ? WHERE id = ?",
                    (after, now, peer, job_id),
                )


def _is_outdated(state: str, started_at: float, last_arrival: float, quiet_s: float, now: float) -> bool:
    if state not in {JobState.DONE, JobState.DEAD}:
        return False
    quiet_at = last_arrival + quiet_s
    return started_at < last_arrival or (state == JobState.DONE and started_at < quiet_at <= now)


def awaited(database: Database, revision: Revision, sender: str, *, is_fresh: bool) -> str:
    """Return the peer whose answer about a revision is outstanding, or an empty text.

    One that did not answer is asked again later; nothing waits for that.

    Parameters
    ----------
    database, revision
        What is asked about.
    sender
        The peer that sent it last, if it is one that is asked; else empty.
    is_fresh
        Whether the quiet time has only just passed, so that the question to it may not be planned yet.
    """
    row = database.execute(
        "SELECT peer, state, coalesce(started_at, 0) FROM jobs WHERE revision_id = ? AND kind = 'ask'", (revision.id,)
    ).fetchone()
    if row is not None and row[1] in {JobState.QUEUED, JobState.RUNNING}:
        return str(row[0])
    # An answer from before the quiet time proves nothing and is asked for again.
    is_early = row is not None and row[1] == JobState.DONE and row[2] < revision.last_arrival + revision.quiet_s
    return sender if is_fresh and (row is None or is_early) else ""


def peers_due(database: Database) -> tuple[str, ...]:
    """Return the peers for which a question is due."""
    rows = database.execute(
        f"SELECT DISTINCT peer FROM jobs WHERE {_DUE}",
        (time.time(),),
    )
    return tuple(row[0] for row in rows)


def held(database: Database, series_id: int) -> frozenset[str]:
    """Return the SOP Instance UIDs that the index has of a series."""
    rows = database.execute("SELECT sop_instance FROM instances WHERE series_id = ?", (series_id,))
    return frozenset(row[0] for row in rows)


def release_interrupted(database: Database) -> None:
    """Take back what a dead process was asking; the caller is the only one that asks."""
    with database.immediate():
        for (job_id,) in database.execute(f"SELECT id FROM jobs WHERE {_OPEN} AND kind = 'ask' AND state = 'RUNNING'"):
            _move(database, job_id, JobEvent.DRAIN, "due_at = due_at")


def claim(database: Database, peer: str, owner: str) -> Ask | None:
    """Take the oldest question to a peer that is due."""
    now = time.time()
    with database.immediate():
        row = database.execute(
            f"SELECT id, state FROM jobs WHERE {_DUE} AND peer = ? ORDER BY due_at, id LIMIT 1",
            (now, peer),
        ).fetchone()
        if row is None:
            return None
        if row[1] == JobState.RUNNING:
            _move(database, row[0], JobEvent.DRAIN, "due_at = due_at")
        elif row[1] == JobState.RETRY:
            _move(database, row[0], JobEvent.COME_DUE, "due_at = due_at")
        _move(
            database, row[0], JobEvent.CLAIM,
            "attempt = attempt + 1, owner = ?, lease_until = ?, started_at = ?, ended_at = NULL",
            owner, now + LEASE_S, now,
        )  # fmt: skip
    found = database.row(
        "SELECT jobs.id AS job_id, jobs.revision_id, revisions.series_id, revisions.n AS revision,"
        " studies.uid AS study, series.uid AS series, jobs.attempt, jobs.failures,"
        " revisions.state = 'RECEIVING' AS is_receiving, revisions.quiet_s"
        " FROM jobs JOIN revisions ON revisions.id = jobs.revision_id"
        " JOIN series ON series.id = revisions.series_id JOIN studies ON studies.id = series.study_id"
        " WHERE jobs.id = ?",
        (row[0],),
    )
    assert found is not None
    return Ask(**{**found, "is_receiving": bool(found["is_receiving"])})


def done(database: Database, ask: Ask, words: str) -> None:
    """Write down the answer, inside the current transaction."""
    now = time.time()
    if _is_ours(database, ask):
        _move(database, ask.job_id, JobEvent.FINISH, "message = ?, ended_at = ?, lease_until = NULL", words, now)
    timeline.note(database, ask.series_id, ask.revision, "asked", words, at=now)


def later(database: Database, ask: Ask, words: str, *, wait_s: float) -> None:
    """Ask again after a while: the answer was good, and says that more is to come; in a transaction."""
    now = time.time()
    if _is_ours(database, ask):
        _move(database, ask.job_id, JobEvent.FAIL, "message = ?, due_at = ?, lease_until = NULL", words, now + wait_s)
    timeline.note(database, ask.series_id, ask.revision, "asked", words, at=now)


def failed(database: Database, ask: Ask, words: str) -> None:
    """Write down that the peer did not answer; the third time ends it."""
    now, count = time.time(), ask.failures + 1
    event = JobEvent.DIE if count >= MAX_FAILURES else JobEvent.FAIL
    with database.immediate():
        if _is_ours(database, ask):
            _move(
                database, ask.job_id, event, "failures = ?, message = ?, due_at = ?, ended_at = ?, lease_until = NULL",
                count, words, now + retry_after_s(count), now,
            )  # fmt: skip
        timeline.note(database, ask.series_id, ask.revision, "asked", f"attempt {count}: {words}", at=now)


def _is_ours(database: Database, ask: Ask) -> bool:
    row = database.execute("SELECT state, attempt FROM jobs WHERE id = ?", (ask.job_id,)).fetchone()
    return bool(row == (JobState.RUNNING, ask.attempt))


def _move(database: Database, job_id: int, event: JobEvent, assignments: str, *values: object) -> None:
    (state,) = database.execute("SELECT state FROM jobs WHERE id = ?", (job_id,)).fetchone()
    after = next_state(JOB_TRANSITIONS, JobState(state), event)
    database.execute(f"UPDATE jobs SET state = ?, {assignments} WHERE id = ?", (after, *values, job_id))
