"""What a legitimate sender gets alone, and beside peers that are silent, slow or talk nonsense.

    python bench/hostile.py [--peers 50 200] [--seconds 10] [--folder DIR]

The sender is one raw socket that stores slices of half a megabyte and waits for each answer; the others come from
other loopback addresses, as they would in a network. Each that is cut comes back at once.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import select
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.peers import machine
from tests.pdu_writer import GARBAGE_STARTS, request
from tests.wire_peers import ASSOCIATE_AC, P_DATA, RawPeer, data_set, pdu, pdv, store_command, uid
from tests.wire_roles import ReceiveRole

KINDS = ("silent", "slow request", "slow data", "garbage", "bad instances")
SLICE_BYTES = 512 * 512 * 2
# Time-outs as short as an operator would set them on a hostile network, so that many are cut within a run.
KEYS: dict[str, object] = {
    "receiver.request_timeout_s": 5.0, "receiver.pdu_timeout_s": 5.0, "receiver.idle_timeout_s": 5.0,
    "receiver.processes": 2, "receiver.max_per_address": 100, "receiver.max_associations": 400, "log.level": "warning",
}  # fmt: skip


class Crowd:
    """Peers of one kind each, in a process of their own."""

    def __init__(self, port: int, count: int, kinds: tuple[str, ...]) -> None:
        self._port = port
        self._kinds = [kinds[number % len(kinds)] for number in range(count)]
        self._random = random.Random(count)
        context = multiprocessing.get_context("fork")
        self._cut = context.Value("L", 0)
        self._stop_wanted = context.Event()
        self._process = context.Process(target=self._run)
        self._process.start()

    def end(self) -> int:
        """Go away, and return how many were cut meanwhile."""
        self._stop_wanted.set()
        self._process.join()
        return int(self._cut.value)

    def _connect(self, number: int) -> tuple[socket.socket, Iterator[bytes]]:
        connection = socket.socket()
        connection.bind((f"127.0.1.{1 + number // 50}", 0))
        connection.connect(("127.0.0.1", self._port))
        connection.setblocking(False)
        return connection, getattr(self, "_" + self._kinds[number].replace(" ", "_"))()

    def _silent(self) -> Iterator[bytes]:
        while True:
            yield b""

    def _slow_request(self) -> Iterator[bytes]:
        for byte in request():
            yield bytes([byte])
        yield from self._silent()

    def _slow_data(self) -> Iterator[bytes]:
        yield request()
        for byte in pdu(P_DATA, pdv(3, 3, store_command(b"1.2.3")) + pdv(3, 0, bytes(500))):
            yield bytes([byte])
        yield from self._silent()

    def _garbage(self) -> Iterator[bytes]:
        yield self._random.choice(GARBAGE_STARTS)
        yield from self._silent()

    def _bad_instances(self) -> Iterator[bytes]:
        yield request()
        while True:
            yield pdu(P_DATA, pdv(3, 3, store_command(b"..")) + pdv(3, 2, bytes(1000)))

    def _run(self) -> None:
        peers = [self._connect(number) for number in range(len(self._kinds))]
        # A quarter of a second between two sends of each peer.
        while not self._stop_wanted.wait(0.25):
            for number, (connection, words) in enumerate(peers):
                try:
                    connection.send(next(words))
                    while select.select([connection], [], [], 0)[0]:
                        if not connection.recv(1 << 16):
                            raise ConnectionResetError
                except BlockingIOError:
                    continue
                except OSError:
                    self._cut.value += 1
                    connection.close()
                    with contextlib.suppress(OSError):
                        peers[number] = self._connect(number)
        for connection, _ in peers:
            connection.close()


def rate(port: int, seconds: float, run: int) -> tuple[float, float, Counter[int]]:
    """Return instances per second, the slowest answer, and the statuses, of one sender in good faith."""
    pixels = os.urandom(SLICE_BYTES)
    waits: list[float] = []
    statuses: Counter[int] = Counter()
    with RawPeer(port) as peer:
        peer.send(request(calling=b"LEGITIMATE"))
        assert peer.read_pdu()[0] == ASSOCIATE_AC
        began_s = time.perf_counter()
        while time.perf_counter() - began_s < seconds:
            name = uid(run, len(waits))
            sent_s = time.perf_counter()
            statuses[peer.store(name, data_set(name, pixels=pixels), piece_bytes=131_000).status] += 1
            waits.append(time.perf_counter() - sent_s)
        took_s = time.perf_counter() - began_s
        peer.release()
    return len(waits) / took_s, 1000 * statistics.quantiles(waits, n=100)[98], statuses


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peers", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--folder", type=Path, help="where everything lies meanwhile (default: a temporary one)")
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="hostile-") as name:
        role = ReceiveRole(Path(name), **KEYS)
        try:
            port = role.wait_ready()
            rate(port, 1.0, 0)
            print(f"\n{'beside':<24}{'alone/s':>9}{'beside/s':>9}{'ratio':>7}{'p99 ms':>9}{'cut':>7}  statuses")
            alone, _, _ = rate(port, options.seconds, 1)
            runs = [(count, kinds) for count in options.peers for kinds in [*((kind,) for kind in KINDS), KINDS]]
            for run, (count, kinds) in enumerate(runs, start=2):
                crowd = Crowd(port, count, kinds)
                beside, slowest_ms, statuses = rate(port, options.seconds, run)
                cut = crowd.end()
                # The machine is not the same all the time: before and after count alike.
                after, _, _ = rate(port, options.seconds, 1000 + run)
                usual, alone = (alone + after) / 2, after
                who = f"{count} {kinds[0] if len(kinds) == 1 else 'of all kinds'}"
                told = ", ".join(f"{status:04X} {times}" for status, times in statuses.items())
                print(f"{who:<24}{usual:>9.0f}{beside:>9.0f}{beside / usual:>7.2f}{slowest_ms:>9.1f}{cut:>7}  {told}")
            print(f"\ncut by the node: {role.counters()['cut']}, ended: {role.counters()['ended']}")
        finally:
            role.end()


if __name__ == "__main__":
    main()
