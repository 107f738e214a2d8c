"""Power cuts and kills in the middle of ingest: what ctnode, DCMTK storescp and Orthanc lose of what they acknowledged.

    python bench/durability.py [--cuts 20] [--kills 20] [--seed 1] [--peers ctnode "ctnode nosync" dcmtk orthanc]
                               [--folder DIR]

A cut (as root): each peer stores on an ext4 in a file, which loses all that is not on disk at a random moment
(FS_IOC_SHUTDOWN without a flush). A kill: SIGKILL to all processes of the peer at a random moment; the disk stays.
What two senders have read 0000H for is then looked for, byte by byte, in all files that are left. Torn is a file under
a final name that is only a part of an instance, which nobody acknowledged and the next program takes for an image.
Unknown is what is there and not in the index of Orthanc, which does not look for such files when it starts. ctnode is
also run without its syncs, as the control that shows what the rig can find.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.peers import ENVIRONMENT, PEERS, Absent, Serving, family, machine
from tests.wire_peers import RawPeer, data_set, uid

FS_IOC_SHUTDOWN = 0x8004587D
WITHOUT_FLUSH = 2
IMAGE_BYTES = 512 << 20
SENDERS = 2
HEAD_BYTES = 4096


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        yield
    finally:
        # A process that was killed may still be on its way out.
        for _ in range(100):
            if subprocess.run(["umount", str(place)], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.05)
        else:
            subprocess.run(["umount", "-l", str(place)], check=False)


def cut(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", WITHOUT_FLUSH))
    finally:
        os.close(descriptor)


def pixels_of(seed: int) -> bytes:
    return random.Random(seed).randbytes(100_000)


def send(port: int, sender: int, seed: int, notes: dict[bytes, str]) -> None:
    pixels = pixels_of(seed)
    with suppress(OSError, EOFError, AssertionError), RawPeer(port) as peer:
        peer.associate(called="ANY")
        for number in range(100_000):
            name = uid(seed, sender, number)
            if peer.store(name, data_set(name, pixels=pixels)).status:
                return
            notes[name.encode()] = name


def serve(peer: str, place: Path) -> AbstractContextManager[Serving]:
    ENVIRONMENT.pop("CTNODE_TEST_NOSYNC", None)
    if peer == "ctnode nosync":
        ENVIRONMENT["CTNODE_TEST_NOSYNC"] = "1"
    return PEERS[peer.partition(" ")[0]](place)


@dataclass(frozen=True)
class Count:
    """Instances that were acknowledged, those of them that are not there afterwards or unknown, and torn files."""

    acknowledged: int = 0
    lost: int = 0
    unknown: int = 0
    torn: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


def work_until(peer: str, place: Path, seed: int, moment: random.Random, end: Callable[[], None]) -> dict[bytes, str]:
    """Send to a peer until ``end`` has ended it; return what the senders have read 0000H for."""
    notes: dict[bytes, str] = {}
    # A peer that ends with errors has lost its disk or its life.
    with suppress(OSError), serve(peer, place) as node:
        # What was there before the first instance is not what is asked for.
        os.sync()
        threads = [threading.Thread(target=send, args=(node.port, n, seed, notes)) for n in range(SENDERS)]
        for thread in threads:
            thread.start()
        time.sleep(moment.uniform(0.1, 0.5))
        end()
        for pid in node.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        for thread in threads:
            thread.join()
    return notes


def look_for(notes: dict[bytes, str], place: Path, seed: int) -> Count:
    """Look for what was acknowledged in all files that are left."""
    found: set[bytes] = set()
    torn = 0
    pixels = pixels_of(seed)
    for file in place.rglob("*"):
        if not file.is_file():
            continue
        content = file.read_bytes()
        if content.rstrip(b"\0").endswith(pixels.rstrip(b"\0")):
            # The UIDs stand before the pixels.
            head = content[:HEAD_BYTES]
            found |= {name for name in notes if name + b"\0" in head or name + b"\x20" in head}
        elif content[128:132] == b"DICM" and file.suffix != ".part":
            torn += 1
    return Count(len(notes), len(notes.keys() - found), len(found - known_to_orthanc(place, found)), torn)


def known_to_orthanc(place: Path, found: set[bytes]) -> set[bytes]:
    """Return which of the instances the index of Orthanc knows; all of them where there is none."""
    index = place / "store" / "index"
    if not index.is_file():
        return found
    with closing(sqlite3.connect(index)) as connection:
        rows = connection.execute("SELECT value FROM DicomIdentifiers WHERE tagGroup = 8 AND tagElement = 24")
        return {str(value).encode() for (value,) in rows} & found


def one_cut(peer: str, folder: Path, seed: int, moment: random.Random) -> Count:
    """Cut the power of a peer once."""
    image, place = folder / "ext4", folder / "mnt"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    with mounted(image, place):
        notes = work_until(peer, place, seed, moment, partial(cut, place))
    with mounted(image, place):
        return look_for(notes, place, seed)


def kill_children() -> None:
    """Kill all processes that this one has started, and theirs."""
    for pid in family([os.getpid()])[1:]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def one_kill(peer: str, folder: Path, seed: int, moment: random.Random) -> Count:
    """Kill a peer once."""
    return look_for(work_until(peer, folder, seed, moment, kill_children), folder, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peers", nargs="+", default=["ctnode", "ctnode nosync", "dcmtk", "orthanc"])
    parser.add_argument("--folder", type=Path, help="where everything lies meanwhile (default: a temporary one)")
    options = parser.parse_args()
    if options.cuts and (os.geteuid() != 0 or shutil.which("mkfs.ext4") is None):
        sys.exit("power cuts need root and mkfs.ext4; --cuts 0 leaves them out")
    print(machine(), flush=True)
    for what, count, once in (("power cuts", options.cuts, one_cut), ("kills", options.kills, one_kill)):
        for peer in options.peers if count else ():
            moment = random.Random(options.seed)
            total = Count()
            try:
                for number in range(1, count + 1):
                    with tempfile.TemporaryDirectory(prefix="durability-", dir=options.folder) as name:
                        total += once(peer, Path(name), options.seed * 100_000 + number, moment)
            except Absent as absent:
                print(f"skipped: {absent} is absent")
                continue
            print(
                f"{peer}: {count} {what}, {total.lost} lost of {total.acknowledged} acknowledged, "
                f"{total.unknown} unknown, {total.torn} torn files",
                flush=True,
            )


if __name__ == "__main__":
    main()
