"""The watched folder: settled files only, the scan as the truth, and one bad file that hurts only itself."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from ctnode.archive.layout import Layout
from ctnode.config import Config, Storage
from ctnode.config import Inbox as Settings
from ctnode.flow import inbox as inbox_module
from ctnode.flow.inbox import REJECTED, Inbox
from tests.archive_root import Image
from tests.integration.test_importing import part10, zipped

pytestmark = pytest.mark.integration


class Clock:
    """The monotonic clock of the inbox."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return time.time_ns()


class Watched:
    """An inbox whose child is waited for."""

    def __init__(self, place: Path, clock: Clock) -> None:
        self.folder = place / "inbox"
        self.folder.mkdir()
        self.layout = Layout(place / "node", place / "node" / "results")
        self.layout.create()
        self.clock = clock
        config = Config(
            storage=Storage(root=str(self.layout.root)), inbox=Settings(path=str(self.folder), settle_s=2.0)
        )
        self.inbox = Inbox(config, lambda: None)

    def look(self) -> None:
        """Look once, let the child end, and collect it."""
        self.inbox.look()
        if self.inbox._child is not None:
            self.inbox._child.process.wait()
            self.inbox._collect()

    def settle(self) -> None:
        """Let everything settle and come in."""
        self.look()
        self.clock.now += 2.0
        self.look()

    @property
    def kept(self) -> int:
        return len(list(self.layout.incoming.glob("*/*.dcm")))

    @property
    def waiting(self) -> list[str]:
        return sorted(path.name for path in self.folder.rglob("*") if not path.is_dir() and REJECTED not in path.parts)

    @property
    def rejected(self) -> list[str]:
        names = [path.name for path in (self.folder / REJECTED).glob("*")]
        return sorted(name.partition("-")[2] for name in names if not name.endswith(".reason.txt"))


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    clock = Clock()
    monkeypatch.setattr(inbox_module, "time", clock)
    return Watched(tmp_path, clock)


def test_a_file_comes_in_once_it_has_settled(watched: Watched) -> None:
    (watched.folder / "a.dcm").write_bytes(part10(Image("1.2.3.1.1")))
    watched.look()
    watched.clock.now += 1.9
    watched.look()
    assert watched.kept == 0
    watched.clock.now += 0.1
    watched.look()
    assert watched.kept == 1
    assert watched.waiting == []


def test_a_file_that_still_grows_waits(watched: Watched) -> None:
    content = part10(Image("1.2.3.1.1"))
    file = watched.folder / "a.dcm"
    for cut in (100, 200, 300, len(content)):
        file.write_bytes(content[:cut])
        watched.look()
        watched.clock.now += 1.5
        watched.look()
    assert watched.kept == 0
    watched.clock.now += 0.5
    watched.look()
    assert watched.kept == 1


def test_folders_and_zips_come_in_whole(watched: Watched) -> None:
    (watched.folder / "deep" / "er").mkdir(parents=True)
    (watched.folder / "deep" / "er" / "a.dcm").write_bytes(part10(Image("1.2.3.1.1")))
    zipped(watched.folder / "b.zip", {str(k): part10(Image(f"1.2.3.1.{k + 2}")) for k in range(3)})
    watched.settle()
    assert watched.kept == 4
    assert watched.waiting == []


def test_what_is_no_dicom_is_rejected_with_its_reason_and_never_tried_again(watched: Watched) -> None:
    (watched.folder / "notes.txt").write_text("no DICOM")
    watched.settle()
    assert watched.rejected == ["notes.txt"]
    (reason,) = (watched.folder / REJECTED).glob("*.reason.txt")
    assert "neither a preamble nor group 0008" in reason.read_text()
    assert watched.waiting == []
    watched.settle()
    assert watched.rejected == ["notes.txt"]


def test_hidden_files_are_a_copy_in_progress(watched: Watched) -> None:
    (watched.folder / ".a.dcm.part").write_bytes(part10(Image("1.2.3.1.1")))
    watched.settle()
    assert watched.kept == 0
    assert watched.rejected == []


@pytest.mark.parametrize("name", [os.fsdecode(b"bad \xff name.txt"), "x" * 255, "new\nline", "-rf", "ü.txt"])
def test_a_name_of_any_kind_hurts_nobody(watched: Watched, name: str) -> None:
    (watched.folder / name).write_text("no DICOM")
    (watched.folder / "good.dcm").write_bytes(part10(Image("1.2.3.1.1")))
    watched.settle()
    assert watched.kept == 1
    assert watched.waiting == []
    assert len(watched.rejected) == 1


def test_links_pipes_and_loops_are_left_alone(watched: Watched) -> None:
    (watched.folder / "loop").symlink_to(watched.folder / "loop")
    (watched.folder / "gone").symlink_to(watched.folder / "nowhere")
    os.mkfifo(watched.folder / "pipe")
    (watched.folder / "good.dcm").write_bytes(part10(Image("1.2.3.1.1")))
    watched.settle()
    assert watched.kept == 1
    assert watched.waiting == ["gone", "loop", "pipe"]
    assert watched.rejected == []


def test_a_file_that_kills_the_importer_is_rejected_and_the_rest_is_tried_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.dcm", "b.dcm"):
        (watched.folder / name).write_bytes(part10(Image(f"1.2.3.1.{ord(name[0])}")))
    real = inbox_module.sys.executable
    monkeypatch.setattr(inbox_module.sys, "executable", "false")
    watched.settle()
    assert watched.rejected == ["a.dcm"]
    monkeypatch.setattr(inbox_module.sys, "executable", real)
    watched.settle()
    assert watched.kept == 1
    assert watched.waiting == []


def test_a_storage_that_is_full_keeps_the_file_for_later(watched: Watched) -> None:
    (watched.folder / "a.dcm").write_bytes(part10(Image("1.2.3.1.1")))
    watched.layout.incoming.rmdir()
    watched.settle()
    assert watched.waiting == ["a.dcm"]
    assert watched.rejected == []
    watched.layout.incoming.mkdir()
    watched.look()
    assert watched.waiting == ["a.dcm"], "it pauses for a while"
    watched.clock.now += inbox_module.RETRY_S
    watched.look()
    assert watched.waiting == []
    assert watched.kept == 1


def test_without_a_path_there_is_no_inbox(tmp_path: Path) -> None:
    with Inbox(Config(storage=Storage(root=str(tmp_path / "node"))), lambda: None) as inbox:
        inbox.look()
    assert list(tmp_path.iterdir()) == []


def test_the_observer_rings_and_ends(watched: Watched) -> None:
    rung = threading.Event()
    watched.inbox._wake = rung.set
    with watched.inbox:
        (watched.folder / "a.dcm").write_bytes(b"x")
        assert rung.wait(30)
