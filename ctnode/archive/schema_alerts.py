"""Alerts: what needs a person, written down by triggers in the transaction that made it so.

They hold UIDs, states and names of the configuration; no text of a sender or of a destination.
"""

from __future__ import annotations

from typing import Final

import sqlite_utils

from ctnode.archive.schema import MIGRATIONS, _statements

_NOW: Final = "(julianday('now') - 2440587.5) * 86400.0"
# What a sender gave as UID may be any text, also a name: such a series is called by its number.
_NAME: Final = (
    "iif(series.uid GLOB '*[^0-9.]*', 'series ' || series.id,"
    " series.uid || iif(series.split > 1, '~' || series.split, ''))"
)
_SERIES: Final = f"SELECT {{at}}, '{{kind}}', {_NAME}, {{text}} FROM series WHERE series.id = new.series_id;"
_GIVEN_UP: Final = (
    f"new.kind || ' of ' || {_NAME} || ' was given up' ||"
    " iif(new.status IS NULL, '', printf(', status %04XH', new.status))"
)
_INTO: Final = "INSERT INTO alerts (at, kind, subject, text)"
_FAILED: Final = _SERIES.format(at=_NOW, kind="failed", text="'revision ' || new.n || ' could not be processed'")
_SUSPECT: Final = _SERIES.format(at=_NOW, kind="suspect", text="'revision ' || new.n || ' may not be whole'")

_ALERTS: Final = f"""
CREATE TABLE alerts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    text TEXT NOT NULL,
    count INTEGER NOT NULL DEFAULT 1
) STRICT;
CREATE TABLE conditions (
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    since REAL NOT NULL,
    PRIMARY KEY (kind, subject)
) STRICT, WITHOUT ROWID;
CREATE TABLE channels (
    name TEXT PRIMARY KEY,
    told INTEGER NOT NULL,
    sent_at REAL,
    due_at REAL NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    comment TEXT NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;
CREATE TRIGGER alert_of_failure AFTER UPDATE OF state ON revisions
WHEN new.state = 'FAILED' AND old.state <> 'FAILED' BEGIN
{_INTO} {_FAILED} END;
CREATE TRIGGER alert_of_doubt AFTER UPDATE OF verdict_at ON revisions
WHEN new.verdict = 'SUSPECT' AND new.verdict_at IS NOT old.verdict_at BEGIN
{_INTO} {_SUSPECT} END;
CREATE TRIGGER alert_of_delivery AFTER UPDATE OF state ON deliveries
WHEN new.state = 'DEAD' AND old.state <> 'DEAD' BEGIN
{_INTO} SELECT {_NOW}, 'dead', new.target, {_GIVEN_UP}
    FROM series WHERE series.id = new.series_id; END;
CREATE TRIGGER alert_of_quarantine AFTER INSERT ON quarantine BEGIN
{_INTO} VALUES ({_NOW}, 'quarantine', new.association, 'a file could not be settled'); END;
"""


@MIGRATIONS(name="0010_alerts")
def tell(db: sqlite_utils.Database) -> None:
    """Write down what needs a person, and whom it was told."""
    for statement in _statements(_ALERTS):
        db.execute(statement)
