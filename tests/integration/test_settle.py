"""From journal to store: the row first, nothing lost in between, nothing that stops the keeper."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from ctnode.archive import settle as settle_module
from ctnode.archive import timeline
from ctnode.archive.header import read_header
from ctnode.archive.spool import JOURNAL_NAME
from tests.archive_root import SECONDARY_CAPTURE, SERIES, STUDY, Image, Root, element, opened, put, stack

pytestmark = pytest.mark.integration


class Crash(Exception):
    """A power cut, as far as one process can have it."""


@pytest.fixture
def root(tmp_path: Path):
    node = Root(tmp_path / "node")
    yield node
    node.close()


def crash_at(monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    def die(name: str) -> None:
        if name == point:
            raise Crash(name)

    monkeypatch.setattr(settle_module, "crash_point", die)


def test_an_instance_gets_a_row_and_a_place(root: Root) -> None:
    image = Image("1.2.3.1.7")
    (kept,) = root.push([image])
    before = kept.path.read_bytes()
    root.settle()
    assert root.files("store") == [f"{STUDY}/{SERIES}/1.2.3.1.7.dcm"]
    assert (root.layout.store / STUDY / SERIES / "1.2.3.1.7.dcm").read_bytes() == before
    assert root.rows("SELECT path, digest, revision, is_current, instance_number FROM instances") == [
        (f"{STUDY}/{SERIES}/1.2.3.1.7.dcm", kept.digest, 1, 1, 1)
    ]
    assert root.files("incoming") == []
    assert not list(root.layout.incoming.iterdir())
    assert root.breaches() == []


def test_row_is_committed_before_the_rename(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    (kept,) = root.push([Image("1.2.3.1.7")])
    seen = []

    def look(name: str) -> None:
        if name == "keeper.between-commit-and-rename":
            assert not root.database.connection.in_transaction
            seen.append((root.one("SELECT count(*) FROM instances"), kept.path.exists(), root.files("store")))

    monkeypatch.setattr(settle_module, "crash_point", look)
    root.settle()
    assert seen == [(1, True, [])]


@pytest.mark.parametrize("point", ["keeper.between-commit-and-rename", "keeper.after-rename"])
def test_a_crash_in_between_loses_nothing_and_counts_nothing_twice(
    root: Root, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    root.push(stack(4))
    with monkeypatch.context() as context:
        crash_at(context, point)
        with pytest.raises(Crash):
            root.settler.scan()
    assert root.breaches() == []
    root.restart()
    root.settle()
    assert root.breaches() == []
    assert len(root.files("store")) == 4
    assert root.files("incoming") == []
    assert root.one("SELECT instances FROM series") == 4
    assert root.one("SELECT duplicates FROM series") == 0, "an interrupted move is no resend"
    assert root.rows("SELECT n, state FROM revisions") == [(1, "RECEIVING")]


def test_identical_resends_are_dropped_and_counted(root: Root) -> None:
    images = stack(3)
    root.hold(*images)
    root.hold(*images, calling="OTHER", address="10.0.0.9:5")
    assert root.one("SELECT instances FROM series") == 3
    assert root.one("SELECT duplicates FROM series") == 3
    assert root.database.counters()["duplicates"] == 3
    assert len(root.files("store")) == 3
    assert root.files("incoming") == []
    assert root.rows("SELECT n FROM revisions") == [(1,)]


def test_a_resend_after_the_verdict_opens_no_revision(root: Root) -> None:
    images = stack(3)
    root.queued(*images)
    root.hold(*images)
    assert root.rows("SELECT n, state FROM revisions") == [(1, "QUEUED")]


def test_a_resend_prolongs_the_wait_in_the_index_too(root: Root) -> None:
    root.hold(*stack(2))
    ((first, before),) = root.rows("SELECT last_arrival, deadline FROM revisions")
    (kept,) = root.hold(stack(2)[0])
    ((last, after),) = root.rows("SELECT last_arrival, deadline FROM revisions")
    assert float(str(last)) > float(str(first))
    assert float(str(after)) - float(str(before)) == pytest.approx(float(str(last)) - float(str(first)))
    assert last == int(kept.path.name.partition("-")[0]) / 1e9


def test_the_same_twice_in_one_batch(root: Root) -> None:
    image = Image("1.2.3.1.7")
    root.hold(image, image, image)
    assert root.one("SELECT duplicates FROM series") == 2
    assert len(root.files("store")) == 1


def test_other_bytes_under_one_uid_are_both_kept_and_the_newest_is_current(root: Root) -> None:
    first, second = Image("1.2.3.1.7"), Image("1.2.3.1.7", pixels=b"\4\3\2\1")
    root.hold(first)
    (kept,) = root.hold(second)
    names = {f"{STUDY}/{SERIES}/1.2.3.1.7.{kept.digest[:12]}.dcm", f"{STUDY}/{SERIES}/1.2.3.1.7.dcm"}
    assert set(root.files("store")) == names
    assert root.rows("SELECT is_current FROM instances ORDER BY id") == [(0,), (1,)]
    assert json.loads(str(root.one("SELECT flags FROM series"))) == ["CONFLICT"]
    assert root.breaches() == []


def test_a_conflict_after_the_verdict_opens_a_revision(root: Root) -> None:
    root.queued(Image("1.2.3.1.7"))
    root.hold(Image("1.2.3.1.7", pixels=b"\4\3\2\1"))
    assert root.rows("SELECT n, state FROM revisions ORDER BY n") == [(1, "SUPERSEDED"), (2, "RECEIVING")]
    assert root.rows("SELECT state FROM jobs") == [("SUPERSEDED",)]


def test_one_data_set_in_three_encodings_is_three_files(root: Root) -> None:
    """Encodings whose bytes may be the same (JPEG 2000 with and without ``lossless only``) are different instances."""
    image = Image("1.2.3.1.7")
    syntaxes = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
    with root.spool.open_association(opened()) as journal:
        for syntax in syntaxes:
            put(journal, image, syntax)
    root.settle()
    paths = [root.layout.store / str(path) for (path,) in root.rows("SELECT path FROM instances ORDER BY id")]
    assert [read_header(path).transfer_syntax for path in paths] == list(syntaxes)
    assert root.files("quarantine") == []


def test_a_name_taken_by_another_instance_is_not_given_away(root: Root) -> None:
    """``<SOP>.<12 hex>`` can be another instance's UID when the hex happens to be digits."""
    base = Image("1.2.3.1.7")
    for attempt in range(100_000):
        other = Image("1.2.3.1.7", pixels=attempt.to_bytes(4, "little"))
        digest = hashlib.sha256(other.encode()).hexdigest()[:12]
        if digest.isdigit() and digest[0] != "0":
            break
    squatter = Image(f"1.2.3.1.7.{digest}")
    root.hold(squatter)
    root.hold(base)
    root.hold(other)
    rows = root.rows("SELECT sop_instance, path, digest FROM instances")
    assert len({path for _, path, _ in rows}) == 3
    for sop, path, known in rows:
        header = read_header(root.layout.store / str(path))
        assert (header.uids.sop_instance, header.digest) == (sop, known)
    assert root.files("quarantine") == []


@pytest.mark.parametrize(
    ("what", "change"),
    [("patient", {"patient": "P2"}), ("frame of reference", {"frame": "1.2.10"}), ("rows", {"rows": 8})],
)
def test_a_reused_series_uid_is_kept_apart(root: Root, what: str, change: dict[str, object]) -> None:
    root.hold(Image("1.2.3.1.1"), Image("1.2.3.1.2", **change))  # type: ignore[arg-type]
    assert root.files("store") == [f"{STUDY}/{SERIES}/1.2.3.1.1.dcm", f"{STUDY}/{SERIES}~2/1.2.3.1.2.dcm"]
    assert root.rows("SELECT split, instances, flags FROM series ORDER BY split") == [(1, 1, "[]"), (2, 1, '["SPLIT"]')]
    assert any(what in entry.text for entry in timeline.read(root.database, 2))
    root.hold(Image("1.2.3.1.3", **change))  # type: ignore[arg-type]
    assert root.rows("SELECT split, instances FROM series ORDER BY split") == [(1, 1), (2, 2)]


def test_one_series_uid_in_two_studies_is_two_series(root: Root) -> None:
    root.hold(Image("1.2.3.1.1"), Image("1.2.3.1.1", study="1.2.4"))
    assert root.rows("SELECT split, instances FROM series") == [(1, 1), (1, 1)]


def test_a_late_instance_opens_the_next_revision_with_twice_the_quiet_time(root: Root) -> None:
    first = root.queued(*stack(2))
    root.hold(Image("1.2.3.1.99", position=30.0))
    assert root.rows("SELECT n, state, quiet_s FROM revisions ORDER BY n") == [
        (1, "SUPERSEDED", 5.0), (2, "RECEIVING", 10.0)
    ]  # fmt: skip
    assert len(json.loads(str(root.one("SELECT instances FROM revisions WHERE n = 1")))) == 2
    root.complete()
    assert len(json.loads(str(root.one("SELECT instances FROM revisions WHERE n = 2")))) == 3
    assert first.n == 1


@pytest.mark.parametrize(
    "uid", ["1.02.3", "a b", "1.2.3\n4", "..x", "x" * 64, "1.2.3~2", "ünï", "-rf", "CON", "1.2.3%2F..", "$(reboot)"]
)
def test_odd_uids_are_accepted_and_hashed(root: Root, uid: str) -> None:
    root.hold(Image(uid, study=uid, series=uid))
    (name,) = root.files("store")
    parts = name.removesuffix(".dcm").split("/")
    assert all(part.startswith("x-") and len(part) == 34 for part in parts)
    assert root.one("SELECT sop_instance FROM instances") == uid
    assert root.breaches() == []


@pytest.mark.parametrize("number", ["99999999999999999999", "-99999999999999999999", "1e400", "\xb2", "", "1\\2"])
def test_an_odd_instance_number_stops_nobody(root: Root, number: str) -> None:
    root.hold(Image("1.2.3.1.7", number=number), Image("1.2.3.1.8"))
    assert root.one("SELECT count(*) FROM instances") == 2


@pytest.mark.parametrize("position", [float("nan"), float("inf"), 1e300, -1e300])
def test_an_odd_position_stops_nobody(root: Root, position: float) -> None:
    root.hold(Image("1.2.3.1.7", position=position))
    assert root.rows("SELECT position_mm FROM instances") == [(None,)]


# ------------------------------------------------------------------------------------------- quarantine


def spoil(path: Path) -> None:
    path.write_bytes(b"no DICOM at all")


def test_what_cannot_be_read_goes_to_quarantine_after_two_attempts(root: Root) -> None:
    bad, good = root.push([Image("1.2.3.1.1"), Image("1.2.3.1.2")])
    spoil(bad.path)
    root.settler.scan()
    assert bad.path.exists()
    assert len(root.files("store")) == 1
    assert root.files("quarantine") == []
    root.settler.scan()
    assert not bad.path.exists()
    assert root.files("quarantine") == [f"{bad.path.parent.name}-{bad.path.name}"]
    ((path, state, reason),) = root.rows("SELECT path, state, reason FROM quarantine")
    assert Path(str(path)).read_bytes() == b"no DICOM at all"
    assert (state, reason) == ("FAILED", "the file has no preamble")
    assert root.database.counters()["quarantine.FAILED"] == 1
    root.settler.scan()
    assert not list(root.layout.incoming.iterdir())
    assert good.digest == root.one("SELECT digest FROM instances")


def test_a_file_that_kills_the_keeper_twice_goes_to_quarantine_untouched_and_spares_its_neighbours(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = root.push(stack(5))
    poison = kept[2].path

    def read(path: Path):
        if path == poison:
            raise Crash("segmentation fault")
        return read_header(path)

    monkeypatch.setattr(settle_module, "read_header", read)
    deaths = 0
    for _ in range(10):
        try:
            root.settle()
            break
        except Crash:
            deaths += 1
            root.restart()
    assert 2 <= deaths <= 3
    assert root.one("SELECT count(*) FROM instances") == 4
    assert root.files("quarantine") == [f"{poison.parent.name}-{poison.name}"]
    assert root.breaches() == []


def test_a_keeper_that_is_killed_again_and_again_puts_nothing_sound_into_quarantine(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.push(stack(5))
    with monkeypatch.context() as context:

        def die(_arrivals: object, _names: object) -> None:
            raise Crash

        for _ in range(8):
            context.setattr(root.index, "take", die)
            with pytest.raises(Crash):
                root.settler.scan()
            root.restart()
            # Once alone: after the second time that would be the fault of the file.
            if root.rows("SELECT max(attempts) FROM attempts WHERE name LIKE '% alone'")[0][0] == 1:
                break
    root.settle()
    assert root.one("SELECT count(*) FROM instances") == 5
    assert root.files("quarantine") == []
    assert root.one("SELECT count(*) FROM attempts") == 0


def test_a_crash_between_the_quarantine_row_and_its_rename_is_finished(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bad,) = root.push([Image("1.2.3.1.1")])
    spoil(bad.path)
    root.settler.scan()
    with monkeypatch.context() as context:

        def die(_self: Path, _target: Path) -> Path:
            raise Crash

        context.setattr(Path, "rename", die)
        with pytest.raises(Crash):
            root.settler.scan()
    root.restart()
    root.settle()
    assert root.one("SELECT count(*) FROM quarantine") == 1
    assert len(root.files("quarantine")) == 1
    assert root.files("incoming") == []


def test_a_store_file_that_rotted_does_not_take_the_resend_with_it(root: Root) -> None:
    image = Image("1.2.3.1.7")
    root.hold(image)
    (root.layout.store / STUDY / SERIES / "1.2.3.1.7.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"rot")
    (kept,) = root.push([image])
    root.settle()
    assert root.files("quarantine") == [f"{kept.path.parent.name}-{kept.path.name}"]
    assert root.one("SELECT reason FROM quarantine") == "the store holds other bytes under this name"


def test_a_meta_of_many_kilobytes_is_no_trap(root: Root) -> None:
    image = Image("1.2.3.1.7")
    for _ in range(2):
        with root.spool.open_association(opened()) as journal:
            put(journal, image, "1.2.840.10008.1.2.1." + "1" * 6000)
        root.settle()
    assert root.one("SELECT duplicates FROM series") == 1
    assert root.files("quarantine") == []


def test_deflated_rubbish_behind_a_sound_head_is_quarantined(root: Root) -> None:
    import zlib

    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS, level=0)
    noise = element(0x29, 0x1010, "OB", os.urandom(200_000))
    image = Image("1.2.3.1.7")
    data = bytearray(packer.compress(image.encode()[:-20] + noise) + packer.flush())
    data[100_000:] = b"\xff" * (len(data) - 100_000)
    with root.spool.open_association(opened()) as journal:
        incoming = journal.receive(
            transfer_syntax="1.2.840.10008.1.2.1.99", sop_class=image.sop_class, sop_instance=image.sop
        )
        incoming.write(data)
        incoming.commit()
    root.settle()
    root.settle()
    assert len(root.files("quarantine")) + len(root.files("store")) == 1
    assert root.files("incoming") == []


# ------------------------------------------------------------------------------- journals and their locks


def test_an_open_association_is_told_and_its_journal_stays(root: Root) -> None:
    with root.spool.open_association(opened()) as journal:
        put(journal, Image("1.2.3.1.1"))
        scan = root.settler.scan()
        assert len(scan.settled) == 1
        (found,) = scan.open_associations
        assert not found.is_storing
        incoming = journal.receive(transfer_syntax="1.2.840.10008.1.2.1", sop_class="1.2", sop_instance="1.3")
        (found,) = root.settler.scan().open_associations
        assert found.is_storing
        incoming.discard()
        assert journal.directory.is_dir()
    assert root.settle().open_associations == ()
    assert not journal.directory.exists()
    assert root.rows("SELECT how, instances FROM associations") == [("released", 1)]


@pytest.mark.parametrize("how", ["released", "aborted", "lost", "drained"])
def test_how_an_association_ended_is_written_down(root: Root, how: str) -> None:
    journal = root.spool.open_association(opened())
    put(journal, Image("1.2.3.1.1"))
    journal.close(how)
    root.settle()
    assert root.one("SELECT how FROM associations") == how
    assert timeline.read(root.database, 1)[-1].text == f"SENDER at 10.0.0.1:4711: 1 instances, {how}"


def test_a_free_lock_without_an_end_record_means_aborted(root: Root) -> None:
    journal = root.spool.open_association(opened())
    put(journal, Image("1.2.3.1.1"))
    os.close(journal._file)  # what the death of a receiver does
    journal._file = -1
    root.settle()
    assert root.one("SELECT how FROM associations") == "aborted"


def test_an_exception_ends_an_association_as_aborted(root: Root) -> None:
    journal = root.spool.open_association(opened())
    put(journal, Image("1.2.3.1.1"))
    journal.__exit__(Crash, Crash(), None)
    root.settle()
    assert root.one("SELECT how FROM associations") == "aborted"
    assert root.one("SELECT count(*) FROM instances") == 1


def test_left_parts_of_a_dead_association_are_swept(root: Root) -> None:
    journal = root.spool.open_association(opened())
    journal.receive(transfer_syntax="1.2.840.10008.1.2.1", sop_class="1.2", sop_instance="1.3").write(b"half")
    journal.close("aborted")
    root.settle()
    assert not list(root.layout.incoming.iterdir())


def test_a_journal_without_a_first_record_still_gives_up_its_instances(root: Root) -> None:
    """A power cut may take the record but never an acknowledged file."""
    (kept,) = root.push([Image("1.2.3.1.1")])
    (kept.path.parent / JOURNAL_NAME).write_bytes(b"\0" * 40)
    root.settle()
    assert root.one("SELECT count(*) FROM instances") == 1
    assert not list(root.layout.incoming.iterdir())


def test_a_journal_that_is_being_born_is_left_alone(root: Root) -> None:
    """Between mkdir, open, lock and first record a receiver holds nothing yet that a keeper could see."""
    young = root.layout.incoming / f"{time.time_ns():019d}-00000000"
    young.mkdir()
    root.settler.scan()
    assert young.is_dir()
    (young / JOURNAL_NAME).touch()
    root.settler.scan()
    assert (young / JOURNAL_NAME).is_file()
    with (young / JOURNAL_NAME).open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        root.settler.scan()
        assert (young / JOURNAL_NAME).is_file()


def test_a_journal_that_was_never_born_is_removed_in_the_end(root: Root) -> None:
    old = root.layout.incoming / f"{time.time_ns() - 3600 * 10**9:019d}-00000000"
    old.mkdir()
    root.settler.scan()
    assert not old.exists()


@pytest.mark.parametrize("stranger", ["lost+found", "notes", "20200101-1"])
def test_strangers_in_incoming_are_left_alone_and_stop_nobody(root: Root, stranger: str) -> None:
    folder = root.layout.incoming / stranger
    folder.mkdir()
    (folder / "foreign.dcm").write_bytes(b"not ours")
    (root.layout.incoming / "a-file.dcm").write_bytes(b"not ours")
    root.hold(Image("1.2.3.1.1"))
    assert (folder / "foreign.dcm").is_file()
    assert root.one("SELECT count(*) FROM instances") == 1


def test_a_foreign_file_in_a_journal_stops_nobody(root: Root) -> None:
    (kept,) = root.push([Image("1.2.3.1.1")])
    (kept.path.parent / "copy of something.dcm").write_bytes(b"not ours")
    (kept.path.parent / ".nfs0001").write_bytes(b"not ours")
    root.settle()
    root.hold(Image("1.2.3.1.2"))
    root.settle()
    assert root.one("SELECT count(*) FROM instances") == 2
    assert {how for (how,) in root.rows("SELECT how FROM associations")} == {"released"}
    assert (kept.path.parent / "copy of something.dcm").is_file()


def test_a_full_batch_proves_nothing_about_quiet(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle_module, "BATCH", 3)
    root.push(stack(4))
    assert not root.settler.scan().is_whole
    assert root.settler.scan().is_whole
    assert root.one("SELECT count(*) FROM instances") == 4


def test_what_is_not_ct_and_what_is_our_own_is_counted_apart(root: Root) -> None:
    root.hold(
        Image("1.2.3.1.1"),
        Image("1.2.3.2.1", series="1.2.3.2", sop_class=SECONDARY_CAPTURE, modality="OT", manufacturer="ctnode"),
    )
    assert root.rows("SELECT ct_instances, own_instances FROM series ORDER BY id") == [(1, 0), (0, 1)]
