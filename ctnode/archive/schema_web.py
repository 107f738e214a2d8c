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


@MIGRATIONS(name="0010_web")
def tenth(db: sqlite_utils.Database) -> None:
    """Let the page find series by state and verdict, and what needs somebody."""
    for statement in _INDICES:
        db.execute(statement)
