"""Power cuts: a real ext4 whose unwritten memory is thrown away in the middle of the work.

FS_IOC_SHUTDOWN without a flush of the journal drops all that has not reached the disk, as pulling the plug does. The
sender's notes, what it has read 0000H for, lie on another file system. ``CTNODE_TEST_CUTS`` says how often (20),
``CTNODE_TEST_SEED`` repeats the moments of an earlier run.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ctnode.archive.header import read_meta
from ctnode.config import Config
from ctnode.config.models import Storage
from ctnode.ops import durable
from tests.archive_root import Root
from tests.wire_peers import (
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    STANDARD,
    RawPeer,
    associate_rq,
    data_set,
    data_set_of,
    receiver,
    uid,
)
from tests.wire_roles import receive_role, wait_until

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root"),
    pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="mkfs.ext4 is not installed (package e2fsprogs)"),
]

FS_IOC_SHUTDOWN = 0x8004587D
WITHOUT_FLUSH = 2
SENDERS = 3
# Within one piece, and of several.
PIXEL_BYTES = (40_000, 40_000, 600_000)
IMAGE_BYTES = 192 << 20
CONTROLS = 5
CUTS = int(os.environ.get("CTNODE_TEST_CUTS", "20"))
SEED = int(os.environ.get("CTNODE_TEST_SEED", "1"))
# Without a reserve: the file system is small on purpose.
CONFIG = Config(storage=Storage(reserve_mb=0, reserve_inodes=0))


@dataclass
class Disk:
    """An ext4 in a file that can lose its power."""

    image: Path
    mount_point: Path
    options: tuple[str, ...] = ()
    is_mounted: bool = False

    def make(self) -> None:
        with self.image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", *self.options, str(self.image)], check=True)
        self.mount_point.mkdir()

    def mount(self) -> None:
        done = subprocess.run(
            ["mount", "-o", "loop", str(self.image), str(self.mount_point)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no loop mount here: {done.stderr.strip()}")
        self.is_mounted = True

    def cut(self) -> None:
        descriptor = os.open(self.mount_point, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", WITHOUT_FLUSH))
        finally:
            os.close(descriptor)

    def unmount(self) -> None:
        if self.is_mounted:
            # A keeper whose start was cut short leaves its connection to the collector.
            gc.collect()
            subprocess.run(["umount", str(self.mount_point)], check=True)
            self.is_mounted = False

    def check(self) -> None:
        """Check the file system, which has to be whole after it was mounted and its journal replayed."""
        assert subprocess.run(["e2fsck", "-fn", str(self.image)], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def made(folder: Path, *options: str) -> Iterator[Disk]:
    disk = Disk(folder / "ext4", folder / "mnt", options)
    disk.make()
    try:
        yield disk
    finally:
        if disk.is_mounted:
            # Detached at once, released by the kernel when the last descriptor is closed: nothing stays mounted.
            subprocess.run(["umount", "-l", str(disk.mount_point)], check=False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with made(tmp_path) as disk:
        yield disk


@dataclass
class Notes:
    """What senders have read 0000H for."""

    digests: dict[str, str] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def acknowledge(self, name: str, content: bytes) -> None:
        with self.changed:
            self.digests[name] = hashlib.sha256(content).hexdigest()
            self.changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.digests) >= count, 20.0)


def send_until_cut(port: int, cycle: int, sender: int, notes: Notes) -> None:
    pixels = random.Random(cycle * SENDERS + sender).randbytes(PIXEL_BYTES[sender])
    with contextlib.suppress(OSError, EOFError, AssertionError), RawPeer(port) as peer:
        peer.associate()
        for number in range(100_000):
            name = uid(cycle, sender, number)
            content = data_set(name, pixels=pixels, study=uid(cycle), series=uid(cycle, sender))
            if peer.store(name, content).status:
                return
            notes.acknowledge(name, content)


def keep_until_cut(root: Path, stop: threading.Event) -> None:
    """Be the keeper meanwhile; a disk that has gone ends it."""
    with contextlib.suppress(OSError, sqlite3.Error):
        held = Root(root)
        with contextlib.closing(held):
            while not stop.is_set():
                held.settler.scan()


def work_until_cut(disk: Disk, cycle: int, moment: random.Random, notes: Notes) -> None:
    """Receive, settle, and lose the power in the middle of it."""
    stop = threading.Event()
    root = disk.mount_point / "root"
    with receiver(root, CONFIG) as node:
        # As an acceptor would tell of others: then nothing is hashed beside the association.
        node.shared.spool.hashing.is_alone = cycle % 2 == 0
        threads = [
            threading.Thread(target=send_until_cut, args=(node.port, cycle, sender, notes)) for sender in range(SENDERS)
        ]
        threads.append(threading.Thread(target=keep_until_cut, args=(root, stop)))
        for thread in threads:
            thread.start()
        try:
            notes.wait_for(len(notes.digests) + 1)
            time.sleep(moment.uniform(0.0, 0.15))
        finally:
            disk.cut()
            stop.set()
            for thread in threads:
                thread.join()


def lost(disk: Disk, notes: Notes) -> list[str]:
    """Return what was acknowledged and is not there, after the keeper has settled what is."""
    root = disk.mount_point / "root"
    for file in root.glob("incoming/*/*.dcm"):
        meta = read_meta(file.read_bytes())
        assert meta is not None, "a kept file is torn"
        assert hashlib.sha256(data_set_of(file)).digest() == meta.own_digest, "a kept file is torn"
    held = Root(root)
    with contextlib.closing(held):
        held.settle()
        assert held.breaches() == []
        for file in filter(Path.is_file, (root / "quarantine").rglob("*")):
            # Its digest was on the disk before its last bytes were: nobody has read success for it.
            meta = read_meta(file.read_bytes())
            assert meta is not None
            assert meta.sop_instance not in notes.digests, "what was acknowledged is torn"
        found = {path.stem: path for path in (root / "store").rglob("*.dcm")}
    return [
        name
        for name, digest in notes.digests.items()
        if name not in found or hashlib.sha256(data_set_of(found[name])).hexdigest() != digest
    ]


def test_power_cuts_lose_nothing_that_was_acknowledged(disk: Disk) -> None:
    moment = random.Random(SEED)
    acknowledged = 0
    for cycle in range(1, CUTS + 1):
        notes = Notes()
        disk.mount()
        try:
            # Each cycle begins with an empty root: the disk is small, and what was checked needs no second look.
            shutil.rmtree(disk.mount_point / "root", ignore_errors=True)
            work_until_cut(disk, cycle, moment, notes)
        finally:
            disk.unmount()
        disk.mount()
        try:
            assert lost(disk, notes) == [], f"cycle {cycle} of seed {SEED}"
        finally:
            disk.unmount()
        acknowledged += len(notes.digests)
    disk.check()
    print(f"{CUTS} power cuts, {acknowledged} instances acknowledged, none lost (seed {SEED})")


def test_without_syncs_the_same_loses_data(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a rig in which nothing is ever lost would prove nothing."""
    monkeypatch.setattr(durable, "_NO_SYNC", True)
    moment = random.Random(SEED)
    # The file system writes by itself every few seconds: one cut may come just after that, not each of several.
    assert any(loses_without_syncs(disk, cycle, moment) for cycle in range(1, CONTROLS + 1)), (
        "nothing was lost without syncs: the rig does not cut the power"
    )


def loses_without_syncs(disk: Disk, cycle: int, moment: random.Random) -> bool:
    """Cut the power of a receiver that syncs nothing, and tell whether an acknowledged instance is gone."""
    notes = Notes()
    disk.mount()
    try:
        shutil.rmtree(disk.mount_point / "root", ignore_errors=True)
        # No keeper here: the commits of its index would make the disk sync what lies before them.
        with contextlib.suppress(OSError), receiver(disk.mount_point / "root", CONFIG) as node:
            sender = threading.Thread(target=send_until_cut, args=(node.port, cycle, 0, notes))
            sender.start()
            notes.wait_for(5)
            time.sleep(moment.uniform(0.0, 0.15))
            disk.cut()
            sender.join()
    finally:
        disk.unmount()
    disk.mount()
    try:
        there = {hashlib.sha256(path.read_bytes()).hexdigest() for path in disk.mount_point.rglob("*.dcm")}
        return len(there) < len(notes.digests)
    finally:
        disk.unmount()


def answer_of(port: int) -> tuple[int, bytes]:
    with RawPeer(port) as peer:
        peer.send(associate_rq(STANDARD))
        kind, body = peer.read_pdu()
        return kind, body[:4]


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_below_the_reserve_associations_are_refused_until_there_is_room_again(tmp_path: Path, what: str) -> None:
    is_bytes = what == "bytes"
    keys = {"storage.reserve_mb": 100 if is_bytes else 0, "storage.reserve_inodes": 0 if is_bytes else 100}
    with made(tmp_path, *(() if is_bytes else ("-N", "256"))) as disk:
        disk.mount()
        ballast = [disk.mount_point / f"ballast-{number}" for number in range(1 if is_bytes else 150)]
        with receive_role(tmp_path, **{"storage.root": str(disk.mount_point / "root"), **keys}) as role:
            role.root = disk.mount_point / "root"
            port = role.wait_ready()
            assert answer_of(port)[0] == ASSOCIATE_AC
            for file in ballast:
                file.touch()
            if is_bytes:
                with ballast[0].open("wb") as whole:
                    os.posix_fallocate(whole.fileno(), 0, 100 << 20)
            wait_until(lambda: role.counters()["storage"] != "ok", "the fault")
            assert answer_of(port) == (ASSOCIATE_RJ, bytes([0, 2, 3, 1]))
            for file in ballast:
                file.unlink()
            wait_until(lambda: role.counters()["storage"] == "ok", "room")
            assert answer_of(port)[0] == ASSOCIATE_AC
        disk.unmount()
