"""Objects a second to DCMTK's storescp: ctnode's deliverer beside DCMTK's own senders, and after seven days down.

Run from the repository: ``python -m bench.delivery [--objects 1000] [--rounds 5] [--week 10000]``. Each sender sends
the same files over loopback to a storescp of its own kind, in turns, so that a noisy machine is noisy for all. ctnode
is measured whole: with the rows of its outbox, which are committed with a sync. Prints medians and ratios.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ctnode.archive import lanes, outbox
from ctnode.config import Log
from ctnode.ops import log
from tests.delivery_root import Clock, Office, target, write_object
from tests.wire_peers import CT, uid

SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}
DAY_S = 86400.0


def program(name: str) -> str:
    found = shutil.which(name, path=SYSTEM_PATH)
    if found is None:
        raise SystemExit(f"{name} is not installed (Debian package dcmtk)")
    return found


@contextmanager
def storescp(folder: Path, *, port: int = 0) -> Iterator[int]:
    """One process a caller, bit for bit, as a fast archive."""
    folder.mkdir(exist_ok=True)
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    process = subprocess.Popen(
        [program("storescp"), "--fork", "--bit-preserving", "-aet", "THERE", "-od", str(folder), str(port)],
        env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait()


def deliver(place: Path, port: int, files: list[Path], associations: int) -> float:
    """Owe the files, ten a series, and return the seconds until all are sent and written down."""
    node = Office(place, [target("pacs", port, associations=associations)])
    try:
        _owe(node, files)
        began = time.perf_counter()
        node.work()
        seconds = time.perf_counter() - began
        assert set(node.states()) == {"SENT"}
        return seconds
    finally:
        node.close()


def _owe(node: Office, files: list[Path]) -> None:
    for start in range(0, len(files), max(10, len(files) // 20)):
        (revision,) = node.series()
        parcels = [
            outbox.Parcel("pacs", outbox.ORIGINAL, str(file), file.name)
            for file in files[start : start + max(10, len(files) // 20)]
        ]
        with node.root.database.immediate():
            outbox.post(node.root.database, revision, parcels)


def dcmtk(name: str, port: int, files: list[Path]) -> float:
    began = time.perf_counter()
    subprocess.run(
        [program(name), "-aec", "THERE", "127.0.0.1", str(port), *map(str, files)],
        env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - began


def compare(folder: Path, objects: int, kilobytes: int, rounds: int) -> None:
    files = [folder / f"{kilobytes}-{number:05d}.dcm" for number in range(objects)]
    content = np.random.default_rng(0).integers(0, 256, kilobytes << 10, dtype=np.uint8).tobytes()
    for number, file in enumerate(files):
        write_object(file, uid(kilobytes, number + 1), sop_class=CT, pixels=content)
    rates: dict[str, list[float]] = {}
    with storescp(folder / f"there-{kilobytes}") as port:
        ways: dict[str, Callable[[Path], float]] = {
            "ctnode, 1 association": lambda place: deliver(place, port, files, 1),
            "ctnode, 4 associations": lambda place: deliver(place, port, files, 4),
            "storescu": lambda _place: dcmtk("storescu", port, files),
            "dcmsend": lambda _place: dcmtk("dcmsend", port, files),
        }
        for number in range(rounds):
            for way, run in ways.items():
                place = folder / f"node-{kilobytes}-{number}-{way[-14:].replace(' ', '')}"
                rates.setdefault(way, []).append(objects / run(place))
                shutil.rmtree(place, ignore_errors=True)
    for way, found in rates.items():
        print(f"{objects} objects of {kilobytes} KB  {way:<24} {statistics.median(found):8.0f} objects/s")
    for way in ("ctnode, 1 association", "ctnode, 4 associations"):
        ratios = [
            own / max(first, second)
            for own, first, second in zip(rates[way], rates["storescu"], rates["dcmsend"], strict=True)
        ]
        print(f"{way} / the faster of DCMTK in the same round: median {statistics.median(ratios):.2f}")
    for file in files:
        file.unlink()


def week(folder: Path, objects: int, rounds: int) -> None:
    """Send the results of a week that wait, and as many that come while the destination is up; compare the rates."""
    rates: dict[str, list[float]] = {"normal": [], "after seven days down": []}
    for number in range(rounds):
        # Who comes second finds another disk: they take turns at it.
        turn = list(rates.items()) if number % 2 == 0 else list(rates.items())[::-1]
        for way, found in turn:
            place = folder / f"week-{number}-{way[:5]}"
            clock = Clock()
            modules = (outbox, lanes)
            for module in modules:
                module.time = clock  # type: ignore[assignment]
            with storescp(folder / f"there-{number}-{way[:5]}") as port:
                pass
            node = Office(place, [target("pacs", port)])
            for start in range(0, objects, max(1, objects // 20)):
                (revision,) = node.series()
                last = min(objects, start + max(1, objects // 20))
                node.owe(revision, [uid(5, name + 1) for name in range(start, last)], "pacs")
            tries = 0
            until = clock.now + 7 * DAY_S
            while way != "normal" and clock.now < until:
                node.work()
                tries += 1
                clock.now = max(node.lane("pacs").due_at, clock.now + 1.0)
            there = folder / f"there-{number}-{way[:5]}"
            with storescp(there, port=port):
                # What was written until now is not what is measured.
                os.sync()
                began = time.perf_counter()
                node.work()
                seconds = time.perf_counter() - began
            stored = len(list(there.iterdir()))
            repeated = node.root.database.counters().get("deliveries.repeated", 0)
            assert set(node.states()) == {"SENT"}
            assert (stored, repeated) == (objects, 0), (stored, repeated)
            found.append(objects / seconds)
            print(f"{way}: {tries} tries in vain, then {objects} objects once each, {objects / seconds:.0f} objects/s")
            node.close()
            shutil.rmtree(place)
            shutil.rmtree(there)
    ratios = [late / normal for normal, late in zip(*rates.values(), strict=True)]
    print(f"catch-up / normal rate, in pairs: median {statistics.median(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--week", type=int, default=10000, help="results of the week; 0: none")
    options = parser.parse_args()
    log.configure(Log(level="error"), role="bench")
    with tempfile.TemporaryDirectory(prefix="ctnode-bench-") as name:
        folder = Path(name)
        compare(folder, options.objects, 512, options.rounds)
        compare(folder, options.objects, 32, options.rounds)
        if options.week:
            week(folder, options.week, options.rounds)


if __name__ == "__main__":
    main()
