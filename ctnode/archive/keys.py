"""Instances by their SOP Instance UID alone, which lists of instances and commitment requests know them by.

Rows come in generations of 4096, each with keys of its own (``archive.schema_keys``); the newest is looked at first.
A look costs a microsecond for each generation.
"""

from __future__ import annotations

from typing import Final

from ctnode.archive.database import Database

_KEY: Final = "SELECT CAST(substr(replace(?, '.', ''), -18) AS INTEGER)"
_FOUND: Final = (
    "WITH RECURSIVE newest_first (n) AS (SELECT (SELECT max(id) >> 12 FROM instances)"
    " UNION ALL SELECT n - 1 FROM newest_first WHERE n > 0)"
    " SELECT i.sop_class, i.digest, i.path FROM newest_first CROSS JOIN instance_keys AS keyed"
    " ON keyed.generation = newest_first.n AND keyed.key = ?1"
    " CROSS JOIN instances AS i ON i.id = keyed.instance_id WHERE i.sop_instance = ?2"
)


def objects_of(database: Database, sop_instance: str) -> tuple[tuple[str, str, str], ...]:
    """Return SOP class, digest and store path of each object that the index has of an instance."""
    return tuple(database.execute(_FOUND, (_key(database, sop_instance), sop_instance)).fetchall())


def is_held(database: Database, sop_instance: str) -> bool:
    """Return whether the index has an instance."""
    found = database.execute(f"{_FOUND} LIMIT 1", (_key(database, sop_instance), sop_instance))
    return found.fetchone() is not None


def _key(database: Database, sop_instance: str) -> int:
    """Return the key as SQLite itself makes it when a row is written."""
    (key,) = database.execute(_KEY, (sop_instance,)).fetchone()
    return int(key)
