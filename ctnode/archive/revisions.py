"""The states of revisions: every move goes through the transition table, in the transaction of its cause."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ctnode.archive import evidence, timeline, tombstones
from ctnode.archive.database import Database
from ctnode.words import (
    DELIVERY_TRANSITIONS,
    JOB_TRANSITIONS,
    REVISION_TRANSITIONS,
    STUDY_TRANSITIONS,
    DeliveryEvent,
    DeliveryState,
    Evidence,
    EvidenceKind,
    JobEvent,
    JobState,
    NotFound,
    RevisionEvent,
    RevisionState,
    StudyEvent,
    StudyState,
    Verdict,
    WrongState,
    next_state,
)

PIPELINE: Final = "pipeline"


@dataclass(frozen=True, slots=True)
class Revision:
    """A revision of a series."""

    id: int
    series_id: int
    n: int
    state: RevisionState
    opened_at: float
    last_arrival: float
    quiet_s: float
    deadline: float
    verdict: str
    verdict_at: float | None
    renewed_at: float
    awaits: str


# The planner takes the partial index only for the very condition it was made with.
_WAITING: Final = "state IN ('RECEIVING', 'COMPLETE')"
_COLUMNS: Final = (
    "id, series_id, n, state, opened_at, last_arrival, quiet_s, deadline, verdict, verdict_at,"
    " coalesce(renewed_at, opened_at) AS renewed_at, awaits"
)


def _record(row: dict[str, object]) -> Revision:
    return Revision(**{**row, "state": RevisionState(str(row["state"]))})  # type: ignore[arg-type]


def get(database: Database, revision_id: int) -> Revision:
    """Return a revision by id."""
    row = database.row(f"SELECT {_COLUMNS} FROM revisions WHERE id = ?", (revision_id,))
    if row is None:
        raise NotFound(f"no revision {revision_id}")
    return _record(row)


def newest(database: Database, series_id: int) -> Revision:
    """Return the newest revision of a series."""
    row = database.row(f"SELECT {_COLUMNS} FROM revisions WHERE series_id = ? ORDER BY n DESC LIMIT 1", (series_id,))
    if row is None:
        raise NotFound(f"no revision of series {series_id}")
    return _record(row)


def receiving(database: Database) -> tuple[Revision, ...]:
    """Return the revisions that wait for a verdict."""
    return tuple(
        _record(row)
        for row in database.rows(f"SELECT {_COLUMNS} FROM revisions WHERE {_WAITING} AND state = 'RECEIVING'")
    )


def startable(database: Database) -> tuple[Revision, ...]:
    """Return the complete revisions that nothing holds and whose series has no other revision queued or running."""
    rows = database.rows(
        f"SELECT {_COLUMNS} FROM revisions AS r WHERE {_WAITING} AND state = 'COMPLETE'"
        " AND (SELECT hold FROM series WHERE series.id = r.series_id) = ''"
        " AND NOT EXISTS (SELECT 1 FROM revisions AS o"
        " WHERE o.series_id = r.series_id AND o.state IN ('QUEUED', 'PROCESSING'))"
    )
    return tuple(_record(row) for row in rows)


def move(database: Database, revision_id: int, event: RevisionEvent, *, reason: str = "") -> RevisionState:
    """Move a revision inside the current transaction and return its new state."""
    row = database.execute("SELECT state FROM revisions WHERE id = ?", (revision_id,)).fetchone()
    if row is None:
        raise NotFound(f"no revision {revision_id}")
    state = next_state(REVISION_TRANSITIONS, RevisionState(row[0]), event)
    database.execute("UPDATE revisions SET state = ?, reason = ? WHERE id = ?", (state, reason, revision_id))
    if state is RevisionState.FAILED:
        _show_again(database, revision_id)
    return state


def acknowledge(database: Database, series_id: int) -> Revision:
    """Note that somebody has seen what is wrong with the newest revision of a series.

    Raises
    ------
    WrongState
        If it is still receiving, or was acknowledged already.
    """
    with database.immediate():
        revision = newest(database, series_id)
        if revision.state is RevisionState.RECEIVING:
            raise WrongState(f"revision {revision.n} is still receiving: there is nothing to acknowledge yet")
        changed = database.execute(
            "UPDATE revisions SET acknowledged_at = ? WHERE id = ? AND acknowledged_at IS NULL",
            (time.time(), revision.id),
        )
        if not changed.rowcount:
            raise WrongState(f"revision {revision.n} was acknowledged already")
        return revision


def _show_again(database: Database, revision_id: int) -> None:
    """Take back that a revision was acknowledged: what comes now is new."""
    database.execute("UPDATE revisions SET acknowledged_at = NULL WHERE id = ?", (revision_id,))


def complete(
    database: Database,
    revision: Revision,
    verdict: Verdict,
    reasons: Sequence[str],
    *,
    rule: str = "",
    otherwise: str = "",
    policy: str = "",
    settles_study: bool = True,
) -> None:
    """Give a revision its verdict and freeze its instances, inside the current transaction.

    Its study is complete with it where no other series waits, unless the study waits for its own quiet time.
    """
    now = time.time()
    ids = [
        row[0]
        for row in database.execute("SELECT id FROM instances WHERE series_id = ? ORDER BY id", (revision.series_id,))
    ]
    database.execute(
        "UPDATE revisions SET state = ?, verdict = ?, verdict_at = ?, evidence = ?, instances = ?,"
        " rule = ?, otherwise = ?, policy = ?, awaits = '' WHERE id = ?",
        (
            next_state(REVISION_TRANSITIONS, revision.state, RevisionEvent.COMPLETE),
            verdict,
            now,
            json.dumps(list(reasons)),
            json.dumps(ids),
            rule,
            otherwise,
            policy,
            revision.id,
        ),
    )
    words = f"{verdict} with {len(ids)} instances: {'; '.join(reasons)}"
    timeline.note(database, revision.series_id, revision.n, "complete", words, at=now)
    (study_id,) = database.execute("SELECT study_id FROM series WHERE id = ?", (revision.series_id,)).fetchone()
    if settles_study and not is_study_receiving(database, study_id):
        settle_study(database, study_id)


def is_study_receiving(database: Database, study_id: int) -> bool:
    """Return whether a series of a study waits for its verdict."""
    row = database.execute(
        "SELECT 1 FROM series JOIN revisions ON revisions.series_id = series.id"
        " WHERE series.study_id = ? AND revisions.state = 'RECEIVING' LIMIT 1",
        (study_id,),
    ).fetchone()
    return row is not None


def settle_study(database: Database, study_id: int) -> None:
    """Complete a study none of whose series waits any more, inside the current transaction."""
    (state,) = database.execute("SELECT state FROM studies WHERE id = ?", (study_id,)).fetchone()
    settled = next_state(STUDY_TRANSITIONS, StudyState(state), StudyEvent.SETTLE)
    database.execute("UPDATE studies SET state = ?, is_routed = 0 WHERE id = ?", (settled, study_id))


def queue(
    database: Database, revision: Revision, event: RevisionEvent = RevisionEvent.QUEUE, *, priority: int = 0
) -> None:
    """Queue the pipeline for a revision: its row and its job change together; a job that is there keeps its rank."""
    move(database, revision.id, event)
    row = database.execute(
        "SELECT id, state FROM jobs WHERE kind = ? AND revision_id = ?", (PIPELINE, revision.id)
    ).fetchone()
    now = time.time()
    if row is None:
        database.insert(
            "INSERT INTO jobs (id, kind, revision_id, state, due_at, priority) VALUES (?, ?, ?, ?, ?, ?)",
            (database.fresh_id("jobs"), PIPELINE, revision.id, JobState.QUEUED, now, priority),
        )
    else:
        state = next_state(JOB_TRANSITIONS, JobState(row[1]), JobEvent.REQUEUE)
        database.execute(
            "UPDATE jobs SET state = ?, failures = 0, interruptions = 0, due_at = ?, message = '' WHERE id = ?",
            (state, now, row[0]),
        )
    timeline.note(database, revision.series_id, revision.n, "queued", "the pipeline is queued", at=now)


def keep(database: Database, revision: Revision, reason: str) -> None:
    """Write down that a revision is stored and nothing is to run."""
    move(database, revision.id, RevisionEvent.KEEP, reason=reason)
    timeline.note(database, revision.series_id, revision.n, "kept", reason)


def supersede_older(database: Database, series_id: int, n: int) -> None:
    """Supersede what is older than revision ``n``, with its queued jobs and pending deliveries.

    One that is being processed finishes first and is superseded then.
    """
    older = database.execute(
        "SELECT id, n, state FROM revisions"
        " WHERE series_id = ? AND n < ? AND state NOT IN ('SUPERSEDED', 'PROCESSING')",
        (series_id, n),
    ).fetchall()
    for revision_id, number, state in older:
        if RevisionState(state) is RevisionState.RECEIVING:
            raise WrongState(f"revision {number} is still receiving")
        move(database, revision_id, RevisionEvent.SUPERSEDE, reason=f"revision {n} came")
        _end_work(database, revision_id)
        timeline.note(database, series_id, number, "superseded", f"revision {n} came")


def _end_work(database: Database, revision_id: int) -> None:
    for job_id, state in database.execute(
        "SELECT id, state FROM jobs WHERE revision_id = ? AND state IN ('QUEUED', 'RETRY')", (revision_id,)
    ).fetchall():
        ended = next_state(JOB_TRANSITIONS, JobState(state), JobEvent.SUPERSEDE)
        database.execute("UPDATE jobs SET state = ?, ended_at = ? WHERE id = ?", (ended, time.time(), job_id))
    cancel_deliveries(database, revision_id)


def cancel_deliveries(database: Database, revision_id: int) -> None:
    """Cancel what has not been sent yet of a revision, inside the current transaction."""
    for delivery_id, state in database.execute(
        "SELECT id, state FROM deliveries WHERE revision_id = ? AND state IN ('PENDING', 'RETRY')", (revision_id,)
    ).fetchall():
        ended = next_state(DELIVERY_TRANSITIONS, DeliveryState(state), DeliveryEvent.CANCEL)
        database.execute(
            "UPDATE deliveries SET state = ?, ended_at = ? WHERE id = ?", (ended, time.time(), delivery_id)
        )


def requeue(database: Database, series_id: int) -> Revision:
    """Queue the newest revision of a series again, and lift a hold.

    One that waits behind an older revision that is still being processed only loses its hold; it follows by itself.

    Raises
    ------
    WrongState
        If it is still receiving, queued or running already, or if originals of it were deleted.
    """
    with database.immediate():
        tombstones.require_originals(database, series_id)
        revision = newest(database, series_id)
        held = database.execute("SELECT hold FROM series WHERE id = ?", (series_id,)).fetchone()[0]
        if held:
            lift_hold(database, revision, held)
        _show_again(database, revision.id)
        if revision.state is RevisionState.COMPLETE:
            if not _is_busy(database, series_id):
                queue(database, revision)
        else:
            queue(database, revision, RevisionEvent.REQUEUE)
        return get(database, revision.id)


def hold(database: Database, series_id: int, reason: str) -> Revision:
    """Keep a series from being processed until somebody releases it; what is queued already goes on."""
    with database.immediate():
        revision = newest(database, series_id)
        set_hold(database, revision, reason)
        return revision


def set_hold(database: Database, revision: Revision, reason: str) -> None:
    """Hold a series inside the current transaction."""
    database.execute("UPDATE series SET hold = ? WHERE id = ?", (reason, revision.series_id))
    timeline.note(database, revision.series_id, revision.n, "held", reason)


def release(database: Database, series_id: int) -> Revision:
    """Lift a hold; the keeper starts what it held back.

    Raises
    ------
    WrongState
        If nothing holds the series.
    """
    with database.immediate():
        revision = newest(database, series_id)
        (held,) = database.execute("SELECT hold FROM series WHERE id = ?", (series_id,)).fetchone()
        if not held:
            raise WrongState("nothing holds this series")
        lift_hold(database, revision, held)
        return revision


def lift_hold(database: Database, revision: Revision, held: str) -> None:
    """Lift a hold inside the current transaction."""
    database.execute("UPDATE series SET hold = '' WHERE id = ?", (revision.series_id,))
    timeline.note(database, revision.series_id, revision.n, "released", f"no longer held ({held})")


def tell_complete(database: Database, series_id: int) -> Revision:
    """Note the operator's word that a series is complete; the keeper gives it its verdict.

    Raises
    ------
    WrongState
        If it is not waiting for one.
    """
    with database.immediate():
        revision = newest(database, series_id)
        if revision.state is not RevisionState.RECEIVING:
            raise WrongState(f"revision {revision.n} is {revision.state} and has its verdict already")
        study, uid = database.execute(
            "SELECT studies.uid, series.uid FROM series JOIN studies ON studies.id = series.study_id"
            " WHERE series.id = ?",
            (series_id,),
        ).fetchone()
        word = Evidence(EvidenceKind.OPERATOR, time.time(), "operator", study, uid, f"r{revision.n}")
        evidence.record(database, word)
        timeline.note(database, series_id, revision.n, "told", "the operator said that it is complete")
        return revision


def await_next(database: Database, awaits: Iterable[tuple[int, str, str]]) -> None:
    """Write down what revisions wait for, and under which rule of the configuration, all in one transaction."""
    with database.immediate():
        database.connection.executemany("UPDATE revisions SET awaits = ?2, policy = ?3 WHERE id = ?1", list(awaits))


def _is_busy(database: Database, series_id: int) -> bool:
    row = database.execute(
        "SELECT 1 FROM revisions WHERE series_id = ? AND state IN ('QUEUED', 'PROCESSING') LIMIT 1", (series_id,)
    ).fetchone()
    return row is not None


def frozen_paths(database: Database, revision_id: int) -> tuple[str, ...]:
    """Return the store paths of a revision's instances, in the order of arrival."""
    return tuple(path for path, _ in frozen_objects(database, revision_id))


def frozen_objects(database: Database, revision_id: int) -> tuple[tuple[str, str], ...]:
    """Return store path and digest of a revision's instances, in the order of arrival.

    Raises
    ------
    WrongState
        If some of them were deleted: nothing is made of the rest as if it were the whole.
    """
    row = database.execute("SELECT instances FROM revisions WHERE id = ?", (revision_id,)).fetchone()
    ids = json.loads(row[0]) if row else []
    rows = database.execute(
        "SELECT id, path, digest FROM instances WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(ids),)
    ).fetchall()
    objects = {identifier: (path, digest) for identifier, path, digest in rows}
    missing = sum(identifier not in objects for identifier in ids)
    if missing:
        raise WrongState(
            f"{missing} of its {len(ids)} images were deleted by a rule of retention", hint="send the series again"
        )
    return tuple(objects[identifier] for identifier in ids)
