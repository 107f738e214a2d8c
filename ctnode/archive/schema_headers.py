"""The migration that keeps what headers say of how many instances there should be, and the policy of each wait."""

from __future__ import annotations

from typing import Final

import sqlite_utils

from ctnode.archive.schema import MIGRATIONS

_COLUMNS: Final = (
    "acquisition INTEGER",
    "images_in_acquisition INTEGER",
    "concatenation TEXT",
    "in_concatenation INTEGER",
    "concatenation_total INTEGER",
    "frames INTEGER NOT NULL DEFAULT 1",
)


@MIGRATIONS(name="0008_headers")
def eighth(db: sqlite_utils.Database) -> None:
    """Give instances room for counts; what came before says nothing, and an index made anew has all."""
    for column in _COLUMNS:
        db.execute(f"ALTER TABLE instances ADD COLUMN {column}")
    db.execute("CREATE INDEX studies_open ON studies (id) WHERE state = 'OPEN'")
    # The rule of the configuration that a revision waits or waited by.
    db.execute("ALTER TABLE revisions ADD COLUMN policy TEXT NOT NULL DEFAULT ''")
