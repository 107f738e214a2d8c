"""Connections that stay open: they see what is there now, and hold up nobody while they rest."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctnode.archive.database import Database
from ctnode.archive.readers import Readers
from ctnode.words import Unavailable

pytestmark = pytest.mark.integration


@pytest.fixture
def index(tmp_path: Path) -> Path:
    path = tmp_path / "ctnode.db"
    with Database(path) as database:
        database.migrate()
        with database.immediate():
            for number in range(1000):
                database.count(f"n{number:04}", number + 1)
    return path


@pytest.fixture
def readers(index: Path) -> Iterator[Readers]:
    made = Readers(index)
    yield made
    made.close()


def seen(readers: Readers) -> int:
    with readers.reading() as database:
        return int(database.counters()["n0000"])


def test_a_connection_is_lent_again_to_another_thread_and_sees_what_was_committed_since(
    index: Path, readers: Readers
) -> None:
    with readers.reading() as first, readers.reading() as second:
        assert first is not second
    assert seen(readers) == 1
    with Database(index) as writer, writer.immediate():
        writer.count("n0000")
    found = list[tuple[bool, int]]()

    def ask() -> None:
        with readers.reading() as database:
            found.append((database in {first, second}, database.counters()["n0000"]))

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()
    assert found == [(True, 2)]


def test_a_statement_that_was_left_in_its_midst_holds_up_no_commit(
    index: Path, readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only without WAL does a reader hold up a commit.
    monkeypatch.setenv("CTNODE_TEST_JOURNAL", "truncate")
    with Database(index) as writer:
        with readers.reading() as database:
            left = database.execute("SELECT name FROM counters ORDER BY name")
            assert left.fetchone() == ("n0000",)
        writer.connection.execute("PRAGMA busy_timeout = 0")
        with writer.immediate():
            writer.count("n0000")
    assert seen(readers) == 2


def test_what_is_read_at_once_is_of_one_moment_and_under_one_lock(
    index: Path, readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CTNODE_TEST_JOURNAL", "truncate")
    with Database(index) as writer, readers.reading() as database:
        writer.connection.execute("PRAGMA busy_timeout = 0")
        with database.at_once():
            assert database.counters()["n0000"] == 1
            with database.at_once(), pytest.raises(sqlite3.OperationalError, match="locked"), writer.immediate():
                writer.count("n0000")
            assert database.counters()["n0000"] == 1
        with writer.immediate():
            writer.count("n0000")
        assert database.counters()["n0000"] == 2


def test_another_index_in_the_same_place_is_the_one_that_is_read(index: Path, readers: Readers) -> None:
    assert seen(readers) == 1
    other = index.with_name("other.db")
    shutil.copy(index, other)
    with Database(other) as writer, writer.immediate():
        writer.count("n0000", 41)
    other.replace(index)
    assert seen(readers) == 42
    index.unlink()
    with pytest.raises(Unavailable, match="no index"):
        seen(readers)


def test_a_schema_that_became_another_is_looked_at_again(index: Path, readers: Readers) -> None:
    assert seen(readers) == 1
    with Database(index) as writer:
        writer.execute("DELETE FROM _sqlite_migrations WHERE name = '0013_web'")
        writer.execute("CREATE TABLE changed (id INTEGER)")
        writer.connection.commit()
    with pytest.raises(Unavailable, match="older ctnode"):
        seen(readers)
