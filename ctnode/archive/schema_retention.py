"""The tables of what was deleted: by a rule of retention, or because somebody is to be forgotten."""

from __future__ import annotations

from typing import Final

import sqlite_utils

from ctnode.archive.schema import MIGRATIONS, _statements

_RETENTION: Final = """
ALTER TABLE series ADD COLUMN deleted INTEGER NOT NULL DEFAULT 0;
CREATE TABLE removals (
    id INTEGER PRIMARY KEY,
    series_id INTEGER NOT NULL REFERENCES series (id),
    revision_id INTEGER REFERENCES revisions (id),
    rule TEXT NOT NULL,
    began_at REAL NOT NULL,
    ended_at REAL,
    objects INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    outcome TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX removals_open ON removals (series_id) WHERE ended_at IS NULL;
CREATE INDEX removals_by_series ON removals (series_id);
CREATE TABLE going (
    instance_id INTEGER PRIMARY KEY REFERENCES instances (id),
    removal_id INTEGER NOT NULL REFERENCES removals (id)
) STRICT;
CREATE TABLE tombstones (
    series_id INTEGER NOT NULL REFERENCES series (id),
    sop_instance TEXT NOT NULL,
    digest TEXT NOT NULL,
    transfer_syntax TEXT NOT NULL,
    instance_id INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    deleted_at REAL NOT NULL,
    rule TEXT NOT NULL,
    PRIMARY KEY (series_id, sop_instance, digest, transfer_syntax)
) STRICT, WITHOUT ROWID;
CREATE INDEX tombstones_by_instance ON tombstones (instance_id);
CREATE TABLE forgotten (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    who TEXT NOT NULL,
    reason TEXT NOT NULL,
    studies INTEGER NOT NULL,
    series INTEGER NOT NULL,
    instances INTEGER NOT NULL,
    results INTEGER NOT NULL,
    deliveries INTEGER NOT NULL
) STRICT;
"""


@MIGRATIONS(name="0009_retention")
def ninth(db: sqlite_utils.Database) -> None:
    """Let what is deleted leave a trace by which it is known again, and what is forgotten leave none but a count."""
    for statement in _statements(_RETENTION):
        db.execute(statement)
