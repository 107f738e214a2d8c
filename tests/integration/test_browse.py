"""Lists of series: what fits, page by page, and never more of the index in one statement than a piece."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ctnode.archive import browse
from ctnode.archive.browse import Filter
from ctnode.archive.database import Database

pytestmark = pytest.mark.integration

COUNT = 1300


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """Return an index of many series: every fifth SUSPECT, every seventh FAILED, one held, one of MR, one revised."""
    with Database(tmp_path_factory.mktemp("browse") / "ctnode.db") as index:
        index.migrate()
        with index.immediate():
            fill(index)
        yield index


def fill(index: Database) -> None:
    for name in ("CT1", "MR1"):
        index.insert(
            "INSERT INTO associations (name, door, calling_ae, called_ae, peer_address, opened_at) VALUES"
            " (?, 'network', ?, 'X', '1.1.1.1:1', 0)",
            (name, name),
        )
    for number in range(1, COUNT + 1):
        index.insert(
            "INSERT INTO studies (uid, state, first_at, last_at) VALUES (?, 'OPEN', 0, 0)",
            (f"1.2.{number % 9}.{number}",),
        )
        index.insert(
            "INSERT INTO series (study_id, uid, split, modality, patient_key, frame_of_reference, rows, columns,"
            " first_at, last_at, hold) VALUES (?, ?, 1, ?, '', '', 1, 1, ?, 0, ?)",
            (number, f"9.8.{number}", "MR" if number == 3 else "CT", number, "x" if number == 5 else ""),
        )
        index.execute(
            "INSERT INTO association_series (association_id, series_id, last_arrival) VALUES (?, ?, 0)",
            (2 if number == 3 else 1, number),
        )
        state, verdict = "FAILED" if number % 7 == 0 else "DONE", "SUSPECT" if number % 5 == 0 else "LIKELY"
        index.insert(
            "INSERT INTO revisions (series_id, n, state, opened_at, last_arrival, quiet_s, deadline, verdict)"
            " VALUES (?, 1, ?, 0, 0, 1, 0, ?)",
            (number, "SUPERSEDED" if number == 10 else state, verdict),
        )
    index.insert(
        "INSERT INTO revisions (series_id, n, state, opened_at, last_arrival, quiet_s, deadline, verdict)"
        " VALUES (10, 2, 'QUEUED', 0, 0, 1, 0, 'COMPLETE')"
    )


def every(database: Database, wanted: Filter) -> list[int]:
    """Return the keys of all pages."""
    found: list[int] = []
    before: int | None = browse.NEWEST
    for _ in range(100):
        assert before is not None
        page = browse.series(database, wanted, before=before)
        found += [line.id for line in page.lines]
        before = page.before
        if before is None:
            return found
    raise AssertionError("the pages never end")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Filter(), range(1, COUNT + 1)),
        (Filter(state="FAILED"), range(7, COUNT + 1, 7)),
        (Filter(verdict="SUSPECT"), [k for k in range(5, COUNT + 1, 5) if k != 10]),
        (Filter(state="FAILED", verdict="SUSPECT"), range(35, COUNT + 1, 35)),
        (Filter(state="QUEUED"), [10]),
        (Filter(modality="MR"), [3]),
        (Filter(flag="held"), [5]),
        (Filter(flag="flagged"), []),
        (Filter(text="MR1"), [3]),
        (Filter(text="NOBODY"), []),
        (Filter(text="9.8.77"), [77, *range(770, 780)]),
        (Filter(text="1.2.4."), range(4, COUNT + 1, 9)),
        (Filter(text="9.8.3", modality="MR"), [3]),
        (Filter(text="5.5.5"), []),
        (Filter(text="%"), []),
        (Filter(text="' OR 1"), []),
    ],
)
def test_each_filter_shows_all_that_fits_and_each_once(database: Database, wanted: Filter, expected: list[int]) -> None:
    assert every(database, wanted) == sorted(expected, reverse=True)


def test_a_line_tells_the_newest_revision_and_who_sent(database: Database) -> None:
    (line,) = browse.series(database, Filter(text="9.8.10"), limit=1000).lines[-1:]
    assert (line.name, line.revision, line.state, line.verdict, line.sender) == (
        "9.8.10",
        2,
        "QUEUED",
        "COMPLETE",
        "CT1",
    )


def test_no_statement_of_a_list_scans_a_table_without_bound(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browse, "PIECE", 20)
    monkeypatch.setattr(browse, "PIECES_LIMIT", 5)
    steps: list[int] = []

    def count() -> int:
        steps[-1] += 1
        return 0

    database.connection.set_progress_handler(count, 100)
    database.connection.set_trace_callback(lambda _statement: steps.append(0))
    try:
        for wanted in (Filter(), Filter(state="FAILED"), Filter(verdict="SUSPECT"), Filter(text="NOBODY"),
                       Filter(modality="XX"), Filter(flag="held"), Filter(flag="flagged")):  # fmt: skip
            page = browse.series(database, wanted, before=COUNT)
            assert page.before is None or page.before < COUNT
    finally:
        database.connection.set_progress_handler(None, 0)
        database.connection.set_trace_callback(None)
    # Each looked at 20 series of 1300; one that looks at all takes over 30,000 instructions of SQLite.
    assert max(steps) < 60, steps


def test_a_search_that_finds_nothing_for_long_says_where_to_go_on(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browse, "PIECE", 100)
    monkeypatch.setattr(browse, "PIECES_LIMIT", 3)
    page = browse.series(database, Filter(text="MR1"))
    assert page.lines == ()
    assert page.is_cut
    assert page.before == COUNT - 300 + 1
    assert every(database, Filter(text="MR1")) == [3]
