"""All instances of a series, a bounded piece with each statement, however large the series is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from ctnode.archive.database import Database

PIECE: Final = 2000
_KEY: Final = "sop_instance, digest, transfer_syntax"


def instances(database: Database, series_id: int, columns: str, *, piece: int = PIECE) -> Iterator[tuple[Any, ...]]:
    """Yield ``columns`` of each instance of a series, older bytes of the same UID among them, in the order of UIDs.

    No lock is held from one piece to the next; what comes in meanwhile may be among the rows or not.
    """
    edge: tuple[str, ...] | None = ("", "", "")
    while edge is not None:
        begin = edge
        # The index alone tells where a piece ends, so that no row carries its long key along.
        edge = database.execute(
            f"SELECT {_KEY} FROM instances WHERE series_id = ? AND ({_KEY}) > (?, ?, ?) ORDER BY {_KEY}"
            " LIMIT 1 OFFSET ?",
            (series_id, *begin, piece - 1),
        ).fetchone()
        end = f" AND ({_KEY}) <= (?, ?, ?)" if edge is not None else ""
        yield from database.execute(
            f"SELECT {columns} FROM instances WHERE series_id = ? AND ({_KEY}) > (?, ?, ?){end} ORDER BY {_KEY}",
            (series_id, *begin, *(edge or ())),
        ).fetchall()
