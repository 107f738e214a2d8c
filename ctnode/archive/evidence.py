"""Evidence about series, kept with its time and source: what others said of them, before, during or after they came."""

from __future__ import annotations

import hashlib
import json
from typing import Final

from ctnode.archive import keys
from ctnode.archive.database import Database
from ctnode.words import Evidence, EvidenceKind

# Goes up with each signal: who waits looks again.
COUNTER: Final = "evidence"


def record(database: Database, evidence: Evidence) -> int:
    """Keep a signal inside the current transaction and return its id; the same kind, source and name again replaces it.

    The series need not be known yet. An MPPS that ended takes the place of the one that was in progress.
    """
    instances = sorted(set(evidence.instances))
    database.count(COUNTER)
    if evidence.kind in {EvidenceKind.MPPS_COMPLETED, EvidenceKind.MPPS_DISCONTINUED}:
        database.execute(
            "DELETE FROM evidence WHERE kind = ? AND name = ?", (EvidenceKind.MPPS_IN_PROGRESS, evidence.name)
        )
    (identifier,) = database.execute(
        "INSERT INTO evidence (study, series, kind, source, name, at, count, instances, digest, failed, modality)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (study, series, kind, source, name) DO UPDATE SET"
        " at = excluded.at, count = excluded.count, instances = excluded.instances, digest = excluded.digest,"
        " failed = excluded.failed, modality = excluded.modality RETURNING id",
        (
            evidence.study, evidence.series, evidence.kind, evidence.source, evidence.name, evidence.at,
            evidence.count, json.dumps(instances), hashlib.sha256("\n".join(instances).encode()).hexdigest(),
            evidence.failed, evidence.modality,
        ),
    ).fetchone()  # fmt: skip
    database.execute("DELETE FROM evidence_instances WHERE evidence_id = ?", (identifier,))
    if not evidence.study and not evidence.series:
        database.connection.executemany(
            "INSERT INTO evidence_instances (sop_instance, evidence_id) VALUES (?, ?)",
            [(uid, identifier) for uid in instances],
        )
    return int(identifier)


def of_series(database: Database, series_id: int) -> tuple[Evidence, ...]:
    """Return what is known of a series, of its study, and of lists that name its instances, oldest first."""
    rows = database.rows(
        "SELECT e.kind, e.at, e.source, e.study, e.series, e.name, e.count, e.instances, e.failed, e.modality"
        " FROM evidence AS e WHERE e.id IN ("
        " SELECT o.id FROM series JOIN studies ON studies.id = series.study_id"
        " JOIN evidence AS o ON o.study = studies.uid AND o.series IN ('', series.uid) WHERE series.id = ?"
        " UNION SELECT o.id FROM series JOIN evidence AS o ON o.study = '' AND o.series = series.uid"
        " WHERE series.id = ?"
        " UNION SELECT n.evidence_id FROM instances JOIN evidence_instances AS n USING (sop_instance)"
        " WHERE instances.series_id = ? AND EXISTS (SELECT 1 FROM evidence_instances)"
        ") ORDER BY e.at, e.id",
        (series_id, series_id, series_id),
    )
    return tuple(
        Evidence(**{**row, "kind": EvidenceKind(row["kind"]), "instances": tuple(json.loads(row["instances"]))})
        for row in rows
    )


def is_in_progress(database: Database, study_id: int) -> bool:
    """Return whether a procedure step of a study has begun and not ended."""
    row = database.execute(
        "SELECT 1 FROM studies JOIN evidence ON evidence.study = studies.uid"
        " WHERE studies.id = ? AND evidence.kind = ? LIMIT 1",
        (study_id, EvidenceKind.MPPS_IN_PROGRESS),
    ).fetchone()
    return row is not None


def missing(database: Database, evidence: Evidence) -> tuple[str, ...]:
    """Return the instances that a signal names and that the node does not hold."""
    held: set[str] = set()
    if evidence.series:
        rows = database.execute(
            "SELECT sop_instance FROM series JOIN instances ON instances.series_id = series.id WHERE series.uid = ?",
            (evidence.series,),
        )
        held = {row[0] for row in rows}
    return tuple(uid for uid in evidence.instances if uid not in held and not keys.is_held(database, uid))


def version(database: Database) -> int:
    """Return a number that grows with each signal."""
    row = database.execute("SELECT value FROM counters WHERE name = ?", (COUNTER,)).fetchone()
    return int(row[0]) if row else 0
