"""The indices of the page: each of its lists reads only what it shows, however much there is."""

from __future__ import annotations

from typing import Final

import sqlite_utils

from ctnode.archive.schema import MIGRATIONS

_INDICES: Final = (
    "CREATE INDEX revisions_by_state ON revisions (state, series_id)",
    "CREATE INDEX revisions_by_verdict ON revisions (verdict, series_id)",
    "CREATE INDEX series_flagged ON series (id) WHERE flags <> '[]'",
    "CREATE INDEX series_held ON series (id) WHERE hold <> ''",
    "CREATE INDEX associations_under_way ON associations (id) WHERE how = ''",
    "CREATE INDEX jobs_dead ON jobs (id) WHERE state = 'DEAD'",
    "CREATE INDEX volumes_by_status ON volumes (status, revision_id)",
    "CREATE INDEX volumes_by_lungs ON volumes (lungs, revision_id)",
)


@MIGRATIONS(name="0013_web")
def web(db: sqlite_utils.Database) -> None:
    """Let the page find series by state and verdict, and what needs somebody."""
    for statement in _INDICES:
        db.execute(statement)


_ACKNOWLEDGED: Final = (
    "ALTER TABLE revisions ADD COLUMN acknowledged_at REAL",
    "CREATE INDEX revisions_failed ON revisions (series_id) WHERE state = 'FAILED' AND acknowledged_at IS NULL",
    "CREATE INDEX revisions_suspect ON revisions (series_id) WHERE verdict = 'SUSPECT' AND acknowledged_at IS NULL",
)


@MIGRATIONS(name="0014_acknowledged")
def acknowledged(db: sqlite_utils.Database) -> None:
    """Let an operator take what was seen off the list of problems."""
    for statement in _ACKNOWLEDGED:
        db.execute(statement)
