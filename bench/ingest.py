"""What the DICOM port takes, in one run on one machine, beside DCMTK storescp, Orthanc and a plain pynetdicom SCP.

    python bench/ingest.py [--what throughput single latency many idle connects big] [--senders 1 4 16] [--count 1200]
                           [--rounds 3] [--folder DIR] [--peers ctnode dcmtk orthanc pynetdicom] [--big-mb 4094]

``throughput``: instances per second of DCMTK's storescu as real processes, medians over rounds in which the peers take
turns; for ctnode, whose keeper runs beside it, also how long after the last acknowledgement the last instance was in
the index. Each sender has 250 at least. A round needs up to 2 GB for each peer. ``single``: 500 associations of one
image.
``latency``: C-STORE to C-STORE-RSP at 100 slices a second. ``many``: 200 associations at once, 20 slices each.
``idle``: what 200 silent associations cost. ``connects``: how long 200 simultaneous connects take, and their
associations. ``big``: one object of 4 GB.

ctnode syncs each instance before it answers, the others do what they do by default. TCP_NODELAY=1 is set for all:
without it DCMTK and what is built on it stall 44 ms an image on loopback. Every sender has instances of its own, every
run an empty store. The page cache is filled before, with the holes of a sparse file, as it is on a machine that has run
for a day: a virtual machine gives memory that is free back to its host, and whoever takes it first pays for it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pynetdicom.presentation import AllStoragePresentationContexts

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.connects import burst
from bench.peers import (
    ENVIRONMENT,
    PEERS,
    Absent,
    Serving,
    cpu_seconds,
    dcmtk_tool,
    machine,
    make_instances,
    resident_mb,
    spread,
)
from ctnode.archive.database import Database
from tests.wire_peers import (
    CT,
    EXPLICIT,
    IMPLICIT,
    P_DATA,
    STANDARD,
    VERIFICATION,
    Answer,
    RawPeer,
    data_set,
    element,
    pdu,
    pdv,
    store_command,
    uid,
)

PIXELS = bytes(range(256)) * 2048
INDEX_S = 60.0
# So many images that the start of a sender, which takes it half a second beside fifteen others, does not count.
LEAST_EACH = 250
SINGLE = 500
MANY, SLICES = 200, 20
PER_SECOND = 100
OTHERS = [str(context.abstract_syntax) for context in AllStoragePresentationContexts if context.abstract_syntax != CT]
AS_STORESCU = (
    (1, VERIFICATION, (IMPLICIT,)),
    *(
        (2 * number + 3, name, (EXPLICIT, "1.2.840.10008.1.2.2", IMPLICIT))
        for number, name in enumerate([CT, *OTHERS[:126]])
    ),
)


def percentile(values: Sequence[float], percent: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


@contextmanager
def serving(peer: str, folder: Path) -> Iterator[Serving]:
    # Nothing is removed before the whole run is over: ext4 looks at each inode that was freed in the last minutes
    # before it hands out another, so whoever came after a removal would pay for it.
    with PEERS[peer](Path(tempfile.mkdtemp(dir=folder, prefix="store-"))) as node:
        yield node


def indexed_after(root: Path, count: int) -> float:
    """Return the seconds until the index has as many instances."""
    began = time.perf_counter()
    with Database(root / "ctnode.db", readonly=True) as database:
        while database.counters().get("instances", 0) < count:
            if time.perf_counter() - began > INDEX_S:
                raise RuntimeError("the index never had all that was acknowledged")
            time.sleep(0.01)
    return time.perf_counter() - began


# ------------------------------------------------------------------------------------------------------ throughput


def measure(peer: str, sources: Sequence[Path], count: int, folder: Path) -> tuple[float, float, float]:
    """Return instances per second of all senders together, CPU ms of each, and the seconds until all are indexed."""
    with serving(peer, folder) as node:
        command = [dcmtk_tool("storescu"), "--scan-directories", "-aec", "ANY", "127.0.0.1", str(node.port)]
        used = cpu_seconds(node.pids)
        started = time.perf_counter()
        senders = [subprocess.Popen([*command, source], env=ENVIRONMENT) for source in sources]
        codes = [sender.wait() for sender in senders]
        seconds = time.perf_counter() - started
        if any(codes):
            raise RuntimeError(f"storescu to {peer} ended with {codes}")
        total = count * len(sources)
        cpu_ms = 1e3 * (cpu_seconds(node.pids) - used) / total
        lag_s = indexed_after(node.root, total) if node.root is not None else 0.0
    # Who syncs nothing leaves it to the disk to do so while the next one is measured.
    os.sync()
    return total / seconds, cpu_ms, lag_s


def fill_page_cache(folder: Path) -> None:
    """Read holes until no memory is free but what the kernel keeps; they are dropped as soon as it is needed."""
    place = folder / "holes"
    piece = memoryview(bytearray(1 << 20))
    with place.open("wb") as file:
        file.truncate(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with place.open("rb", buffering=0) as file:
        while file.readinto(piece):
            pass


def throughput(options: argparse.Namespace, folder: Path) -> None:
    rates: dict[str, dict[int, list[float]]] = {}
    for senders in options.senders:
        count = max(options.count // senders, LEAST_EACH)
        sources = [folder / f"source-{senders}-{number}" for number in range(senders)]
        for source in sources:
            make_instances(source, count)
        os.sync()
        fill_page_cache(folder)
        # In turn: what else the machine does meanwhile changes slowly.
        for number in range(options.rounds):
            for peer in options.peers:
                try:
                    rate, cpu_ms, lag_s = measure(peer, sources, count, folder)
                except Absent as absent:
                    print(f"skipped: {absent} is absent")
                    continue
                rates.setdefault(peer, {}).setdefault(senders, []).append(rate)
                lag = f", in the index {1e3 * lag_s:.0f} ms after the last acknowledgement" if lag_s else ""
                print(f"round {number + 1}, {senders} sending, {peer}: {rate:.0f}/s, {cpu_ms:.2f} ms of CPU each{lag}")
                sys.stdout.flush()
    print(f"\n{'instances/s':<12}" + "".join(f"{f'{senders} sending':>12}" for senders in options.senders))
    for peer, found in rates.items():
        print(f"{peer:<12}" + "".join(f"{statistics.median(found[s]):>12.0f}" for s in options.senders))
    for ours in (peer for peer in rates if peer.startswith("ctnode")):
        for peer in (peer for peer in rates if not peer.startswith("ctnode")):
            pairs = {s: zip(rates[ours][s], rates[peer][s], strict=True) for s in options.senders}
            ratios = ", ".join(f"{statistics.median(a / b for a, b in pairs[s]):.2f}x with {s}" for s in pairs)
            print(f"{ours} / {peer}, median of the rounds: {ratios}")


# --------------------------------------------------------------------------------------- with a peer of our own


def single(options: argparse.Namespace, folder: Path) -> None:
    """One association for each image, one after the other; with few contexts, and with as many as storescu proposes."""
    for proposal in (STANDARD, AS_STORESCU):
        seconds: dict[str, float] = {}
        for peer in [peer for peer in options.peers if peer != "pynetdicom"]:
            try:
                with serving(peer, folder) as node:
                    began = time.perf_counter()
                    for number in range(SINGLE):
                        with RawPeer(node.port) as sender:
                            sender.associate(proposal, called="ANY")
                            assert store(sender, number).status == 0
                            sender.release()
                    seconds[peer] = time.perf_counter() - began
            except Absent as absent:
                print(f"skipped: {absent} is absent")
                continue
            told = f"{SINGLE} associations of {len(proposal)} contexts and one image"
            print(f"{peer}: {told} in {seconds[peer]:.2f} s", flush=True)
        if {"ctnode", "dcmtk"} <= seconds.keys():
            print(f"ctnode / dcmtk: {seconds['ctnode'] / seconds['dcmtk']:.2f}x the time")


def store(sender: RawPeer, *number: int) -> Answer:
    name = uid(*number, 1)
    # The PDUs that every receiver takes; the rates of large ones are those of storescu above.
    return sender.store(name, data_set(name, pixels=PIXELS), piece_bytes=16_000)


def latency(_options: argparse.Namespace, folder: Path) -> None:
    with serving("ctnode", folder) as node, RawPeer(node.port) as sender:
        sender.associate()
        taken = []
        names = [uid(number, 1) for number in range(PER_SECOND * 10)]
        began = time.perf_counter()
        for number, name in enumerate(names):
            content = sender.store_bytes(name.encode(), data_set(name, pixels=PIXELS), piece_bytes=130_000)
            time.sleep(max(0.0, began + number / PER_SECOND - time.perf_counter()))
            sent = time.perf_counter()
            sender.send(content)
            assert sender.answer().status == 0
            taken.append(1e3 * (time.perf_counter() - sent))
        print(
            f"acknowledged at {PER_SECOND}/s after p50 {statistics.median(taken):.1f} ms, "
            f"p99 {percentile(taken, 99):.1f} ms, at most {max(taken):.1f} ms"
        )


def all_at_once(count: int, work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"{len(failures)} of {count} failed, such as: {failures[0]!r}")


def many(_options: argparse.Namespace, folder: Path) -> None:
    with serving("ctnode", folder) as node:
        taken: list[float] = []
        before = resident_mb(node.receivers)

        def send(number: int) -> None:
            with RawPeer(node.port) as sender:
                sender.associate()
                for slice_number in range(SLICES):
                    began = time.perf_counter()
                    assert store(sender, number, slice_number).status == 0
                    taken.append(time.perf_counter() - began)
                sender.release()

        began = time.perf_counter()
        all_at_once(MANY, send)
        seconds = time.perf_counter() - began
        assert node.root is not None
        lag = indexed_after(node.root, MANY * SLICES)
        print(
            f"{MANY} associations of {SLICES} slices: all stored in {seconds:.1f} s ({len(taken) / seconds:.0f}/s), "
            f"acknowledged after p50 {statistics.median(taken):.2f} s, p95 {percentile(taken, 95):.2f} s, memory "
            f"{resident_mb(node.receivers) - before:+.0f} MB, in the index {lag:.1f} s after the last acknowledgement"
        )


def idle(_options: argparse.Namespace, folder: Path) -> None:
    seconds = 10.0
    with serving("ctnode", folder) as node:
        began = cpu_seconds(node.receivers)
        time.sleep(seconds)
        without = cpu_seconds(node.receivers) - began
        before = resident_mb(node.receivers)
        peers = [RawPeer(node.port) for _ in range(MANY)]
        for peer in peers:
            peer.associate()
        began = cpu_seconds(node.receivers)
        time.sleep(seconds)
        used = cpu_seconds(node.receivers) - began
        print(
            f"{MANY} idle associations: {100 * (used - without) / seconds:+.1f} % of a core, "
            f"{resident_mb(node.receivers) - before:+.0f} MB over none"
        )
        for peer in peers:
            peer.release()
            peer.socket.close()


def connects(options: argparse.Namespace, folder: Path) -> None:
    """``MANY`` at once, several times over, each peer in turn."""
    for peer in [peer for peer in options.peers if peer != "pynetdicom"]:
        try:
            with serving(peer, folder) as node:
                for number in range(options.rounds):
                    # Who was released a moment ago is still on his way out.
                    time.sleep(1.0)
                    taken = burst(node.port, MANY)
                    print(
                        f"round {number + 1}, {peer}: {MANY} simultaneous connects stood after "
                        f"p95 {percentile(taken.connected_ms, 95):.1f} ms (at most {max(taken.connected_ms):.1f}), "
                        f"their associations after p95 {percentile(taken.accepted_ms, 95):.0f} ms",
                        flush=True,
                    )
        except Absent as absent:
            print(f"skipped: {absent} is absent")


def big(options: argparse.Namespace, folder: Path) -> None:
    """One multi-frame object, made while it is sent."""
    name = uid(1, 1)
    piece = bytes(1 << 16) + bytes(range(256)) * 240
    pieces = (options.big_mb << 20) // len(piece)
    head = data_set(name, pixels=b"")[:-4] + (pieces * len(piece)).to_bytes(4, "little")
    assert head.endswith(element(0x7FE0, 0x0010, b"OW", b"")[:-4] + head[-4:])
    with serving("ctnode", folder) as node, RawPeer(node.port) as sender:
        sender.socket.settimeout(600)
        sender.associate()
        before = peak = resident_mb(node.receivers)
        began = time.perf_counter()
        sender.send(pdu(P_DATA, pdv(3, 3, store_command(name.encode()))) + pdu(P_DATA, pdv(3, 0, head)))
        middle, last = pdu(P_DATA, pdv(3, 0, piece)), pdu(P_DATA, pdv(3, 2, piece))
        for number in range(pieces):
            sender.send(last if number == pieces - 1 else middle)
            if number % 1024 == 0:
                peak = max(peak, resident_mb(node.receivers))
        assert sender.answer().status == 0
        seconds = time.perf_counter() - began
        peak = max(peak, resident_mb(node.receivers))
        size_mb = pieces * len(piece) >> 20
        print(f"one object of {size_mb} MB: acknowledged after {seconds:.1f} s, memory {peak - before:+.0f} MB")


WHAT = {
    "throughput": throughput, "single": single, "latency": latency, "many": many, "idle": idle, "connects": connects,
    "big": big,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--what", nargs="+", choices=WHAT, default=["throughput"])
    parser.add_argument("--senders", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--count", type=int, default=1200, help="instances of all senders together")
    parser.add_argument("--rounds", type=int, default=3, help="how often each peer is measured")
    parser.add_argument("--folder", type=Path, help="where everything lies meanwhile (default: a temporary one)")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["ctnode", "dcmtk", "orthanc"])
    parser.add_argument("--big-mb", type=int, default=4094, help="megabytes of the big object")
    options = parser.parse_args()
    try:
        dcmtk_tool("storescu")
    except Absent as absent:
        sys.exit(f"{absent} is absent")
    print(machine(), flush=True)
    for what in options.what:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="ingest-") as name:
            spread(Path(name))
            WHAT[what](options, Path(name))


if __name__ == "__main__":
    main()
