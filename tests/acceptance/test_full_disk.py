"""A storage that is full or read-only: senders are told so, nothing is half there, and the node goes on when it can."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import (
    Node,
    data_set_of,
    run_tool,
    send_as_is,
    small_series,
    sop_and_digest,
    storescu,
    tool,
    wait_until,
)
from tests.wire_peers import ASSOCIATE_RJ, STANDARD, RawPeer, associate_rq

pytestmark = pytest.mark.acceptance

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
SIZE_MB = 64
# Larger than what the roles' own small files free and take while the file system is full.
SIDE = 512
SLICES = 6


@dataclass
class SmallDisk:
    """A small file system of its own, with a ballast that fills it."""

    mount: Path
    device: str

    @property
    def ballast(self) -> Path:
        return self.mount / "ballast"

    def fill(self, *, leave_bytes: int = 0) -> None:
        """Fill the file system up to the last byte, or so many before it."""
        room = os.statvfs(self.mount)
        with self.ballast.open("ab", buffering=0) as file:
            if leave_bytes:
                os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - leave_bytes)
                return
            for size in (1 << 20, 1 << 12):
                with suppress(OSError):
                    while file.write(bytes(size)):
                        pass

    def free(self) -> None:
        """Give all the room back."""
        self.ballast.unlink()

    def fail(self) -> None:
        """Make the kernel find an error, at which it makes the file system read-only under all that is open."""
        switch = Path("/sys/fs/ext4") / Path(self.device).name / "trigger_fs_error"
        if not switch.exists():
            pytest.skip("this kernel cannot be asked to find an ext4 error")
        switch.write_text("1")

    def repair(self) -> None:
        """Unmount, check and mount again."""
        unmount(self.mount)
        subprocess.run([tool("fsck.ext4"), "-p", self.device], check=False, capture_output=True)
        subprocess.run([tool("mount"), "-o", "errors=remount-ro", self.device, str(self.mount)], check=True)


def unmount(place: Path) -> None:
    """Unmount, once the last process that was told to end has let go."""
    wait_until(lambda: subprocess.run([tool("umount"), str(place)], check=False).returncode == 0, f"{place} to be free")


@contextmanager
def small_disk(kind: str, folder: Path) -> Iterator[SmallDisk]:
    """Mount a file system of ``SIZE_MB``; it is gone when the block ends."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place = folder / "disk"
    place.mkdir()
    device = "tmpfs"
    if kind == "ext4":
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(SIZE_MB << 20)
        subprocess.run([tool("mkfs.ext4"), "-q", "-m", "0", str(image)], check=True)
        made = run_tool("losetup", "--find", "--show", image)
        if made.returncode:
            pytest.skip(f"no loop device: {made.stdout.strip()}")
        device = made.stdout.strip()
    options = ["-o", "errors=remount-ro", device] if kind == "ext4" else ["-t", "tmpfs", "-o", f"size={SIZE_MB}m", kind]
    try:
        mounted = run_tool("mount", *options, place)
        if mounted.returncode:
            pytest.skip(f"cannot mount: {mounted.stdout.strip()}")
        try:
            yield SmallDisk(place, device)
        finally:
            unmount(place)
    finally:
        if device != "tmpfs":
            subprocess.run([tool("losetup"), "-d", device], check=True)


def node_on(disk: SmallDisk, folder: Path) -> Node:
    """Return a node whose root lies on the small file system, without a reserve: it meets the very end of the room."""
    return Node(
        folder / "node",
        storage={"root": str(disk.mount / "root"), "reserve_mb": 0},
        completion={"quiet_s": 1.0},
        receiver={"idle_timeout_s": 600.0},
    )


def store(peer: RawPeer, file: Path) -> int:
    """Send one file on an open association and return the status."""
    return peer.store(sop_and_digest(file)[0], data_set_of(file)).status


def ask(port: int) -> tuple[int, bytes]:
    """Ask for a new association and return kind and content of the answer."""
    with RawPeer(port) as peer:
        peer.send(associate_rq(STANDARD))
        return peer.read_pdu()


def parts(node: Node) -> list[str]:
    """Return what is neither whole nor part of the journal's own records."""
    return [
        path.name
        for path in node.layout.incoming.rglob("*")
        if path.is_file() and path.suffix not in {".dcm", ".jsonl"}
    ]


def is_rejected_for_now(port: int) -> bool:
    """Return whether a new association gets A-ASSOCIATE-RJ: transient, by the provider, temporary congestion."""
    kind, body = ask(port)
    return kind == ASSOCIATE_RJ and body[1:4] == bytes((2, 3, 1))


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_full_disk_is_told_to_senders_and_survived(tmp_path: Path, kind: str) -> None:
    uid, files = small_series(tmp_path, 1, slices=SLICES, side=SIDE)
    acknowledged = dict(map(sop_and_digest, files))
    with small_disk(kind, tmp_path) as disk, node_on(disk, tmp_path) as node:
        roles = node.whole_roles()
        port = node.port
        with RawPeer(port) as peer:
            peer.associate()
            assert store(peer, files[0]) == SUCCESS

            disk.fill()
            assert store(peer, files[1]) == OUT_OF_RESOURCES
            assert store(peer, files[1]) == OUT_OF_RESOURCES, "and the association lives"
            assert not parts(node)
            node.wait_for(lambda: is_rejected_for_now(port), "a new association is rejected for now")
            assert storescu(port, files[2:3]).returncode != 0

            disk.free()
            assert [store(peer, file) for file in files[1:]] == [SUCCESS] * (SLICES - 1)
            node.wait_for(lambda: ask(port)[0] != ASSOCIATE_RJ, "new associations are taken again")
            peer.release()
        series = node.wait_series(uid, instances=SLICES)
        assert series.instances == SLICES
        node.wait_settled()
        node.check_promises(acknowledged)
        assert node.roles() == roles, "no role died of it"
        assert node.findings() == []
        assert node.terminate() == 0


def test_keeper_and_worker_wait_for_room(tmp_path: Path) -> None:
    uid, files = small_series(tmp_path, 1, slices=SLICES, side=SIDE)
    acknowledged = dict(map(sop_and_digest, files))
    with small_disk("tmpfs", tmp_path) as disk, node_on(disk, tmp_path) as node:
        roles = node.whole_roles()
        with RawPeer(node.port) as peer:
            peer.associate()
            assert [store(peer, file) for file in files] == [SUCCESS] * SLICES
            # Enough for rows, far too little for results.
            disk.fill(leave_bytes=256 << 10)
            peer.release()
        node.wait_for(lambda: node.events("storage takes no results"), "the job meets the full disk")
        assert node.series(uid).state != "FAILED"  # type: ignore[union-attr]
        assert node.roles() == roles, "no role died of it"
        disk.fill()
        # The keeper cannot commit now; it must go on as soon as it can.
        disk.free()
        node.wait_series(uid)
        node.wait_settled()
        node.check_promises(acknowledged)
        (job,) = node.json("series", "show", uid)["jobs"]
        assert job["failures"] == 0, "a full disk is not the fault of the job"
        assert node.roles() == roles
        assert node.findings() == []


def test_file_system_that_becomes_read_only(tmp_path: Path) -> None:
    uid, files = small_series(tmp_path, 1, slices=SLICES, side=SIDE)
    with small_disk("ext4", tmp_path) as disk:
        with node_on(disk, tmp_path) as node:
            roles = node.whole_roles()
            port = node.port
            with RawPeer(port) as peer:
                peer.associate()
                assert [store(peer, file) for file in files[:3]] == [SUCCESS] * 3
                acknowledged = dict(map(sop_and_digest, files[:3]))
                disk.fail()
                assert store(peer, files[3]) == OUT_OF_RESOURCES
                assert store(peer, files[4]) == OUT_OF_RESOURCES
                node.wait_for(lambda: is_rejected_for_now(port), "a new association is rejected for now")
                assert node.roles() == roles, "no role died of it"
            node.terminate()
        disk.repair()
        with node_on(disk, tmp_path) as node:
            node.wait_settled()
            node.check_promises(acknowledged)
            assert not parts(node)
            assert [answer.status for answer in send_as_is(node.port, files)] == [SUCCESS] * SLICES
            node.wait_series(uid, instances=SLICES)
            node.wait_settled()
            node.check_promises(dict(map(sop_and_digest, files)))
            assert node.findings() == []
