"""Tallies that triggers keep for the metrics: whoever changes a row counts it, and nobody ever counts rows.

A tally is a sum under a name and up to three labels. Names of peers and targets stand in it as the configuration had
them; ``flow.metrics`` shows those that it still has.
"""

from __future__ import annotations

from typing import Final

import sqlite_utils

from ctnode.archive.schema import MIGRATIONS, _statements
from ctnode.words import UNKNOWN_PEER

# Upper bounds in seconds of the waits from the last instance of a series to its verdict.
WAIT_BOUNDS_S: Final = (5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0)

_INTO: Final = "INSERT INTO tallies (name, a, b, c, value)"
_ADD: Final = "ON CONFLICT (name, a, b, c) DO UPDATE SET value = value + excluded.value;"
# Who sent: the peer of [[peers]] that it is, else a caller that nobody knows; other doors have no peer.
_PEER: Final = (
    f"CASE WHEN new.peer <> '' THEN new.peer WHEN new.door = 'network' THEN '{UNKNOWN_PEER}' ELSE '' END, new.door"
)
# The statuses of PS3.4 B.2.3 and PS3.7 Annex C by their family: a destination may answer anything.
_STATUS: Final = """CASE WHEN new.status IS NULL THEN 'none'
    WHEN new.status BETWEEN 0xA700 AND 0xA7FF THEN 'A7xx'
    WHEN new.status BETWEEN 0xA900 AND 0xA9FF THEN 'A9xx'
    WHEN new.status BETWEEN 0xB000 AND 0xBFFF THEN 'Bxxx'
    WHEN new.status BETWEEN 0xC000 AND 0xCFFF THEN 'Cxxx'
    WHEN new.status BETWEEN 0x0000 AND 0x02FF THEN printf('%04X', new.status)
    ELSE 'other' END"""


def _add(name: str, value: str, a: str = "''", b: str = "''", c: str = "''") -> str:
    return f"{_INTO} VALUES ('{name}', {a}, {b}, {c}, {value}) {_ADD}"


def _bound(value: str) -> str:
    steps = " ".join(f"WHEN {value} <= {bound} THEN '{bound}'" for bound in WAIT_BOUNDS_S)
    return f"CASE {steps} ELSE '+Inf' END"


def _peer_add(name: str, value: str) -> str:
    return f"{_INTO} VALUES ('{name}', {_PEER}, '', {value}) {_ADD}"


_WAIT: Final = "max(0.0, new.verdict_at - new.last_arrival)"

_TALLIES: Final = f"""
ALTER TABLE associations ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
CREATE TABLE tallies (
    name TEXT NOT NULL,
    a TEXT NOT NULL,
    b TEXT NOT NULL,
    c TEXT NOT NULL,
    value REAL NOT NULL,
    PRIMARY KEY (name, a, b, c)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER associations_fed AFTER UPDATE OF instances, duplicates, bytes ON associations BEGIN
{_peer_add("instances", "new.instances - old.instances")}
{_peer_add("bytes", "new.bytes - old.bytes")}
{_peer_add("duplicates", "new.duplicates - old.duplicates")} END;
CREATE TRIGGER associations_ended AFTER UPDATE OF how ON associations WHEN old.how = '' AND new.how <> '' BEGIN
{_INTO} VALUES ('associations', {_PEER}, new.how, 1) {_ADD}
{_peer_add("association_seconds", "max(0.0, new.ended_at - new.opened_at)")}
{_INTO} SELECT 'statuses', {_PEER}, answer.key, answer.value FROM json_each(new.statuses) AS answer WHERE true
{_ADD} END;
CREATE TRIGGER revisions_judged AFTER UPDATE OF verdict_at ON revisions
WHEN new.verdict_at IS NOT NULL AND new.verdict_at IS NOT old.verdict_at BEGIN
{_add("verdicts", "1", "new.verdict")}
{_add("waits", "1", "new.verdict", _bound(_WAIT))}
{_add("wait_seconds", _WAIT, "new.verdict")} END;
CREATE TRIGGER jobs_left AFTER UPDATE OF state ON jobs WHEN old.state = 'RUNNING' AND new.state <> 'RUNNING' BEGIN
{_add("attempts", "1", "new.kind", "new.state")} END;
CREATE TRIGGER jobs_reported AFTER UPDATE OF report ON jobs WHEN old.state = 'RUNNING' AND new.state = 'DONE' BEGIN
{_INTO} SELECT 'step_seconds', step.key, '', '', sum(step.value) FROM json_each(new.report) AS volume,
    json_each(volume.value, '$.seconds') AS step GROUP BY step.key
{_ADD}
{_INTO} SELECT 'steps', step.key, '', '', count(*) FROM json_each(new.report) AS volume,
    json_each(volume.value, '$.seconds') AS step GROUP BY step.key
{_ADD} END;
CREATE TRIGGER deliveries_owed AFTER INSERT ON deliveries BEGIN
{_add("deliveries", "1", "new.target", "new.state")} END;
CREATE TRIGGER deliveries_gone AFTER DELETE ON deliveries BEGIN
{_add("deliveries", "-1", "old.target", "old.state")} END;
CREATE TRIGGER deliveries_moved AFTER UPDATE OF state ON deliveries WHEN old.state <> new.state BEGIN
{_add("deliveries", "-1", "old.target", "old.state")}
{_add("deliveries", "1", "new.target", "new.state")} END;
CREATE TRIGGER deliveries_arrived AFTER UPDATE OF state ON deliveries
WHEN old.state = 'SENDING' AND new.state = 'SENT' BEGIN
{_add("delivered", "1", "new.target")}
{_add("delivered_seconds", "max(0.0, new.ended_at - new.posted_at)", "new.target")} END;
CREATE TRIGGER deliveries_tried AFTER INSERT ON delivery_attempts BEGIN
{_INTO} SELECT 'delivery_attempts', target, new.state, {_STATUS}, 1 FROM deliveries WHERE id = new.delivery_id
{_ADD} END;
UPDATE associations SET bytes = fed.bytes FROM
    (SELECT association_id, sum(bytes) AS bytes FROM instances GROUP BY association_id) AS fed
    WHERE fed.association_id = associations.id;
{_INTO} SELECT 'instances', {_PEER.replace("new.", "")}, '', sum(instances) FROM associations WHERE true
    GROUP BY 2, 3 {_ADD}
INSERT INTO tallies SELECT 'deliveries', target, state, '', count(*) FROM deliveries GROUP BY target, state;
"""


@MIGRATIONS(name="0011_metrics")
def count_for_metrics(db: sqlite_utils.Database) -> None:
    """Keep what the metrics say by peer, verdict, step and destination; what was before is counted where rows tell."""
    for statement in _statements(_TALLIES):
        db.execute(statement)
