"""The index file: both journal modes, migrations, transactions, and plans that never walk a large table."""

from __future__ import annotations

import multiprocessing
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import sqlite_utils

from ctnode.archive import catalog, jobs, lanes, outbox, proofs, revisions
from ctnode.archive import database as database_module
from ctnode.archive.database import Database, copy_to, journal_mode, wal_is_safe
from ctnode.archive.migrations import MIGRATIONS
from ctnode.config import Completion
from ctnode.flow.waiting import WaitingRoom
from ctnode.words import Unavailable
from tests.archive_root import Image, Root, stack

pytestmark = pytest.mark.integration

MODES = ("wal", "truncate")


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CTNODE_TEST_JOURNAL", request.param)
    return str(request.param)


@contextmanager
def fresh(path: Path) -> Iterator[Database]:
    with Database(path) as database:
        database.migrate()
        yield database


@pytest.mark.parametrize(
    ("version", "is_safe"),
    [
        ((3, 40, 1), False), ((3, 44, 5), False), ((3, 44, 6), True), ((3, 45, 9), False), ((3, 50, 6), False),
        ((3, 50, 7), True), ((3, 51, 2), False), ((3, 51, 3), True), ((3, 52, 0), True), ((4, 0, 0), True),
    ],
)  # fmt: skip
def test_wal_only_where_its_reset_bug_is_mended(version: tuple[int, int, int], is_safe: bool) -> None:
    assert wal_is_safe(version) is is_safe


def test_journal_mode_and_durability_are_what_was_promised(tmp_path: Path, mode: str) -> None:
    assert journal_mode() == mode
    with fresh(tmp_path / "ctnode.db") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == (mode,)
        assert database.execute("PRAGMA synchronous").fetchone() == (2,)
        assert database.execute("PRAGMA foreign_keys").fetchone() == (1,)


def test_a_node_lives_in_either_mode(tmp_path: Path, mode: str) -> None:
    root = Root(tmp_path / "node")
    root.queued(*stack(3))
    lease = jobs.claim(root.database, "one")
    assert lease is not None
    root.restart()
    jobs.finish(root.database, lease, [], "", lambda _newest: None)
    assert root.breaches() == []
    with Database(root.layout.database, readonly=True) as reader:
        assert catalog.by_id(reader, 1).state == "DONE"
    root.close()


def test_a_root_may_be_called_anything(tmp_path: Path) -> None:
    place = tmp_path / "100% of #1? ünï & more"
    root = Root(place)
    root.hold(Image("1.2.3.1.1"))
    root.close()
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    with Database(place / "ctnode.db", readonly=True) as reader:
        assert reader.counters()["instances"] == 1


def test_a_reader_makes_no_file_and_changes_none(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        Database(tmp_path / "ctnode.db", readonly=True)
    assert list(tmp_path.iterdir()) == []
    with fresh(tmp_path / "ctnode.db"):
        pass
    with Database(tmp_path / "ctnode.db", readonly=True) as reader, pytest.raises(sqlite3.OperationalError):
        reader.execute("DELETE FROM counters")


def test_migrating_twice_changes_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        with fresh(tmp_path / "ctnode.db"):
            pass
    assert not list(tmp_path.glob("*before-migration*"))


def _migrate(path: str, go: object, answers: object) -> None:
    go.wait()  # type: ignore[attr-defined]
    try:
        with fresh(Path(path)) as database:
            answers.put(database.counters())  # type: ignore[attr-defined]
    except BaseException as error:
        answers.put(repr(error))  # type: ignore[attr-defined]


def test_roles_that_start_together_make_the_schema_once(tmp_path: Path, mode: str) -> None:
    context = multiprocessing.get_context("spawn")
    go, answers = context.Event(), context.Queue()
    processes = [context.Process(target=_migrate, args=(str(tmp_path / "ctnode.db"), go, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    go.set()
    assert [answers.get(timeout=60) for _ in processes] == [{}, {}, {}]
    for process in processes:
        process.join()
    answers.close()
    answers.join_thread()


@pytest.fixture
def second_migration() -> Iterator[list[str]]:
    """Pretend that a later version of the schema exists."""
    ran: list[str] = []

    @MIGRATIONS(name="0002_pretended")
    def pretended(db: sqlite_utils.Database) -> None:
        ran.append("ran")
        db.execute("CREATE TABLE pretended (id INTEGER PRIMARY KEY)")

    yield ran
    MIGRATIONS._migrations.pop()


def test_a_migration_backs_up_first(tmp_path: Path, second_migration: list[str]) -> None:
    later = MIGRATIONS._migrations.pop()
    with fresh(tmp_path / "ctnode.db") as database:
        database.tables["counters"].insert({"name": "mark", "value": 7})
    MIGRATIONS._migrations.append(later)
    with fresh(tmp_path / "ctnode.db") as database:
        assert database.counters() == {"mark": 7}
    assert second_migration == ["ran"]
    (backup,) = tmp_path.glob("ctnode.db.before-migration-*")
    with Database(backup, readonly=True) as old:
        assert old.counters() == {"mark": 7}
        assert "pretended" not in old.tables.table_names()


def test_an_older_schema_is_not_read(tmp_path: Path, second_migration: list[str]) -> None:
    later = MIGRATIONS._migrations.pop()
    with fresh(tmp_path / "ctnode.db"):
        pass
    MIGRATIONS._migrations.append(later)
    with (
        Database(tmp_path / "ctnode.db", readonly=True) as database,
        pytest.raises(Unavailable, match="of an older ctnode"),
    ):
        database.require_current()
    with fresh(tmp_path / "ctnode.db") as database:
        database.require_current()


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    with fresh(tmp_path / "ctnode.db"):
        pass

    @MIGRATIONS(name="0002_broken")
    def broken(db: sqlite_utils.Database) -> None:
        db.execute("CREATE TABLE half (id INTEGER PRIMARY KEY)")
        raise RuntimeError("power cut")

    try:
        with Database(tmp_path / "ctnode.db") as database, pytest.raises(RuntimeError):
            database.migrate()
    finally:
        MIGRATIONS._migrations.pop()
    with fresh(tmp_path / "ctnode.db") as database:
        assert "half" not in database.tables.table_names()


def test_a_newer_schema_is_refused_and_untouched(tmp_path: Path, second_migration: list[str]) -> None:
    with fresh(tmp_path / "ctnode.db"):
        pass
    later = MIGRATIONS._migrations.pop()
    try:
        before = (tmp_path / "ctnode.db").read_bytes()
        with Database(tmp_path / "ctnode.db") as database, pytest.raises(Unavailable, match="0002_pretended"):
            database.migrate()
        assert (tmp_path / "ctnode.db").read_bytes() == before
    finally:
        MIGRATIONS._migrations.append(later)


def test_an_immediate_transaction_holds_the_write_lock_from_its_start(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_S", 0.0)
    with fresh(tmp_path / "ctnode.db") as one, Database(tmp_path / "ctnode.db") as two:
        with one.immediate():
            with pytest.raises(sqlite3.OperationalError, match="locked"), two.immediate():
                pass
            one.count("mark")
        with two.immediate():
            two.count("mark")
        assert one.counters() == {"mark": 2}


def test_an_exception_rolls_back_and_the_next_transaction_works(tmp_path: Path) -> None:
    with fresh(tmp_path / "ctnode.db") as database:
        with suppress(KeyError), database.immediate():
            database.count("mark")
            raise KeyError
        assert database.counters() == {}
        with database.immediate():
            database.count("mark")
        assert database.counters() == {"mark": 1}


def test_a_commit_that_fails_leaves_no_transaction_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_S", 0.0)
    monkeypatch.setenv("CTNODE_TEST_JOURNAL", "truncate")
    with fresh(tmp_path / "ctnode.db") as writer, Database(tmp_path / "ctnode.db", readonly=True) as reader:
        cursor = reader.execute("SELECT name FROM sqlite_master")
        cursor.fetchone()
        with pytest.raises(sqlite3.OperationalError, match="locked"), writer.immediate():
            writer.count("mark")
        cursor.fetchall()
        with writer.immediate():
            writer.count("mark")
        assert writer.counters() == {"mark": 1}


def test_states_are_counted_by_the_writer(tmp_path: Path) -> None:
    root = Root(tmp_path / "node")
    root.queued(*stack(2))
    root.hold(*stack(2, series="1.2.3.2"))
    counters = root.database.counters()
    assert (counters["revisions.QUEUED"], counters["revisions.RECEIVING"], counters["jobs.QUEUED"]) == (1, 1, 1)
    assert "revisions.COMPLETE" not in counters
    assert (counters["instances"], counters["series"], counters["studies"]) == (4, 2, 1)
    root.close()


def test_a_copy_is_whole_and_stands_alone(tmp_path: Path, mode: str) -> None:
    with fresh(tmp_path / "ctnode.db") as database:
        steps = []
        with database.immediate():
            for k in range(2000):
                database.count(f"name {k}")
        copy_to(database.connection, tmp_path / "copy", pages=4, between=lambda *_: steps.append(1))
    assert len(steps) > 1
    assert sorted(path.name for path in tmp_path.iterdir() if "copy" in path.name) == ["copy"]
    with Database(tmp_path / "copy", readonly=True) as copy:
        assert len(copy.counters()) == 2000


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise OSError("no space")

    with fresh(tmp_path / "ctnode.db") as database:
        (tmp_path / "other").write_bytes(b"older copy")
        with pytest.raises(OSError, match="no space"):
            copy_to(database.connection, tmp_path / "other", pages=1, between=stop)
    assert not list(tmp_path.glob(".other*"))
    assert (tmp_path / "other").read_bytes() == b"older copy"


# --------------------------------------------------------------------------------------------- the plans

ALIASES = {"r", "o", "a", "fed", "i", "keyed"}
LARGE = {"instances", "revisions", "jobs", "deliveries", "timeline", "associations", "association_series"} | ALIASES
PARTIAL = {"jobs_open", "deliveries_open", "revisions_waiting"}


class Plans:
    """Runs every statement and remembers how SQLite goes about it."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.scans: list[str] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        statements: list[str] = []
        connection = self.root.database.connection
        connection.set_trace_callback(statements.append)
        try:
            yield
        finally:
            connection.set_trace_callback(None)
        for statement in statements:
            if statement.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE", "INSERT")):
                for *_, detail in connection.execute(f"EXPLAIN QUERY PLAN {statement}"):
                    words = detail.split()
                    if words[:1] == ["SCAN"] and words[1] in LARGE and words[-1] not in PARTIAL:
                        self.scans.append(f"{detail}: {statement}")


def test_what_a_running_node_asks_walks_no_large_table(tmp_path: Path) -> None:
    root = Root(tmp_path / "node")
    for k in range(5):
        root.queued(*stack(4, series=f"1.2.3.{k + 1}"))
    plans = Plans(root)
    with plans.watch():
        root.hold(*stack(3, series="1.2.3.77"), Image("1.2.3.1.55"), Image("1.2.3.1.55", pixels=b"4321"))
        root.hold(*stack(2, series="1.2.3.77"))
        room = WaitingRoom(root.database)
        room.restore()
        room.touch([6])
        scan = root.settler.scan()
        room.ripe(time.monotonic() + 100, scan.open_associations, Completion())
        revisions.startable(root.database)
        root.complete(6)
        lease = jobs.claim(root.database, "one")
        assert lease is not None
        jobs.renew(root.database, lease)
        parcels = [outbox.Parcel("pacs", "report", f"{k}", "d") for k in range(3)]
        jobs.finish(root.database, lease, [], "", lambda _: outbox.post(root.database, lease.revision_id, parcels))
        lanes.due(root.database)
        for delivery in outbox.claim(root.database, "pacs", "one"):
            outbox.sent(root.database, delivery, 0, "")
        lanes.backlog(root.database, "pacs", 60.0)
        lanes.waiting_series(root.database, "pacs")
        lanes.senders(root.database, 1)
        proofs.due(root.database, "pacs")
        proofs.report(root.database, "2.25.1", [])
        outbox.listed(root.database, state="DEAD")
        outbox.attempts(root.database, 1)
        jobs.release_interrupted(root.database, "nobody")
        jobs.listing(root.database)
        jobs.pending(root.database)
        jobs.of_series(root.database, 1)
        outbox.of_series(root.database, 1)
        catalog.find(root.database, "1.2.3.1")
        catalog.associations_of(root.database, 1)
        revisions.frozen_paths(root.database, 1)
        root.database.counters()
    root.close()
    # What is shown newest first walks its own table from the end and stops at the limit.
    allowed = ("ORDER BY jobs.id DESC LIMIT",)
    found = [scan for scan in plans.scans if not any(word in scan for word in allowed)]
    assert found == []
