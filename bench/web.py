"""The page over a large index, and what looking costs the senders.

Run from the repository: ``python -m bench.web [--series 10000] [--instances 1000000] [--requests 100] [--rounds 2]``.
First a real node on that index takes images from four of DCMTK's storescu at full rate, in turns with and without
somebody who looks at four pages a second; the pages' times are taken meanwhile, and the rates are compared in pairs.
Then each page is asked in this process, and every statement is timed with its rows.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from ctnode.archive.database import Database
from ctnode.config import Config
from ctnode.web.app import make_app
from ctnode.web.context import make_node
from tests.harness import Node, end, small_series, start_storescu

TARGET_PAGE_MS = 100.0
TARGET_STATEMENT_MS = 10.0
SENDERS = 4
LOOKS_PER_S = 4.0
PAGES = (
    "/series",
    "/series?before=5000",
    "/series?q=9.8.77",
    "/series?q=CT3",
    "/series?q=NOBODY",
    "/series?state=FAILED&verdict=SUSPECT",
    "/series?modality=XX",
    "/series/4321",
    "/",
    "/problems",
    "/api/v1/series?limit=500",
)


def fill(root: Path, series: int, instances: int) -> None:
    """Write an index of so many series, with what hangs on them, without their files."""
    root.mkdir(parents=True)
    with Database(root / "ctnode.db") as index:
        index.migrate()
        many = index.connection.executemany
        each = instances // series
        with index.immediate():
            many(
                "INSERT INTO associations (id, name, door, calling_ae, called_ae, peer_address, opened_at, how,"
                " instances) VALUES (?, ?, 'network', ?, 'CTNODE', '10.0.0.1:4711', ?, 'released', ?)",
                ((k, f"a{k}", f"CT{k % 7}", k, each) for k in range(1, series + 1)),
            )
            many(
                "INSERT INTO studies (id, uid, state, first_at, last_at) VALUES (?, ?, 'COMPLETE', ?, ?)",
                ((k, f"1.2.840.{k}", k, k) for k in range(1, series + 1)),
            )
            many(
                "INSERT INTO series (id, study_id, uid, split, modality, patient_key, frame_of_reference, rows,"
                " columns, instances, first_at, last_at) VALUES (?, ?, ?, 1, 'CT', 'k', 'f', 512, 512, ?, ?, ?)",
                ((k, k, f"9.8.{k}", each, k, k) for k in range(1, series + 1)),
            )
            many(
                "INSERT INTO association_series (association_id, series_id, instances, last_arrival)"
                " VALUES (?, ?, ?, ?)",
                ((k, k, each, k) for k in range(1, series + 1)),
            )
            many(
                "INSERT INTO revisions (id, series_id, n, state, opened_at, last_arrival, quiet_s, deadline, verdict)"
                " VALUES (?, ?, 1, ?, ?, ?, 10, ?, ?)",
                (
                    (k, k, "FAILED" if k % 97 == 0 else "DONE", k, k, k, "SUSPECT" if k % 89 == 0 else "COMPLETE")
                    for k in range(1, series + 1)
                ),
            )
            many(
                "INSERT INTO volumes (revision_id, volume, status, lungs, reasons) VALUES (?, 1, ?, 'OK', '[]')",
                ((k, "REFUSED" if k % 101 == 0 else "EXACT") for k in range(1, series + 1)),
            )
            many(
                "INSERT INTO jobs (kind, revision_id, state, due_at) VALUES ('pipeline', ?, ?, 0)",
                ((k, "DEAD" if k % 97 == 0 else "DONE") for k in range(1, series + 1)),
            )
            many(
                "INSERT INTO timeline (series_id, revision, at, kind, text) VALUES (?, 1, ?, 'done', 'volume EXACT')",
                ((k % series + 1, k) for k in range(series * 8)),
            )
            many(
                "INSERT INTO instances (series_id, sop_instance, sop_class, transfer_syntax, digest, path, bytes,"
                " arrived_at, association_id, revision, is_localizer)"
                " VALUES (?, ?, '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', ?, ?, 526000, ?, ?, 1, 0)",
                _instances(series, each),
            )
            for name, value in (("series", series), ("instances", series * each)):
                index.count(name, value)


def _instances(series: int, each: int) -> Iterator[tuple[Any, ...]]:
    for k in range(1, series + 1):
        for i in range(each):
            yield k, f"9.8.{k}.{i}", f"{k * each + i:064x}", f"s/{k}/{i}.dcm", k, k


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
    print(f"\n{'page':<42} {'p50 ms':>8} {'p95 ms':>8} {'of 100 ms':>10} {'slowest statement, median ms':>30}")
    for page in PAGES:
        statements.clear()
        times = []
        for _ in range(requests):
            began = time.perf_counter()
            assert client.get(page).status_code == 200, page
            times.append((time.perf_counter() - began) * 1000)
        slowest = max(statistics.median(one) for one in statements.values())
        p50, p95 = quantile(times, 0.5), quantile(times, 0.95)
        print(f"{page:<42} {p50:8.1f} {p95:8.1f} {p95 / TARGET_PAGE_MS:10.2f} {slowest:30.2f}")


def push_and_look(place: Path, rounds: int, seconds: float) -> None:
    """Push with four senders, with and without somebody who looks, in turns."""
    node = Node(place, web={"enabled": True, "port": 0}, node={"accept_unknown": True})
    files = small_series(place, 1, side=512)[1]
    alone, watched, times = [], [], list[float]()
    with node:
        page = node.wait_for(lambda: node.counters("web").get("port"), "the page is served")
        for _ in range(rounds):
            alone.append(_rate(node, files, seconds, 0, times))
            watched.append(_rate(node, files, seconds, int(page), times))
    print(f"\nfour senders alone    {statistics.median(alone):8.1f} images/s")
    print(f"while somebody looks  {statistics.median(watched):8.1f} images/s")
    ratios = [with_ / without for with_, without in zip(watched, alone, strict=True)]
    pairs = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"ratio                 {statistics.median(ratios):8.2f} (target: 0.90 or more); pairs {pairs}")
    p50, p95 = quantile(times, 0.5), quantile(times, 0.95)
    print(f"pages meanwhile       p50 {p50:.0f} ms, p95 {p95:.0f} ms, {len(times)} asked")


def _rate(node: Node, files: Sequence[Path], seconds: float, page: int, times: list[float]) -> float:
    senders = [start_storescu(node.port, files, "--repeat", "100000", "+II", "-q") for _ in range(SENDERS)]
    stop = threading.Event()
    looker = threading.Thread(target=_look, args=(page, stop, times))
    try:
        time.sleep(2.0)
        if page:
            looker.start()
        before, began = _answered(node), time.monotonic()
        time.sleep(seconds)
        return (_answered(node) - before) / (time.monotonic() - began)
    finally:
        stop.set()
        if page:
            looker.join()
        for sender in senders:
            end(sender)


def _answered(node: Node) -> int:
    return int(node.counters("receive").get("instances", {}).get("0000", 0))


def _look(port: int, stop: threading.Event, times: list[float]) -> None:
    asked = 0
    while not stop.wait(1.0 / LOOKS_PER_S):
        began = time.perf_counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{PAGES[asked % 8]}", timeout=60) as answer:
            answer.read()
        times.append((time.perf_counter() - began) * 1000)
        asked += 1


def main() -> None:
    """Fill, look, push."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=10_000)
    parser.add_argument("--instances", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15.0)
    chosen = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="ctnode-bench-"))
    try:
        began = time.monotonic()
        fill(place / "root", chosen.series, chosen.instances)
        spent = time.monotonic() - began
        print(f"an index of {chosen.series} series and {chosen.instances} instances, made in {spent:.0f} s")
        # First the node: what it asks is not timed by this process.
        push_and_look(place, chosen.rounds, chosen.seconds)
        look_alone(place / "root", chosen.requests)
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
