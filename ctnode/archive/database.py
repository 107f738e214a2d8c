"""The index file: connections, pragmas, migrations, immediate transactions.

``synchronous=FULL`` always: a committed row is part of a promise. WAL only where the linked SQLite has the fix of the
WAL-reset corruption (3.51.3, 3.50.7, 3.44.6); elsewhere a rollback journal, in which a reader blocks a commit, so that
every statement of a serving process must stay within some milliseconds.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import sqlite_utils

from ctnode.archive.migrations import MIGRATIONS
from ctnode.ops.durable import fsync_directory
from ctnode.words import Unavailable

BUSY_TIMEOUT_S: Final = 30.0
_WAL_FIXED_FROM: Final = (3, 51, 3)
_WAL_BACKPORTS: Final = {(3, 50): 7, (3, 44): 6}

Parameters = Sequence[object] | Mapping[str, object]


def wal_is_safe(version: tuple[int, int, int] = sqlite3.sqlite_version_info) -> bool:
    """Return whether this SQLite has the fix of the WAL-reset bug."""
    backport = _WAL_BACKPORTS.get(version[:2])
    return version >= _WAL_FIXED_FROM or (backport is not None and version[2] >= backport)


def journal_mode() -> str:
    """Return the journal mode in use; ``CTNODE_TEST_JOURNAL`` lets the tests run both."""
    return os.environ.get("CTNODE_TEST_JOURNAL") or ("wal" if wal_is_safe() else "truncate")


class Database:
    """One connection to the index, for one thread.

    Parameters
    ----------
    path
        The file.
    readonly
        For commands that only look; they never create the file.
    is_shared
        Whether it goes from thread to thread, one at a time.
    """

    def __init__(self, path: Path, *, readonly: bool = False, is_shared: bool = False) -> None:
        self.path = path
        if readonly and not path.is_file():
            raise Unavailable(f"no index at {path}", hint="start the node once with `ctnode run`")
        target = f"file:{quote(str(path))}{'?mode=ro' if readonly else ''}"
        self.connection = sqlite3.connect(target, uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=not is_shared)
        self.tables = sqlite_utils.Database(self.connection)
        self._pragmas(readonly=readonly)

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def _pragmas(self, *, readonly: bool) -> None:
        run = self.connection.execute
        run("PRAGMA foreign_keys = ON")
        run("PRAGMA trusted_schema = OFF")
        run("PRAGMA temp_store = MEMORY")
        if not readonly:
            run(f"PRAGMA journal_mode = {journal_mode()}").fetchone()
            run("PRAGMA synchronous = FULL")
            run("PRAGMA journal_size_limit = 67108864")

    def migrate(self) -> None:
        """Bring the schema up to date, after a backup if there is anything to lose.

        Raises
        ------
        Unavailable
            If a newer ctnode wrote the file.
        """
        applied = self._applied()
        if not MIGRATIONS.pending(self.tables):
            return
        if applied:
            self._backup_before_migration()
        with self.immediate():
            # The roles of a node start together; who comes second finds nothing pending any more.
            MIGRATIONS.apply(self.tables)
        fsync_directory(self.path.parent)

    def require_index(self) -> None:
        """Check that the file is a whole index of this ctnode or an older one.

        Raises
        ------
        Unavailable
            If it is damaged, something else, or newer.
        """
        try:
            applied = self._applied()
            sound = self.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
        except sqlite3.DatabaseError as error:
            raise Unavailable(f"{self.path} cannot be read: {error}") from None
        if not applied or not sound:
            raise Unavailable(f"{self.path} is {'no index of ctnode' if sound else 'damaged'}")

    def require_current(self) -> None:
        """Check that the schema is the one that this version reads.

        Raises
        ------
        Unavailable
            If it is older: only a process that may write brings it up to date.
        """
        if list(MIGRATIONS.pending(self.tables)):
            raise Unavailable(
                "the index is of an older ctnode", hint="start the node once: it brings the index up to date"
            )

    def _applied(self) -> set[str]:
        applied = {migration.name for migration in MIGRATIONS.applied(self.tables)}
        newer = sorted(applied - set(_migration_names()))
        if newer:
            raise Unavailable(
                f"the index was written by a newer ctnode ({newer[-1]})",
                hint="upgrade, or restore the backup beside it",
            )
        return applied

    def _backup_before_migration(self) -> None:
        copy = self.path.with_name(
            f"{self.path.name}.before-migration-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        )
        copy_to(self.connection, copy)

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Run a block in one transaction that holds the write lock from its start."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.commit()
        except BaseException:
            # Also when the commit itself failed: what stays open would swallow the next transaction.
            self.connection.rollback()
            raise

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Read in a block under one lock, as of one moment; only for statements that take milliseconds together.

        Without WAL each statement alone may have to wait for a commit. No file may be opened within the block: a
        results folder may lie on another host, and all commits wait for the end of the block.
        """
        if self.connection.in_transaction:
            yield
            return
        self.connection.execute("BEGIN")
        try:
            yield
        finally:
            self.connection.rollback()

    def execute(self, statement: str, parameters: Parameters = ()) -> sqlite3.Cursor:
        """Run one statement inside the current transaction."""
        return self.connection.execute(statement, parameters)

    def insert(self, statement: str, parameters: Parameters = ()) -> int:
        """Run an INSERT and return the new row's id."""
        row = self.connection.execute(statement, parameters).lastrowid
        assert row is not None
        return row

    def rows(self, statement: str, parameters: Parameters = ()) -> list[dict[str, Any]]:
        """Return all rows of a statement by column name; records are made from them at once."""
        cursor = self.connection.execute(statement, parameters)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def row(self, statement: str, parameters: Parameters = ()) -> dict[str, Any] | None:
        """Return the first row, or None."""
        found = self.rows(statement, parameters)
        return found[0] if found else None

    def count(self, name: str, by: int = 1) -> None:
        """Add to a kept counter, so that no reader has to count rows."""
        self.connection.execute(
            "INSERT INTO counters (name, value) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            (name, by),
        )

    def fresh_id(self, table: str) -> int:
        """Return the next number of a table whose numbers are never given twice, inside the current transaction."""
        row = self.connection.execute(
            f"SELECT 1 + max(coalesce((SELECT max(id) FROM {table}), 0),"
            " coalesce((SELECT value FROM counters WHERE name = ?), 0))",
            (f"{table}.numbered",),
        ).fetchone()
        return int(row[0])

    def counters(self) -> dict[str, int]:
        """Return all kept counters."""
        return {name: value for name, value in self.connection.execute("SELECT name, value FROM counters") if value}

    def data_version(self) -> int:
        """Return a number that changes when another connection commits."""
        return int(self.connection.execute("PRAGMA data_version").fetchone()[0])


def copy_to(source: sqlite3.Connection, destination: Path, *, pages: int = 256, between: Any = None) -> None:
    """Copy the database behind ``source`` to a new durable file, in steps; ``between`` runs after each step."""
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    target = sqlite3.connect(temporary)
    try:
        source.backup(target, pages=pages, progress=between, sleep=0.0)
        target.execute("PRAGMA journal_mode = DELETE")
    except BaseException:
        target.close()
        temporary.unlink(missing_ok=True)
        raise
    target.close()
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(destination)
    fsync_directory(destination.parent)


def _migration_names() -> list[str]:
    return [migration.name for migration in MIGRATIONS._migrations]  # noqa: SLF001 - the set has no public listing
