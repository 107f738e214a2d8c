"""The files are the truth: an index made anew says the same, an old one learns what came later, and nothing starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctnode.archive import catalog, jobs, rebuild, revisions
from ctnode.archive.database import Database, copy_to
from ctnode.words import RevisionState
from tests.archive_root import SECONDARY_CAPTURE, SERIES, STUDY, Image, Root, stack

pytestmark = pytest.mark.integration

TRUTH = (
    "SELECT studies.uid, series.uid, split, sop_instance, sop_class, transfer_syntax, digest, path, instances.bytes,"
    " instance_number, position_mm, is_localizer, is_current FROM instances"
    " JOIN series ON series.id = series_id JOIN studies ON studies.id = study_id ORDER BY path"
)
SERIES_TRUTH = (
    "SELECT studies.uid, series.uid, split, modality, patient_key, frame_of_reference, rows, columns, instances,"
    " ct_instances, own_instances, bytes, flags FROM series JOIN studies ON studies.id = study_id"
    " ORDER BY studies.uid, series.uid, split"
)


@pytest.fixture
def root(tmp_path: Path):
    node = Root(tmp_path / "node")
    yield node
    node.close()


def fill(root: Root) -> None:
    """Bring in what an index can hold."""
    root.hold(*stack(3))
    root.hold(Image(f"{SERIES}.2", position=2.5, number="2", pixels=b"9999"))
    root.hold(Image(f"{SERIES}.1", patient="P2"))
    root.hold(*stack(2, series="1.2.3.2"))
    root.hold(Image("a b", study="1.02", series="ü"))
    root.hold(Image("1.2.3.5.1", series="1.2.3.5", sop_class=SECONDARY_CAPTURE, modality="OT", manufacturer="ctnode"))
    root.hold(Image("1.2.3.6.1", series="1.2.3.6", sop_class=SECONDARY_CAPTURE, modality="OT"))


def results(root: Root, series: str, *revisions_: int) -> None:
    for n in revisions_:
        folder = root.layout.results / STUDY / series / f"r{n}"
        folder.mkdir(parents=True)
        (folder / "ct.json").write_text("{}")
    (root.layout.results / STUDY / series / ".tmp-1-1").mkdir(exist_ok=True)


def anew(root: Root) -> rebuild.Rebuilt:
    root.database.close()
    assert rebuild.set_aside(root.layout) is not None
    root._open()
    return rebuild.rebuild(root.database, root.layout)


def test_an_index_made_anew_says_the_same_of_every_file(root: Root) -> None:
    fill(root)
    before = [root.rows(statement) for statement in (TRUTH, SERIES_TRUTH)]
    counted = {name: root.database.counters()[name] for name in ("instances", "series", "studies", "bytes")}
    found = anew(root)
    assert [root.rows(statement) for statement in (TRUTH, SERIES_TRUTH)] == before
    assert {name: root.database.counters()[name] for name in counted} == counted
    assert found.instances == counted["instances"]
    assert found.unreadable == ()
    assert root.breaches() == []


def test_what_has_results_is_done_and_the_rest_is_held(root: Root) -> None:
    fill(root)
    results(root, SERIES, 1, 2)
    found = anew(root)
    states = {
        record.name: (record.revision, str(record.state), record.hold)
        for record in catalog.listing(root.database)
        if record.study == STUDY
    }
    assert states == {
        SERIES: (2, "DONE", ""),
        f"{SERIES}~2": (1, "COMPLETE", "rebuilt"),
        "1.2.3.2": (1, "COMPLETE", "rebuilt"),
        "1.2.3.5": (1, "KEPT", ""),
        "1.2.3.6": (1, "KEPT", ""),
    }
    assert root.rows("SELECT n, state FROM revisions WHERE series_id = 1") == [(1, "SUPERSEDED"), (2, "DONE")]
    assert (found.done, found.held) == (1, 3)


def test_nothing_is_queued_and_nothing_sent(root: Root) -> None:
    fill(root)
    results(root, SERIES, 1)
    anew(root)
    assert root.one("SELECT count(*) FROM jobs") == 0
    assert root.one("SELECT count(*) FROM deliveries") == 0
    assert revisions.startable(root.database) == ()
    assert revisions.receiving(root.database) == ()


def test_a_held_series_runs_when_asked_for_and_a_done_one_too(root: Root) -> None:
    fill(root)
    results(root, "1.2.3.2", 1)
    anew(root)
    for name in (SERIES, "1.2.3.2"):
        record = catalog.find(root.database, name)
        assert revisions.requeue(root.database, record.id).state is RevisionState.QUEUED
        assert len(revisions.frozen_paths(root.database, revisions.newest(root.database, record.id).id)) > 1
    assert jobs.pending(root.database) == 2
    assert root.breaches() == []


def test_what_arrives_afterwards_goes_on_as_ever(root: Root) -> None:
    root.hold(*stack(3))
    results(root, SERIES, 1)
    anew(root)
    root.hold(*stack(3))
    assert root.one("SELECT duplicates FROM series") == 3
    assert root.rows("SELECT n, state FROM revisions") == [(1, "DONE")]
    root.hold(Image(f"{SERIES}.9", position=7.5))
    assert root.rows("SELECT n, state FROM revisions ORDER BY n") == [(1, "SUPERSEDED"), (2, "RECEIVING")]


def test_what_still_waited_in_the_journal_comes_in_afterwards(root: Root) -> None:
    root.hold(*stack(2))
    root.push([Image(f"{SERIES}.9", position=7.5)])
    anew(root)
    root.settle()
    assert root.one("SELECT instances FROM series") == 3
    assert root.breaches() == []


def test_a_file_that_is_none_is_named_and_stops_nobody(root: Root) -> None:
    root.hold(*stack(2))
    folder = root.layout.store / STUDY / SERIES
    (folder / "rubbish.dcm").write_bytes(b"x")
    (folder / "copy.dcm").write_bytes((folder / f"{SERIES}.1.dcm").read_bytes())
    found = anew(root)
    assert found.instances == 2
    assert {line.partition(":")[0].rpartition("/")[2] for line in found.unreadable} == {"copy.dcm", "rubbish.dcm"}


def test_rebuilding_twice_changes_nothing(root: Root) -> None:
    fill(root)
    anew(root)
    before = root.rows(TRUTH), root.rows("SELECT series_id, n, state FROM revisions ORDER BY id")
    again = rebuild.rebuild(root.database, root.layout)
    assert (again.instances, again.series) == (0, 0)
    assert (root.rows(TRUTH), root.rows("SELECT series_id, n, state FROM revisions ORDER BY id")) == before


# ---------------------------------------------------------------------------------- an old copy comes back


def restore(root: Root, copy: Path) -> rebuild.Rebuilt:
    root.database.close()
    rebuild.set_aside(root.layout)
    with Database(copy, readonly=True) as old:
        copy_to(old.connection, root.layout.database)
    root._open()
    return rebuild.rebuild(root.database, root.layout)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "copy.db"


def test_an_old_copy_picks_up_what_came_later(root: Root, copy: Path) -> None:
    root.queued(*stack(3))
    lease = jobs.claim(root.database, "one")
    assert lease is not None
    jobs.finish(root.database, lease, [], "", lambda _newest: None)
    results(root, SERIES, 1)
    copy_to(root.database.connection, copy)
    root.hold(*stack(2, series="1.2.3.2"))
    root.hold(Image(f"{SERIES}.9", position=7.5))
    truth = root.rows(TRUTH)
    found = restore(root, copy)
    assert found.instances == 3
    assert root.rows(TRUTH) == truth
    assert root.rows("SELECT n, state FROM revisions WHERE series_id = 1 ORDER BY n") == [
        (1, "SUPERSEDED"), (2, "COMPLETE")
    ]  # fmt: skip
    assert revisions.startable(root.database) == ()
    assert jobs.claim(root.database, "one") is None
    assert root.breaches() == []


@pytest.mark.parametrize("published", [(1,), (1, 2)])
def test_a_series_that_was_receiving_in_the_copy(root: Root, copy: Path, published: tuple[int, ...]) -> None:
    """What came later shows that its revision had ended; the node goes on from there without a stumble."""
    root.hold(*stack(2))
    copy_to(root.database.connection, copy)
    root.hold(Image(f"{SERIES}.3", position=5.0))
    results(root, SERIES, *published)
    restore(root, copy)
    newest = revisions.newest(root.database, 1)
    assert newest.state in {RevisionState.DONE, RevisionState.COMPLETE}
    assert revisions.receiving(root.database) == ()
    assert revisions.startable(root.database) == ()
    root.hold(Image(f"{SERIES}.9", position=7.5))
    assert root.rows("SELECT n FROM revisions WHERE state = 'RECEIVING'") == [(newest.n + 1,)]
    root.complete()
    assert len(json.loads(str(root.one("SELECT instances FROM revisions ORDER BY n DESC LIMIT 1")))) == 4
    assert root.breaches() == []


def test_a_series_that_is_receiving_without_results_goes_on_receiving(root: Root, copy: Path) -> None:
    root.hold(*stack(2))
    copy_to(root.database.connection, copy)
    root.hold(Image(f"{SERIES}.3", position=5.0))
    restore(root, copy)
    assert root.rows("SELECT n, state FROM revisions") == [(1, "RECEIVING")]
    root.complete()
    assert len(json.loads(str(root.one("SELECT instances FROM revisions")))) == 3


def test_a_series_that_was_queued_in_the_copy_is_superseded_by_what_came_later(root: Root, copy: Path) -> None:
    root.queued(*stack(2))
    copy_to(root.database.connection, copy)
    root.hold(Image(f"{SERIES}.3", position=5.0))
    restore(root, copy)
    assert jobs.claim(root.database, "one") is None
    assert root.rows("SELECT n, state FROM revisions ORDER BY n") == [(1, "SUPERSEDED"), (2, "COMPLETE")]
    assert root.breaches() == []


@pytest.mark.parametrize("published", [(), (1, 2)])
def test_a_series_that_was_being_processed_in_the_copy(root: Root, copy: Path, published: tuple[int, ...]) -> None:
    root.queued(*stack(2))
    assert jobs.claim(root.database, "one") is not None
    copy_to(root.database.connection, copy)
    root.hold(Image(f"{SERIES}.3", position=5.0))
    if published:
        results(root, SERIES, *published)
    restore(root, copy)
    assert root.breaches() == []
    root.hold(Image(f"{SERIES}.9", position=7.5))
    assert root.breaches() == []
    states = dict(root.rows("SELECT n, state FROM revisions"))
    assert states[max(states)] == "RECEIVING"
