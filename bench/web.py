"""The page over a large index, and what looking costs the senders.

Run from the repository: ``python -m bench.web [--series 10000] [--instances 1000000] [--requests 100] [--rounds 24]``.
First a real node on that index takes images from four of DCMTK's storescu at full rate. In turns of a second nobody
looks, somebody clicks four pages a second, or somebody keeps a live list open; the pages' times are taken as a browser
sees them, and the rates are compared in pairs. The web role runs all the time; what it costs when nobody looks is its
CPU in the first line. Then each page is asked in this process, with every statement timed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from bench.web_index import LAID, LARGE_SERIES, SEARCHED, fill, lay_files
from ctnode.archive.database import Database, journal_mode
from ctnode.archive.readers import Readers
from ctnode.config import Config
from ctnode.web.app import make_app
from ctnode.web.context import make_node
from tests.harness import Node, end, small_series, start_storescu

TARGET_PAGE_MS = 100.0
TARGET_STATEMENT_MS = 10.0
SENDERS = 4
LOOKS_PER_S = 4.0
ROOM_BYTES = 2 << 30
PAGES = (
    "/series",
    "/series?before=5000",
    "/series?q=9.8.77",
    "/series?q=CT3",
    "/series?q=NOBODY",
    "/series?state=FAILED&verdict=SUSPECT",
    "/series?modality=XX",
    "/series/4321",
    f"/series/{LARGE_SERIES}",
    "/",
    "/problems",
    "/api/v1/series?limit=500",
    "/dicom-web/studies?limit=50",
    f"/dicom-web/studies?StudyInstanceUID=1.2.840.{SEARCHED}",
    f"/dicom-web/studies/1.2.840.{SEARCHED}/series",
    f"/dicom-web/studies/1.2.840.{SEARCHED}/series/9.8.{SEARCHED}/instances",
    "/dicom-web/series?limit=50",
    "/dicom-web/instances?limit=100",
)


class _Rows:
    """A cursor whose rows are all there, so that their time is in the statement's."""

    def __init__(self, cursor: Any) -> None:
        self._rows = iter(cursor.fetchall())
        self.description, self.rowcount = cursor.description, cursor.rowcount

    def __iter__(self) -> Iterator[Any]:
        return self._rows

    def fetchall(self) -> list[Any]:
        return list(self._rows)

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def close(self) -> None:
        self._rows = iter(())


def time_statements(found: dict[str, list[float]]) -> None:
    """Let every statement of this process note its milliseconds."""
    plain = Database.execute

    def execute(self: Database, statement: str, parameters: Any = ()) -> Any:
        began = time.perf_counter()
        rows = _Rows(plain(self, statement, parameters))
        found.setdefault(statement, []).append((time.perf_counter() - began) * 1000)
        return rows

    def listed(self: Database, statement: str, parameters: Any = ()) -> list[dict[str, Any]]:
        cursor = execute(self, statement, parameters)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    Database.execute = execute  # type: ignore[method-assign,assignment]
    Database.rows = listed  # type: ignore[method-assign]


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def look_alone(root: Path, requests: int) -> None:
    """Ask each page in this process; say how long pages and statements take."""
    statements: dict[str, list[float]] = {}
    node = make_node(Config.model_validate({"storage": {"root": str(root)}}))
    client = TestClient(make_app(node), "http://127.0.0.1:8112")
    time_statements(statements)
    print(f"\n{'page':<54} {'p50 ms':>8} {'p95 ms':>8} {'of 100 ms':>10} {'slowest statement, median ms':>30}")
    for page in PAGES:
        statements.clear()
        times = []
        for _ in range(requests):
            began = time.perf_counter()
            assert client.get(page).status_code == 200, page
            times.append((time.perf_counter() - began) * 1000)
        slowest = max(statistics.median(one) for one in statements.values())
        p50, p95 = quantile(times, 0.5), quantile(times, 0.95)
        print(f"{page:<54} {p50:8.1f} {p95:8.1f} {p95 / TARGET_PAGE_MS:10.2f} {slowest:30.2f}")


class Browser:
    """One connection that stays open, as a browser keeps it; little more than the socket, so that it costs little."""

    def __init__(self, port: int) -> None:
        self._host = f"127.0.0.1:{port}"
        self._socket = socket.create_connection(("127.0.0.1", port), 60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        self._cookie = ""

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, page: str) -> None:
        """Send a request."""
        self._socket.sendall(f"GET {page} HTTP/1.1\r\nHost: {self._host}\r\n{self._cookie}\r\n".encode())

    def line(self) -> bytes:
        """Return the next line that comes."""
        return self._file.readline()

    def head(self) -> int:
        """Read the head of an answer; return the length of its body, -1 for one without end."""
        status, length = self.line().split()[1], -1
        assert status == b"200", status
        while line := self.line().rstrip():
            name, _, value = line.partition(b": ")
            if name.lower() == b"content-length":
                length = int(value)
            elif name.lower() == b"set-cookie":
                self._cookie = f"Cookie: {value.partition(b';')[0].decode()}\r\n"
        return length

    def get(self, page: str) -> float:
        """Ask for a page and read it; return the milliseconds until its last byte."""
        began = time.perf_counter()
        self.ask(page)
        length = self.head()
        assert len(self._file.read(length)) == length, page
        return (time.perf_counter() - began) * 1000


def look_around(port: int, stop: threading.Event, times: dict[str, list[float]]) -> None:
    """Ask for page after page, some in a second, as if many people clicked."""
    with Browser(port) as browser:
        while not stop.wait(1.0 / LOOKS_PER_S):
            # The next one in turn, also after a turn of others.
            page = min(PAGES, key=lambda one: len(times.get(one, ())))
            times.setdefault(page, []).append(browser.get(page))


def keep_open(port: int, stop: threading.Event, times: dict[str, list[float]]) -> None:
    """Keep the list open: ask for it again whenever the node says that something changed, at most once a second."""
    with Browser(port) as pulse, Browser(port) as browser:
        pulse.ask("/events")
        pulse.head()
        while not stop.is_set():
            if pulse.line() == b"event: changed\n":
                times.setdefault("/series, live", []).append(browser.get("/series"))
                stop.wait(1.0)


class Machine:
    """What processes have done so far: images that went out of the senders, rows of the index, CPU seconds by name."""

    def __init__(self, node: Node, senders: Sequence[int], image_bytes: int) -> None:
        self._senders = senders
        self._image_bytes = image_bytes
        self._index = Readers(node.layout.database)
        self._pids = {name: pids for name, pids in node.roles().items() if name in {"web", "keep", "receiver", "work"}}
        self._pids |= {"senders": list(senders), "this client": [os.getpid()]}

    def look(self) -> dict[str, float]:
        """Return seconds, images, rows and CPU seconds."""
        # A sender reads each image from its file just before it sends it; the node's own counters are a second old.
        read = sum(int(Path(f"/proc/{pid}/io").read_text().split()[1]) for pid in self._senders)
        found = {"at": time.monotonic(), "images": read / self._image_bytes}
        with self._index.reading() as database:
            found["rows"] = database.counters()["instances"]
        for name, pids in self._pids.items():
            found[name] = sum(_cpu_s(pid) for pid in pids)
        return found


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


Looker = Callable[[int, threading.Event, dict[str, list[float]]], None]
LOOKERS: dict[str, Looker | None] = {
    "nobody looks": None,
    f"{LOOKS_PER_S:.0f} pages a second": look_around,
    "one list kept open": keep_open,
}


def push_and_look(place: Path, rounds: int, seconds: float) -> None:
    """Push with four senders all the time; in turns nobody looks, somebody clicks, somebody keeps a list open."""
    # Nothing is complete meanwhile: no volume is computed in one turn and not in the other.
    node = Node(
        place,
        web={"enabled": True, "port": 0},
        node={"accept_unknown": True},
        completion={"quiet_s": 3000.0, "max_wait_s": 86000.0},
    )
    files = small_series(place, 1, side=512)[1]
    times: dict[str, list[float]] = {}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in LOOKERS}
    with node:
        port = int(node.wait_for(lambda: node.counters("web").get("port"), "the page is served"))
        senders = [start_storescu(node.port, files, "--repeat", "100000", "+II", "-q") for _ in range(SENDERS)]
        try:
            time.sleep(3.0)
            machine = Machine(node, [one.pid for one in senders], files[0].stat().st_size)
            for turn in range(rounds):
                # Forth and back, so that what grows with time falls on all alike.
                for name in list(LOOKERS) if turn % 2 == 0 else reversed(LOOKERS):
                    _make_room(node.layout.store)
                    turns[name].append(_turn(machine, LOOKERS[name], port, seconds, times))
        finally:
            for sender in senders:
                end(sender)
    _say_rates(turns)
    print(f"\n{'page, while four senders push':<54} {'p50 ms':>8} {'p95 ms':>8} {'of 100 ms':>10} {'asked':>6}")
    clicked = [one for page, each in times.items() if ", " not in page for one in each]
    lists = [one for page, each in times.items() if page.startswith("/series") for one in each]
    sums = {"list, search and series pages together": lists, "all that were clicked": clicked}
    for page, each in {**times, **sums}.items():
        p50, p95 = quantile(each, 0.5), quantile(each, 0.95)
        print(f"{page:<54} {p50:8.1f} {p95:8.1f} {p95 / TARGET_PAGE_MS:10.2f} {len(each):6}")


def _make_room(store: Path) -> None:
    """Remove what the senders brought and what is settled: it would fill a disk, and nothing here reads it again."""
    for folder in store.glob("*/*"):
        for file in list(folder.iterdir()) if folder.parent.name != LAID else ():
            file.unlink(missing_ok=True)
    assert shutil.disk_usage(store).free > ROOM_BYTES, "the room that this needs is not there"


def _turn(
    machine: Machine, looker: Looker | None, port: int, seconds: float, times: dict[str, list[float]]
) -> dict[str, float]:
    """Return what each process did per second of a turn."""
    stop = threading.Event()
    thread = threading.Thread(target=looker or _nobody, args=(port, stop, times))
    thread.start()
    before = machine.look()
    time.sleep(seconds)
    after = machine.look()
    stop.set()
    thread.join()
    span_s = after["at"] - before["at"]
    return {name: (after[name] - before[name]) / span_s for name in after if name != "at"}


def _nobody(_port: int, stop: threading.Event, _times: dict[str, list[float]]) -> None:
    stop.wait()


def _say_rates(turns: dict[str, list[dict[str, float]]]) -> None:
    alone = turns["nobody looks"]
    shown = [name for name in alone[0] if name not in {"images", "rows"}]
    print(f"\n{'':<20} {'images/s':>9} {'of alone':>9} {'rows/s':>7} {'page, % of CPU':>15}", end="   ")
    print(f"CPU seconds a second: {', '.join(shown)}")
    for name, each in turns.items():
        mean = {who: statistics.fmean(one[who] for one in each) for who in alone[0]}
        ratio = mean["images"] / statistics.fmean(one["images"] for one in alone)
        pairs = [one["images"] / other["images"] for one, other in zip(each, alone, strict=True)]
        # Wall times depend on everything else on the machine; what the page takes of its processors does not.
        taken = 100 * (mean["web"] + mean["this client"]) / (os.cpu_count() or 1)
        spent = " ".join(f"{mean[who]:.3f}" for who in shown)
        spread = f"{quantile(pairs, 0.25):.2f}, {statistics.median(pairs):.2f}, {quantile(pairs, 0.75):.2f}"
        print(f"{name:<20} {mean['images']:9.1f} {ratio:9.2f} {mean['rows']:7.0f} {taken:15.1f}", end="   ")
        print(f"{spent}   (quartiles of turns {spread})")
    print("target: 0.90 of alone or more")


def main() -> None:
    """Fill, look, push."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=10_000)
    parser.add_argument("--instances", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument(
        "--place", type=Path, help="where the node lies for the time; about 250 MB a second are written"
    )
    chosen = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="ctnode-bench-", dir=chosen.place))
    try:
        began = time.monotonic()
        fill(place / "root", chosen.series, chosen.instances)
        lay_files(place / "root" / "store", small_series(place, 2)[1][0], chosen.series)
        spent = time.monotonic() - began
        print(f"an index of {chosen.series} series and {chosen.instances} instances, made in {spent:.0f} s")
        print(f"SQLite {sqlite3.sqlite_version}, journal {journal_mode()}")
        # First the node: what it asks is not timed by this process.
        push_and_look(place, chosen.rounds, chosen.seconds)
        look_alone(place / "root", chosen.requests)
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
