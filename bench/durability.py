"""Power cuts in the middle of ingest: what ctnode, DCMTK storescp and Orthanc lose of what they have acknowledged.

    python bench/durability.py [--cuts 20] [--seed 1] [--peers ctnode "ctnode nosync" dcmtk orthanc]

As root: each peer stores on an ext4 in a file, which loses all that is not on disk at a random moment (FS_IOC_SHUTDOWN
without a flush). What two senders have read 0000H for is then looked for, byte by byte, in all files that are left.
ctnode is also run without its syncs, as the control that shows what the rig can find.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.peers import ENVIRONMENT, PEERS, Absent, Serving, machine
from tests.wire_peers import RawPeer, data_set, uid

FS_IOC_SHUTDOWN = 0x8004587D
WITHOUT_FLUSH = 2
IMAGE_BYTES = 512 << 20
SENDERS = 2


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


def send(port: int, sender: int, seed: int, notes: dict[bytes, str]) -> None:
    pixels = random.Random(seed).randbytes(100_000)
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


def one_cut(peer: str, folder: Path, seed: int, moment: random.Random) -> tuple[int, int]:
    """Return how many instances were acknowledged, and how many of them are not there afterwards."""
    image, place = folder / "ext4", folder / "mnt"
    place.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    notes: dict[bytes, str] = {}
    # A peer that ends with errors has lost its disk.
    with mounted(image, place), suppress(OSError), serve(peer, place) as node:
        # What was there before the first instance is not what is asked for.
        os.sync()
        threads = [threading.Thread(target=send, args=(node.port, n, seed, notes)) for n in range(SENDERS)]
        for thread in threads:
            thread.start()
        time.sleep(moment.uniform(0.1, 0.5))
        cut(place)
        for pid in node.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, 15)
        for thread in threads:
            thread.join()
    with mounted(image, place):
        found = set()
        pixels = random.Random(seed).randbytes(100_000)
        for file in place.rglob("*"):
            if file.is_file() and file.stat().st_size > len(pixels):
                content = file.read_bytes()
                if content.rstrip(b"\0").endswith(pixels.rstrip(b"\0")):
                    found |= {name for name in notes if name + b"\0" in content or name + b"\x20" in content}
        return len(notes), len(notes.keys() - found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peers", nargs="+", default=["ctnode", "ctnode nosync", "dcmtk", "orthanc"])
    options = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        sys.exit("needs root and mkfs.ext4")
    print(machine(), flush=True)
    for peer in options.peers:
        moment = random.Random(options.seed)
        acknowledged = lost = 0
        try:
            for number in range(options.cuts):
                with tempfile.TemporaryDirectory(prefix="durability-") as name:
                    counts = one_cut(peer, Path(name), number + 1, moment)
                acknowledged, lost = acknowledged + counts[0], lost + counts[1]
        except Absent as absent:
            print(f"skipped: {absent} is absent")
            continue
        print(f"{peer}: {options.cuts} power cuts, {lost} lost of {acknowledged} acknowledged", flush=True)


if __name__ == "__main__":
    main()
