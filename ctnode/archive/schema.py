"""The tables of the index, as migrations; a migration that was released is never edited, only followed by another.

Times are seconds since 1970 in UTC. States change only through the tables of ``words``; triggers keep a counter for
each state, so that nobody counts rows.
"""

from __future__ import annotations

from typing import Final

import sqlite_utils
from sqlite_utils import Migrations

MIGRATIONS: Final = Migrations("ctnode")

_FIRST: Final = """
CREATE TABLE studies (
    id INTEGER PRIMARY KEY,
    uid TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    first_at REAL NOT NULL,
    last_at REAL NOT NULL
) STRICT;
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    study_id INTEGER NOT NULL REFERENCES studies (id),
    uid TEXT NOT NULL,
    split INTEGER NOT NULL,
    modality TEXT NOT NULL,
    patient_key TEXT NOT NULL,
    frame_of_reference TEXT NOT NULL,
    rows INTEGER NOT NULL,
    columns INTEGER NOT NULL,
    instances INTEGER NOT NULL DEFAULT 0,
    ct_instances INTEGER NOT NULL DEFAULT 0,
    own_instances INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    duplicates INTEGER NOT NULL DEFAULT 0,
    flags TEXT NOT NULL DEFAULT '[]',
    hold TEXT NOT NULL DEFAULT '',
    first_at REAL NOT NULL,
    last_at REAL NOT NULL,
    UNIQUE (study_id, uid, split)
) STRICT;
CREATE INDEX series_by_uid ON series (uid);
CREATE TABLE revisions (
    id INTEGER PRIMARY KEY,
    series_id INTEGER NOT NULL REFERENCES series (id),
    n INTEGER NOT NULL,
    state TEXT NOT NULL,
    opened_at REAL NOT NULL,
    last_arrival REAL NOT NULL,
    quiet_s REAL NOT NULL,
    deadline REAL NOT NULL,
    verdict TEXT NOT NULL DEFAULT '',
    verdict_at REAL,
    evidence TEXT NOT NULL DEFAULT '[]',
    instances TEXT NOT NULL DEFAULT '[]',
    reason TEXT NOT NULL DEFAULT '',
    UNIQUE (series_id, n)
) STRICT;
CREATE INDEX revisions_waiting ON revisions (state) WHERE state IN ('RECEIVING', 'COMPLETE');
CREATE TABLE associations (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    door TEXT NOT NULL,
    calling_ae TEXT NOT NULL,
    called_ae TEXT NOT NULL,
    peer_address TEXT NOT NULL,
    opened_at REAL NOT NULL,
    ended_at REAL,
    how TEXT NOT NULL DEFAULT '',
    accepted TEXT NOT NULL DEFAULT '[]',
    refused TEXT NOT NULL DEFAULT '[]',
    instances INTEGER NOT NULL DEFAULT 0,
    duplicates INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE association_series (
    association_id INTEGER NOT NULL REFERENCES associations (id),
    series_id INTEGER NOT NULL REFERENCES series (id),
    instances INTEGER NOT NULL DEFAULT 0,
    last_arrival REAL NOT NULL,
    PRIMARY KEY (series_id, association_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX association_series_by_association ON association_series (association_id);
CREATE TABLE instances (
    id INTEGER PRIMARY KEY,
    series_id INTEGER NOT NULL REFERENCES series (id),
    sop_instance TEXT NOT NULL,
    sop_class TEXT NOT NULL,
    transfer_syntax TEXT NOT NULL,
    digest TEXT NOT NULL,
    path TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    arrived_at REAL NOT NULL,
    association_id INTEGER NOT NULL REFERENCES associations (id),
    revision INTEGER NOT NULL,
    instance_number INTEGER,
    position_mm REAL,
    is_localizer INTEGER NOT NULL,
    is_current INTEGER NOT NULL DEFAULT 1
) STRICT;
CREATE INDEX instances_by_path ON instances (path);
CREATE UNIQUE INDEX instances_by_identity ON instances (series_id, sop_instance, digest, transfer_syntax);
CREATE TABLE attempts (
    name TEXT PRIMARY KEY,
    attempts INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE quarantine (
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL UNIQUE,
    association TEXT NOT NULL,
    reason TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'FAILED',
    at REAL NOT NULL
) STRICT;
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    revision_id INTEGER NOT NULL REFERENCES revisions (id),
    state TEXT NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    interruptions INTEGER NOT NULL DEFAULT 0,
    due_at REAL NOT NULL,
    owner TEXT NOT NULL DEFAULT '',
    lease_until REAL,
    started_at REAL,
    ended_at REAL,
    message TEXT NOT NULL DEFAULT '',
    report TEXT NOT NULL DEFAULT '[]',
    UNIQUE (revision_id, kind)
) STRICT;
CREATE INDEX jobs_open ON jobs (state, due_at) WHERE state IN ('QUEUED', 'RUNNING', 'RETRY');
CREATE TABLE deliveries (
    id INTEGER PRIMARY KEY,
    revision_id INTEGER NOT NULL REFERENCES revisions (id),
    target TEXT NOT NULL,
    kind TEXT NOT NULL,
    path TEXT NOT NULL,
    digest TEXT NOT NULL,
    state TEXT NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    due_at REAL NOT NULL,
    owner TEXT NOT NULL DEFAULT '',
    lease_until REAL,
    status INTEGER,
    comment TEXT NOT NULL DEFAULT '',
    ended_at REAL,
    UNIQUE (revision_id, target, path)
) STRICT;
CREATE INDEX deliveries_open ON deliveries (target, state, due_at) WHERE state IN ('PENDING', 'SENDING', 'RETRY');
CREATE TABLE timeline (
    id INTEGER PRIMARY KEY,
    series_id INTEGER NOT NULL REFERENCES series (id),
    revision INTEGER NOT NULL,
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    text TEXT NOT NULL
) STRICT;
CREATE INDEX timeline_by_series ON timeline (series_id, id);
CREATE TABLE requests (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    argument TEXT NOT NULL,
    asked_at REAL NOT NULL,
    ended_at REAL,
    error TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""

_COUNT: Final = (
    "INSERT INTO counters (name, value) VALUES ({name}, {by}) ON CONFLICT (name) DO UPDATE SET value = value + {by};"
)


def _triggers(table: str) -> str:
    up = _COUNT.format(name=f"'{table}.' || new.state", by="1")
    down = _COUNT.format(name=f"'{table}.' || old.state", by="-1")
    return f"""
CREATE TRIGGER {table}_counted_in AFTER INSERT ON {table} BEGIN {up} END;
CREATE TRIGGER {table}_counted_out AFTER DELETE ON {table} BEGIN {down} END;
CREATE TRIGGER {table}_counted_over AFTER UPDATE OF state ON {table} WHEN old.state <> new.state BEGIN {down} {up} END;
"""


@MIGRATIONS(name="0001_first")
def first(db: sqlite_utils.Database) -> None:
    """Create the first schema."""
    script = _FIRST + "".join(_triggers(table) for table in ("revisions", "jobs", "deliveries", "quarantine"))
    for statement in _statements(script):
        db.execute(statement)


_ASSOCIATIONS: Final = """
ALTER TABLE associations ADD COLUMN peer TEXT NOT NULL DEFAULT '';
ALTER TABLE associations ADD COLUMN is_tls INTEGER NOT NULL DEFAULT 0;
ALTER TABLE associations ADD COLUMN statuses TEXT NOT NULL DEFAULT '{}';
ALTER TABLE associations ADD COLUMN refusals TEXT NOT NULL DEFAULT '[]';
ALTER TABLE associations ADD COLUMN reason TEXT NOT NULL DEFAULT '';
CREATE INDEX associations_by_time ON associations (opened_at);
CREATE INDEX associations_by_caller ON associations (calling_ae, opened_at);
"""


@MIGRATIONS(name="0002_associations")
def second(db: sqlite_utils.Database) -> None:
    """Let an association tell what it was answered, and be found by its sender and time."""
    for statement in _statements(_ASSOCIATIONS):
        db.execute(statement)


_VOLUMES: Final = """
CREATE TABLE volumes (
    revision_id INTEGER NOT NULL REFERENCES revisions (id),
    volume INTEGER NOT NULL,
    status TEXT NOT NULL,
    lungs TEXT NOT NULL,
    reasons TEXT NOT NULL,
    PRIMARY KEY (revision_id, volume)
) STRICT, WITHOUT ROWID;
CREATE TABLE issues (
    revision_id INTEGER NOT NULL REFERENCES revisions (id),
    volume INTEGER NOT NULL,
    place INTEGER NOT NULL,
    code TEXT NOT NULL,
    severity TEXT NOT NULL,
    frames TEXT NOT NULL,
    action TEXT NOT NULL,
    PRIMARY KEY (revision_id, volume, place)
) STRICT, WITHOUT ROWID;
CREATE INDEX issues_by_code ON issues (code, revision_id);
INSERT INTO volumes SELECT jobs.revision_id, report.value ->> 'volume', report.value ->> 'status',
    report.value ->> 'lungs', report.value -> 'reasons' FROM jobs, json_each(jobs.report) AS report;
INSERT INTO issues SELECT jobs.revision_id, report.value ->> 'volume', issue.key, issue.value ->> 'code',
    issue.value ->> 'severity', issue.value -> 'frames', issue.value ->> 'action'
    FROM jobs, json_each(jobs.report) AS report, json_each(report.value, '$.issues') AS issue;
"""


@MIGRATIONS(name="0003_volumes")
def third(db: sqlite_utils.Database) -> None:
    """Give volumes and their issues rows of their own; what is known of them lies in the reports of the jobs."""
    for statement in _statements(_VOLUMES):
        db.execute(statement)


_EVIDENCE: Final = """
CREATE TABLE evidence (
    id INTEGER PRIMARY KEY,
    study TEXT NOT NULL,
    series TEXT NOT NULL,
    kind TEXT NOT NULL,
    source TEXT NOT NULL,
    name TEXT NOT NULL,
    at REAL NOT NULL,
    count INTEGER,
    instances TEXT NOT NULL,
    digest TEXT NOT NULL,
    failed INTEGER NOT NULL,
    modality TEXT NOT NULL,
    UNIQUE (study, series, kind, source, name)
) STRICT;
CREATE INDEX evidence_by_name ON evidence (kind, name);
CREATE TABLE evidence_instances (
    sop_instance TEXT NOT NULL,
    evidence_id INTEGER NOT NULL REFERENCES evidence (id),
    PRIMARY KEY (sop_instance, evidence_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX evidence_instances_by_evidence ON evidence_instances (evidence_id);
CREATE INDEX instances_by_sop ON instances (sop_instance);
ALTER TABLE revisions ADD COLUMN rule TEXT NOT NULL DEFAULT '';
ALTER TABLE revisions ADD COLUMN otherwise TEXT NOT NULL DEFAULT '';
ALTER TABLE revisions ADD COLUMN awaits TEXT NOT NULL DEFAULT '';
ALTER TABLE revisions ADD COLUMN renewed_at REAL;
"""


@MIGRATIONS(name="0004_evidence")
def fourth(db: sqlite_utils.Database) -> None:
    """Keep what others say of a series, and what a waiting revision waits for."""
    for statement in _statements(_EVIDENCE):
        db.execute(statement)


_SERVICES: Final = """
ALTER TABLE associations ADD COLUMN noticed_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN peer TEXT NOT NULL DEFAULT '';
CREATE TABLE commitments (
    id INTEGER PRIMARY KEY,
    transaction_uid TEXT NOT NULL UNIQUE,
    calling_ae TEXT NOT NULL,
    called_ae TEXT NOT NULL,
    peer TEXT NOT NULL,
    peer_address TEXT NOT NULL,
    association TEXT NOT NULL,
    asked_at REAL NOT NULL,
    state TEXT NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    due_at REAL NOT NULL,
    instances TEXT NOT NULL,
    failures TEXT,
    comment TEXT NOT NULL DEFAULT '',
    ended_at REAL
) STRICT;
CREATE INDEX commitments_open ON commitments (calling_ae, due_at) WHERE state IN ('PENDING', 'SENDING', 'RETRY');
"""


@MIGRATIONS(name="0005_services")
def fifth(db: sqlite_utils.Database) -> None:
    """Let the index know what was asked beside storage."""
    for statement in _statements(_SERVICES + _triggers("commitments")):
        db.execute(statement)


_ROUTES: Final = """
ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
CREATE INDEX jobs_next ON jobs (priority DESC, due_at, id) WHERE state IN ('QUEUED', 'RUNNING', 'RETRY');
ALTER TABLE studies ADD COLUMN is_routed INTEGER NOT NULL DEFAULT 1;
CREATE INDEX studies_unrouted ON studies (id) WHERE is_routed = 0;
"""


@MIGRATIONS(name="0006_routes")
def sixth(db: sqlite_utils.Database) -> None:
    """Let jobs have priorities, and studies be routed once they are complete."""
    for statement in _statements(_ROUTES):
        db.execute(statement)


_OUTBOX: Final = """
ALTER TABLE deliveries ADD COLUMN lane TEXT NOT NULL DEFAULT '';
ALTER TABLE deliveries ADD COLUMN series_id INTEGER NOT NULL DEFAULT 0;
ALTER TABLE deliveries ADD COLUMN posted_at REAL NOT NULL DEFAULT 0;
ALTER TABLE deliveries ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE deliveries ADD COLUMN transfers INTEGER NOT NULL DEFAULT 0;
ALTER TABLE deliveries ADD COLUMN proof_at REAL;
ALTER TABLE deliveries ADD COLUMN proof_tries INTEGER NOT NULL DEFAULT 0;
ALTER TABLE deliveries ADD COLUMN transaction_uid TEXT NOT NULL DEFAULT '';
ALTER TABLE deliveries ADD COLUMN sop_instance TEXT NOT NULL DEFAULT '';
UPDATE deliveries SET lane = target, posted_at = due_at, transfers = state IN ('SENT', 'CONFIRMED'),
    series_id = (SELECT series_id FROM revisions WHERE revisions.id = deliveries.revision_id);
DROP INDEX deliveries_open;
CREATE INDEX deliveries_pending ON deliveries (lane, priority DESC, id) WHERE state = 'PENDING';
CREATE INDEX deliveries_waiting ON deliveries (lane, state, due_at) WHERE state IN ('SENDING', 'RETRY');
CREATE INDEX deliveries_open ON deliveries (lane, posted_at) WHERE state IN ('PENDING', 'SENDING', 'RETRY');
CREATE INDEX deliveries_unproved ON deliveries (lane, proof_at) WHERE state = 'SENT' AND proof_at IS NOT NULL;
CREATE INDEX deliveries_by_state ON deliveries (state, id);
CREATE INDEX deliveries_by_series ON deliveries (series_id, id);
CREATE INDEX deliveries_by_transaction ON deliveries (transaction_uid) WHERE transaction_uid <> '';
CREATE TABLE delivery_attempts (
    delivery_id INTEGER NOT NULL REFERENCES deliveries (id),
    attempt INTEGER NOT NULL,
    ended_at REAL NOT NULL,
    state TEXT NOT NULL,
    status INTEGER,
    comment TEXT NOT NULL
) STRICT;
CREATE INDEX delivery_attempts_by_delivery ON delivery_attempts (delivery_id, ended_at);
CREATE TABLE lanes (
    name TEXT PRIMARY KEY,
    failures INTEGER NOT NULL DEFAULT 0,
    due_at REAL NOT NULL DEFAULT 0,
    failing_since REAL,
    comment TEXT NOT NULL DEFAULT '',
    paused_until REAL
) STRICT, WITHOUT ROWID;
INSERT INTO lanes (name) SELECT DISTINCT target FROM deliveries;
"""


@MIGRATIONS(name="0007_outbox")
def seventh(db: sqlite_utils.Database) -> None:
    """Give each destination a lane with its own patience, and each attempt and each proof of arrival its place."""
    for statement in _statements(_OUTBOX):
        db.execute(statement)


def _statements(script: str) -> list[str]:
    """Split a script at the semicolons that end statements; trigger bodies hold semicolons of their own."""
    statements, lines = [], []
    for line in script.splitlines():
        lines.append(line)
        if line.endswith(";") and (not lines[0].startswith("CREATE TRIGGER") or line.endswith("END;")):
            statements.append("\n".join(lines))
            lines = []
        elif not "".join(lines).strip():
            lines = []
    return statements


from ctnode.archive import schema_web as schema_web  # noqa: E402 - its migration follows those above
