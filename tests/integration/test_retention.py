"""Retention deletes by rule, step by step, leaves tombstones, and survives the end of the process at any step."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from ctnode.archive import holdings, outbox, rebuild, removal, revisions, tombstones
from ctnode.archive.database import copy_to
from ctnode.archive.outbox import Parcel
from ctnode.archive.retention import Going, Kind
from ctnode.cli import cli
from ctnode.config import Retention
from ctnode.flow.retaining import Retainer
from ctnode.words import DeliveryEvent, RevisionEvent, WrongState
from tests.archive_root import SERIES, STUDY, Image, Root, stack, without_syncs

pytestmark = pytest.mark.integration

AT_ONCE = Retention(originals_days=1e-9, results_days=1e-9, floor_days=0)
DAY_S = 86400.0
POINTS = (
    "retention.begun", "retention.marked", "retention.before-unlink", "retention.unlinked", "retention.before-commit",
    "retention.committed", "retention.renamed", "retention.before-rmtree",
)  # fmt: skip


class Crash(Exception):
    """The end of the process, as far as one process can have it."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Root]:
    without_syncs(monkeypatch)
    node = Root(tmp_path / "node")
    yield node
    node.close()


def done(root: Root, *images: Image, results: bool = True) -> revisions.Revision:
    """Bring a series to its end, with a results folder."""
    revision = root.queued(*images)
    with root.database.immediate():
        revisions.move(root.database, revision.id, RevisionEvent.CLAIM)
        revisions.move(root.database, revision.id, RevisionEvent.FINISH)
        root.database.execute("UPDATE jobs SET state = 'DONE', ended_at = ? WHERE revision_id = ?",
                              (time.time(), revision.id))  # fmt: skip
        root.database.execute("UPDATE studies SET is_routed = 1")
    if results:
        folder = root.layout.result_directory(images[0].study, images[0].series, 1, revision.n)
        folder.mkdir(parents=True)
        for name in ("ct.json", "report.dcm", "ct.nii.gz"):
            (folder / name).write_bytes(b"{}" * 50)
    return revisions.get(root.database, revision.id)


def retain(root: Root, settings: Retention = AT_ONCE, *, days: float = 0.0) -> int:
    """Let the keeper's part run until nothing is to do, some days from now; return the number of its steps."""
    clock = iter(range(10**6))
    retainer = Retainer(
        root.database, root.layout, monotonic=lambda: float(next(clock)), wall=lambda: time.time() + days * DAY_S
    )
    steps = 0
    while steps == 0 or retainer.pause_s() is not None:
        retainer.step(settings)
        steps += 1
        assert steps < 5000, "it never comes to an end"
    return steps


def stays(root: Root, kind: Kind = Kind.ORIGINALS) -> str:
    """Return why the only unit stays."""
    (unit,) = holdings.units_of(root.database, root.layout, 1, frozenset({kind}))
    return "; ".join(unit.blocks)


def test_what_a_rule_lets_go_goes_with_its_files_and_leaves_tombstones(root: Root) -> None:
    done(root, *stack(3))
    retain(root)
    assert root.files("store") == root.files("results") == []
    assert not list(root.layout.store.iterdir())
    assert root.one("SELECT count(*) FROM instances") == 0
    assert root.rows("SELECT sop_instance, rule FROM tombstones") == [
        (f"{SERIES}.{n}", "older than 1e-09 days") for n in (1, 2, 3)
    ]
    assert root.rows("SELECT instances, bytes, deleted FROM series") == [(0, 0, 3)]
    assert root.files("tombstones") == [f"{STUDY}/{SERIES}.jsonl"]
    told = [str(row[0]) for row in root.rows("SELECT text FROM timeline WHERE kind = 'retention' ORDER BY id")]
    assert any(line.startswith("originals go: 3 files") for line in told)
    assert any(line.startswith("3 files of the results") for line in told)
    assert root.breaches() == []


def test_without_rules_nothing_goes(root: Root) -> None:
    done(root, *stack(2))
    retain(root, Retention(), days=36000)
    assert len(root.files("store")) == 2


def test_the_floor_keeps_what_is_new(root: Root) -> None:
    done(root, *stack(2))
    retain(root, Retention(originals_days=1e-9), days=0.5)
    assert len(root.files("store")) == 2
    retain(root, Retention(originals_days=1e-9), days=1.5)
    assert root.files("store") == []


def test_space_goes_down_to_the_low_mark_oldest_first(root: Root) -> None:
    for number in range(4):
        done(root, *stack(2, study=f"1.2.{number}", series=f"1.2.{number}.1"), results=False)
    each = int(str(root.one("SELECT bytes FROM series WHERE id = 1")))
    marks = (2.5 * each / 1e9, 3.5 * each / 1e9)
    retain(root, Retention(originals_gb=marks, floor_days=0))
    assert root.rows("SELECT id FROM series WHERE instances > 0") == [(3,), (4,)]
    assert root.breaches() == []


def test_what_is_held_unprocessed_or_undelivered_stays_and_says_why(root: Root) -> None:
    revision = done(root, *stack(2))
    with root.database.immediate():
        root.database.execute("UPDATE series SET hold = 'by me'")
    assert stays(root) == "held: by me"
    with root.database.immediate():
        root.database.execute("UPDATE series SET hold = ''")
        outbox.post(root.database, revision.id, [Parcel("pacs", "report", "x/report.dcm", "d")])
    assert stays(root) == "1 objects are not delivered yet"
    (claimed,) = outbox.claim(root.database, "pacs", "me")
    outbox.failed(root.database, claimed, 0xA900, "no", wait_s=None)
    assert stays(root, Kind.RESULTS) == "1 deliveries were given up: retry or cancel them"
    with root.database.immediate():
        outbox.requeue(root.database, claimed.id)
    (claimed,) = outbox.claim(root.database, "pacs", "me")
    outbox.settle(root.database, [outbox.Ending(claimed, DeliveryEvent.SEND, 0, proof_s=60.0)])
    assert stays(root) == "the arrival of 1 objects is not proved yet"
    retain(root)
    assert len(root.files("store")) == 2
    with root.database.immediate():
        outbox.confirm(root.database, claimed.id, "asked")
    assert stays(root) == ""
    retain(root)
    assert root.files("store") == []


@pytest.mark.parametrize("state", ["RECEIVING", "COMPLETE", "QUEUED", "PROCESSING", "FAILED"])
def test_a_revision_that_is_not_settled_keeps_its_series(root: Root, state: str) -> None:
    revision = done(root, *stack(2))
    with root.database.immediate():
        root.database.execute("UPDATE revisions SET state = ? WHERE id = ?", (state, revision.id))
    retain(root)
    assert len(root.files("store")) == 2
    assert f"revision 1 is {state}" in stays(root)


def test_a_resend_of_what_was_deleted_is_known_and_kept_as_what_it_was(root: Root) -> None:
    revision = done(root, *stack(3))
    retain(root)
    assert root.hold(*stack(2))
    assert root.rows("SELECT n, state FROM revisions") == [(1, "DONE")]
    assert len(root.files("store")) == 2
    assert root.rows("SELECT instances, duplicates, deleted FROM series") == [(2, 2, 1)]
    assert root.rows("SELECT text FROM timeline WHERE kind = 'returned'") == [
        ("2 images that retention had deleted came again and are kept again",)
    ]
    with pytest.raises(WrongState, match="1 of the 3 images"):
        revisions.requeue(root.database, 1)
    with pytest.raises(WrongState, match="1 of its 3 images"):
        revisions.frozen_paths(root.database, revision.id)
    root.hold(*stack(3))
    assert len(revisions.frozen_paths(root.database, revision.id)) == 3
    assert root.breaches() == []
    revisions.requeue(root.database, 1)


def test_what_came_back_goes_again_by_the_same_rule(root: Root) -> None:
    done(root, *stack(3))
    retain(root)
    root.hold(*stack(2))
    retain(root)
    assert root.files("store") == []
    assert root.rows("SELECT instances, deleted FROM series") == [(0, 3)]
    assert root.breaches() == []


def test_a_series_waits_for_the_others_of_its_study(root: Root) -> None:
    done(root, *stack(2))
    root.hold(*stack(2, series="1.2.3.2"))
    assert stays(root) == "its study is not complete yet"


def test_a_resend_is_dropped_where_the_operator_wants_that(root: Root) -> None:
    done(root, *stack(3))
    retain(root)
    root.index.keeps_resent = False
    root.hold(*stack(3))
    assert root.files("store") == root.files("incoming") == []
    assert root.rows("SELECT instances, duplicates, deleted FROM series") == [(0, 3, 3)]
    assert "dropped" in str(root.one("SELECT text FROM timeline WHERE kind = 'returned'"))
    assert root.breaches() == []


def test_the_number_of_a_deleted_image_is_never_given_to_another(root: Root) -> None:
    revision = done(root, *stack(3))
    retain(root)
    root.hold(Image("9.9.1", study="9.9", series="9.9.9", patient="P9"))
    assert root.rows("SELECT id FROM instances") == [(4,)]
    with pytest.raises(WrongState):
        revisions.frozen_paths(root.database, revision.id)


def test_what_arrives_in_between_stops_what_is_going(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "STEP_FILES", 2)
    done(root, *stack(6), results=False)
    (unit,) = holdings.units_of(root.database, root.layout, 1, frozenset(Kind))
    going = removal.begin(root.database, root.layout, Going(unit, "by a test"))
    assert going is not None
    removal.step(root.database, root.layout, going)
    root.hold(Image(f"{SERIES}.7", position=20.0, number="7"))
    assert removal.open_removal(root.database) is None
    assert root.rows("SELECT instances, deleted FROM series") == [(5, 2)]
    assert "stopped: more of it came" in str(root.one("SELECT outcome FROM removals"))
    assert root.breaches() == []


def test_a_unit_that_changed_since_it_was_chosen_does_not_go(root: Root) -> None:
    done(root, *stack(2), results=False)
    (unit,) = holdings.units_of(root.database, root.layout, 1, frozenset(Kind))
    root.hold(*stack(1))
    assert removal.begin(root.database, root.layout, Going(unit, "by a test")) is None


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize(("resend", "step"), [(False, 3), (False, 50), (True, 3)])
def test_the_end_at_any_step_is_rolled_forward(
    root: Root, monkeypatch: pytest.MonkeyPatch, point: str, resend: bool, step: int
) -> None:
    done(root, *stack(5))

    def die(name: str) -> None:
        if name == point:
            raise Crash(name)

    with monkeypatch.context() as patch:
        patch.setattr(removal, "STEP_FILES", step)
        patch.setattr(removal, "crash_point", die)
        with pytest.raises(Crash):
            retain(root)
    root.restart()
    assert root.breaches() == []
    if resend:
        # What was acknowledged again is there, whatever was under way.
        root.hold(*stack(5))
        assert len(root.files("store")) == 5
        retain(root, Retention())
        assert len(root.files("store")) == 5
        assert root.breaches() == []
    else:
        retain(root)
        assert root.files("store") == root.files("results") == []
        assert root.one("SELECT count(*) FROM tombstones") == 5
        assert root.rows("SELECT outcome FROM removals ORDER BY id") == [("done",), ("done",)]
    assert root.one("SELECT count(*) FROM going") == 0
    assert root.breaches() == []


def test_what_must_not_be_among_what_was_deleted_is_found(root: Root) -> None:
    done(root, *stack(3))
    retain(root)
    with root.database.immediate():
        root.database.execute("DELETE FROM tombstones WHERE sop_instance = ?", (f"{SERIES}.1",))
    assert root.breaches() == ["series 1 says that 3 images were deleted, its tombstones are 2"]
    left = root.layout.results / STUDY / SERIES / ".gone-r1-77"
    left.mkdir(parents=True)
    assert any(".gone-r1-77" in breach for breach in root.breaches())
    left.rmdir()
    root.hold(*stack(1))
    with root.database.immediate():
        root.database.execute("UPDATE series SET deleted = deleted + 1")
        root.database.execute(
            "INSERT INTO tombstones SELECT series_id, sop_instance, digest, transfer_syntax, id, revision, bytes, 0, ''"
            " FROM instances"
        )
    assert "1 instances of series 1 are there and have tombstones" in root.breaches()


def test_a_step_removes_no_more_than_so_many_files(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "STEP_FILES", 2)
    done(root, *stack(7), results=False)
    left = []
    (unit,) = holdings.units_of(root.database, root.layout, 1, frozenset(Kind))
    going = removal.begin(root.database, root.layout, Going(unit, "by a test"))
    while going is not None and removal.open_removal(root.database):
        removal.step(root.database, root.layout, going)
        left.append(len(root.files("store")))
    assert left == [5, 3, 1, 0]


def test_a_folder_that_cannot_be_written_to_is_left_alone_and_the_keeper_goes_on(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(root, *stack(2), results=False)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tombstones, "append", refuse)
    now = 0.0
    retainer = Retainer(root.database, root.layout, monotonic=lambda: now, wall=lambda: time.time() + 1)
    for _ in range(6):
        now += 1.0
        retainer.step(AT_ONCE)
    assert retainer.pause_s() is not None
    assert len(root.files("store")) == 2
    assert root.breaches() == []


def test_a_new_index_knows_what_was_deleted(root: Root) -> None:
    done(root, *stack(3))
    done(root, *stack(2, series="1.2.3.2"))
    retain(root, Retention(originals_days=1e-9, floor_days=0))
    root.hold(*stack(1, series="1.2.3.2"))
    before = root.rows("SELECT sop_instance, digest, rule FROM tombstones ORDER BY sop_instance")
    root.database.close()
    rebuild.set_aside(root.layout)
    root._open()
    rebuild.rebuild(root.database, root.layout)
    assert root.rows("SELECT sop_instance, digest, rule FROM tombstones ORDER BY sop_instance") == before
    assert sorted(root.rows("SELECT uid, instances, deleted FROM series")) == [(SERIES, 0, 3), ("1.2.3.2", 1, 1)]
    assert root.breaches() == []
    assert root.rows("SELECT state FROM revisions") == [("DONE",), ("DONE",)]
    root.hold(*stack(3))
    assert root.rows("SELECT instances, deleted FROM series WHERE uid = ?", SERIES) == [(3, 0)]
    revisions.requeue(root.database, int(str(root.one("SELECT id FROM series WHERE uid = ?", SERIES))))
    assert root.breaches() == []


def test_an_old_copy_of_the_index_learns_what_was_deleted_since(root: Root, tmp_path: Path) -> None:
    done(root, *stack(3))
    copy_to(root.database.connection, tmp_path / "old.db")
    retain(root)
    root.database.close()
    rebuild.set_aside(root.layout)
    (tmp_path / "old.db").rename(root.layout.database)
    root._open()
    rebuild.rebuild(root.database, root.layout)
    assert root.rows("SELECT instances, bytes, deleted FROM series") == [(0, 0, 3)]
    assert root.breaches() == []


def test_the_command_shows_what_would_go_and_why_the_rest_stays(root: Root, tmp_path: Path) -> None:
    done(root, *stack(2))
    root.hold(*stack(2, study="1.2.8", series="1.2.8.1"))
    file = tmp_path / "config.toml"
    file.write_text(f'[storage]\nroot = "{root.layout.root}"\n[retention]\noriginals_days = 1e-9\nfloor_days = 0.0\n')
    told = CliRunner().invoke(cli, ["--config", str(file), "retention", "--dry-run", "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.output)
    assert [(one["kind"], one["name"]) for one in found["going"]] == [("originals", SERIES)]
    assert {one["name"]: one["why"] for one in found["staying"]} == {
        f"{SERIES} r1": "no rule asks for it",
        "1.2.8.1": "revision 1 is RECEIVING; its study is not complete yet",
    }
    assert len(root.files("store")) == 4
    shown = CliRunner().invoke(cli, ["--config", str(file), "retention", "--dry-run"])
    assert "1 would go" in shown.output
    retain(root)
    rules = CliRunner().invoke(cli, ["--config", str(file), "retention", "--json"])
    assert json.loads(rules.output)["images deleted"] == 2
