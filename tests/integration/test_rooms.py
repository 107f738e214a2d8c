"""Names made ahead: durable before they are used, gone when they are not, and found again after a power cut."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from ctnode.archive import incoming as incoming_module
from ctnode.archive import rooms as rooms_module
from ctnode.archive.incoming import PIECE_BYTES
from ctnode.archive.rooms import recover
from ctnode.archive.spool import Journal
from ctnode.ops import durable
from ctnode.words import Mismatch
from tests.archive_root import SERIES, STUDY, Image, Root, opened, put

pytestmark = pytest.mark.integration

EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.fixture
def root(tmp_path: Path):
    node = Root(tmp_path / "node")
    yield node
    node.close()


def abandon(journal: Journal) -> None:
    """Let the receiver of a journal end without a word."""
    os.close(journal._file)
    os.close(journal.folder)
    journal._file = journal.folder = -1


def parts(journal: Journal) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(journal.directory.glob("*.part"))}


def test_each_name_was_synced_with_its_directory_before_the_success(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a power cut sees it: the names of a directory are those of its last sync, and what came of them since."""
    made: set[str] = set()
    durable_names: set[str] = set()
    first_name: dict[str, str] = {}
    folder = -1

    def open_noted(path: str, flags: int, *arguments: int, **options: int) -> int:
        if flags & os.O_CREAT and str(path).endswith(".part"):
            made.add(str(path))
        return os.open(path, flags, *arguments, **options)

    def rename_noted(old: str, new: str, **options: int) -> None:
        first_name[new] = old
        os.rename(old, new, **options)  # noqa: PTH104

    def fsync_noted(descriptor: int) -> None:
        os.fsync(descriptor)
        if descriptor == folder:
            durable_names.update(made, first_name)

    fake = SimpleNamespace(**{name: getattr(os, name) for name in dir(os) if not name.startswith("__")})
    fake.open, fake.rename, fake.fsync = open_noted, rename_noted, fsync_noted
    for module in (incoming_module, rooms_module, durable):
        monkeypatch.setattr(module, "os", fake)
    syncs = []
    with root.spool.open_association(opened()) as journal:
        folder = journal.folder
        for number in range(40):
            before = len(durable_names)
            kept = put(journal, Image(f"1.2.3.1.{number + 1}"))
            assert {kept.path.name, first_name[kept.path.name]} & durable_names
            syncs += [number + 1] if len(durable_names) > before else []
    # One for the journal itself; then they come ever more seldom.
    assert syncs == [1, 2, 5, 10, 19, 36]
    assert not list(journal.directory.glob("*.part"))


def test_what_waits_for_an_instance_is_not_being_stored(root: Root) -> None:
    with root.spool.open_association(opened()) as journal:
        for number in range(3):
            put(journal, Image(f"1.2.3.1.{number + 1}"))
        assert list(parts(journal).values()) == [0]
        (found,) = root.settler.scan().open_associations
        assert not found.is_storing
        incoming = journal.receive(transfer_syntax=EXPLICIT, sop_class="1.2", sop_instance="1.3")
        (found,) = root.settler.scan().open_associations
        assert found.is_storing
        incoming.discard()
    root.settle()
    assert root.files("incoming") == []
    assert len(root.files("store")) == 3


@pytest.mark.parametrize("pixel_bytes", [4, 3 * PIECE_BYTES])
def test_what_was_acknowledged_is_found_under_its_first_name(root: Root, pixel_bytes: int) -> None:
    images = [Image(f"1.2.3.1.{number + 1}", pixels=os.urandom(pixel_bytes)) for number in range(6)]
    journal = root.spool.open_association(opened())
    kept = [put(journal, image) for image in images]
    waiting = parts(journal)
    assert set(waiting.values()) == {0}
    abandon(journal)
    for number, one in enumerate(kept[2:]):
        # The rename had not reached the disk.
        one.path.rename(journal.directory / f"9{number:05d}.part")
    contents = {one.digest for one in kept}
    scan = root.settle()
    assert scan.open_associations == ()
    assert {digest for (digest,) in root.rows("SELECT digest FROM instances")} == contents
    assert root.rows("SELECT how, instances FROM associations") == [("aborted", 6)]
    assert root.rows("SELECT duplicates FROM series") == [(0,)]
    assert root.files("quarantine") == []
    assert not list(root.layout.incoming.iterdir())
    assert root.breaches() == []


def test_a_row_whose_file_lost_its_name_is_moved_all_the_same(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper had committed the row; then the power went, and with it the name that the row was made from."""

    class Cut(Exception):
        pass

    def die(name: str) -> None:
        if name == "keeper.between-commit-and-rename":
            raise Cut

    journal = root.spool.open_association(opened())
    kept = put(journal, Image("1.2.3.1.7"))
    before = kept.path.read_bytes()
    abandon(journal)
    with monkeypatch.context() as patch:
        patch.setattr("ctnode.archive.settle.crash_point", die)
        with pytest.raises(Cut):
            root.settle()
    kept.path.rename(journal.directory / "000001.part")
    root.restart()
    root.settle()
    assert (root.layout.store / STUDY / SERIES / "1.2.3.1.7.dcm").read_bytes() == before
    assert root.rows("SELECT sop_instance FROM instances") == [("1.2.3.1.7",)]
    assert root.files("incoming") == root.files("quarantine") == []
    assert root.breaches() == []


def test_what_was_not_complete_goes_and_what_contradicts_itself_is_kept_aside(root: Root) -> None:
    journal = root.spool.open_association(opened())
    kept = put(journal, Image("1.2.3.1.7", pixels=bytes(PIECE_BYTES)))
    content = bytearray(kept.path.read_bytes())
    begun = journal.receive(transfer_syntax=EXPLICIT, sop_class="1.2", sop_instance="1.3")
    begun.write(bytes(2 * PIECE_BYTES))
    abandon(journal)
    content[-1] ^= 1
    (journal.directory / "900001.part").write_bytes(content)
    (journal.directory / "900002.part").write_bytes(b"\0")
    root.settle()
    assert root.files("store") == [f"{STUDY}/{SERIES}/1.2.3.1.7.dcm"]
    (aside,) = root.files("quarantine")
    assert aside.endswith("-900001.part")
    assert (root.layout.quarantine / aside).read_bytes() == content
    assert root.rows("SELECT COUNT(*) FROM quarantine") == [(1,)]
    assert not list(root.layout.incoming.iterdir())


def test_what_was_refused_is_not_found_again(root: Root) -> None:
    journal = root.spool.open_association(opened())
    put(journal, Image("1.2.3.1.6"))
    refused = []
    for pixel_bytes in (4, 3 * PIECE_BYTES):
        data = Image("1.2.3.1.7", pixels=bytes(pixel_bytes)).encode()
        incoming = journal.receive(transfer_syntax=EXPLICIT, sop_class=Image("1.2").sop_class, sop_instance="1.2.3.9")
        incoming.write(data)
        with pytest.MonkeyPatch.context() as patch:
            # Its removal has not reached the disk.
            patch.setattr(incoming_module, "_unlink", lambda name, _folder: refused.append(name))
            with pytest.raises(Mismatch):
                incoming.commit()
    abandon(journal)
    assert len(refused) == 2
    assert set(refused) <= set(os.listdir(journal.directory))
    root.settle()
    assert len(root.files("store")) == 1
    assert root.files("quarantine") == root.files("incoming") == []


def test_a_file_that_cannot_be_read_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(code: int):
        def is_complete(_path: Path) -> bool:
            raise OSError(code, os.strerror(code))

        return is_complete

    (tmp_path / "000001.part").write_bytes(b"x")
    monkeypatch.setattr(rooms_module, "_is_complete", fail(errno.EIO))
    assert recover(tmp_path, ["000001.part"]) == ([], ["000001.part"])
    monkeypatch.setattr(rooms_module, "_is_complete", fail(errno.EMFILE))
    with pytest.raises(OSError, match="Too many open files"):
        recover(tmp_path, ["000001.part"])
    assert (tmp_path / "000001.part").is_file()


def test_two_recovered_at_the_same_moment_do_not_replace_each_other(root: Root) -> None:
    with root.spool.open_association(opened()) as journal:
        kept = [put(journal, Image(f"1.2.3.1.{number}")) for number in (1, 2)]
    for one, name in zip(kept, ("000001.part", "0000010.part"), strict=True):
        one.path.rename(journal.directory / name)
        os.utime(journal.directory / name, ns=(5, 5))
    (journal.directory / f"{5:019d}-000001.dcm").write_bytes(b"another")
    complete, doubtful = recover(journal.directory, ["000001.part", "0000010.part"])
    assert complete == [f"{6:019d}-000001.dcm", f"{5:019d}-0000010.dcm"]
    assert doubtful == []
