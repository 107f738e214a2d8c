"""The migration that keeps which association brought an instance again."""

from __future__ import annotations

import sqlite_utils

from ctnode.archive.schema import MIGRATIONS


@MIGRATIONS(name="0015_again")
def again(db: sqlite_utils.Database) -> None:
    """Let an instance tell over which association it came last; NULL where it came once."""
    db.execute("ALTER TABLE instances ADD COLUMN again_in INTEGER REFERENCES associations (id)")
