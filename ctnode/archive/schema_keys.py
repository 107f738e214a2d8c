"""The migration that finds instances by their SOP Instance UID without an index whose every page is written to."""

from __future__ import annotations

from typing import Final

import sqlite_utils

from ctnode.archive.schema import MIGRATIONS

# The last digits tell UIDs apart. Instances of 4096 rows share a generation: however UIDs are made, a batch writes to
# the few pages of the newest one.
_KEYS: Final = (
    "DROP INDEX instances_by_sop",
    (
        "CREATE TABLE instance_keys (generation INTEGER NOT NULL, key INTEGER NOT NULL, instance_id INTEGER NOT NULL,"
        " PRIMARY KEY (generation, key, instance_id)) STRICT, WITHOUT ROWID"
    ),
    (
        "INSERT INTO instance_keys SELECT id >> 12, CAST(substr(replace(sop_instance, '.', ''), -18) AS INTEGER), id"
        " FROM instances ORDER BY 1, 2, 3"
    ),
    (
        "CREATE TRIGGER instances_keyed AFTER INSERT ON instances BEGIN INSERT INTO instance_keys VALUES"
        " (new.id >> 12, CAST(substr(replace(new.sop_instance, '.', ''), -18) AS INTEGER), new.id); END"
    ),
    (
        "CREATE TRIGGER instances_unkeyed AFTER DELETE ON instances BEGIN DELETE FROM instance_keys WHERE"
        " generation = old.id >> 12 AND instance_id = old.id"
        " AND key = CAST(substr(replace(old.sop_instance, '.', ''), -18) AS INTEGER); END"
    ),
)


@MIGRATIONS(name="0012_keys")
def keys(db: sqlite_utils.Database) -> None:
    """Replace the index by SOP Instance UID; random UIDs had made a batch write to hundreds of its pages."""
    for statement in _KEYS:
        db.execute(statement)
