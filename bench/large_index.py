"""1 M instances in 10,000 settled series in the index, and what a keeper pays for it: a part of bench/completion.py."""

from __future__ import annotations

import hashlib
import random
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ctnode.archive import associations, evidence, keys, revisions
from ctnode.archive.database import Database
from ctnode.archive.header import Header, Uids
from ctnode.archive.index import Arrival, Index
from ctnode.archive.layout import Layout
from ctnode.archive.settle import Open, Settler
from ctnode.config import Completion
from ctnode.flow.waiting import WaitingRoom
from ctnode.words import Evidence, EvidenceKind

SERIES, SLICES = 10_000, 100
BATCH = 500
WAITING = 20
ROUNDS = 21
CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
ROOT = "1.3.12.2.1107.5.1.4.73104"

Uid = Callable[[int, int], str]


def counted(series: int, number: int) -> str:
    """Return a UID as scanners give them: device, time, a running number."""
    return f"{ROOT}.30000026112906{series:08d}{number:07d}"


def scattered(series: int, number: int) -> str:
    """Return a UID made of a random UUID (PS3.5 B.2), as toolkits and anonymizers give them."""
    return f"2.25.{uuid.UUID(bytes=random.Random(series * 100_003 + number).randbytes(16)).int}"


KINDS: dict[str, Uid] = {"UIDs with a running number": counted, "random UIDs": scattered}


def fill(database: Database, uid: Uid) -> None:
    """Write settled series as the keeper and a worker leave them."""
    many = database.connection.executemany
    numbers = range(1, SERIES + 1)
    with database.immediate():
        many("INSERT INTO studies (id, uid, state, first_at, last_at) VALUES (?, ?, 'COMPLETE', 0, 1)",
             ((n, uid(n, 900_000)) for n in numbers))  # fmt: skip
        many("INSERT INTO series (id, study_id, uid, split, modality, patient_key, frame_of_reference, rows, columns,"
             " instances, ct_instances, first_at, last_at) VALUES (?, ?, ?, 1, 'CT', ?, '1.2.9', 512, 512, ?, ?, 0, 1)",
             ((n, n, uid(n, 800_000), hashlib.sha256(str(n).encode()).hexdigest(), SLICES, SLICES)
              for n in numbers))  # fmt: skip
        many("INSERT INTO associations (id, name, door, calling_ae, called_ae, peer_address, opened_at, how)"
             " VALUES (?, ?, 'network', 'CT1', 'CTNODE', '10.0.0.1:4711', ?, 'released')",
             ((n, f"{n:019d}-00000000", float(n)) for n in numbers))  # fmt: skip
        many("INSERT INTO association_series VALUES (?, ?, ?, 1)", ((n, n, SLICES) for n in numbers))
        many("INSERT INTO instances (series_id, sop_instance, sop_class, transfer_syntax, digest, path, bytes,"
             " arrived_at, association_id, revision, instance_number, position_mm, is_localizer)"
             " VALUES (?, ?, ?, ?, ?, ?, 526000, 1, ?, 1, ?, ?, 0)", rows(uid))  # fmt: skip
        many("INSERT INTO revisions (id, series_id, n, state, opened_at, last_arrival, quiet_s, deadline, verdict,"
             " verdict_at, instances) VALUES (?, ?, 1, 'DONE', 0, 1, 10, 11, 'LIKELY', 11, ?)",
             ((n, n, str(list(range((n - 1) * SLICES + 1, n * SLICES + 1)))) for n in numbers))  # fmt: skip
        many("INSERT INTO jobs (kind, revision_id, state, due_at) VALUES ('pipeline', ?, 'DONE', 0)",
             ((n,) for n in numbers))  # fmt: skip
        many("INSERT INTO timeline (series_id, revision, at, kind, text) VALUES (?, 1, 0, ?, 'as it was')",
             ((n, kind) for n in numbers
              for kind in ("opened", "association", "complete", "queued", "done")))  # fmt: skip


def rows(uid: Uid) -> Iterator[tuple[object, ...]]:
    for n in range(1, SERIES + 1):
        folder = f"{uid(n, 900_000)}/{uid(n, 800_000)}"
        for k in range(SLICES):
            sop = uid(n, k)
            digest = hashlib.sha256(sop.encode()).hexdigest()
            yield n, sop, CT, EXPLICIT, digest, f"{folder}/{sop}.dcm", n, k + 1, 2.5 * k


class Node:
    """One index with the parts of a keeper that use it."""

    def __init__(self, place: Path, uid: Uid) -> None:
        self.layout = Layout(place, place / "results")
        self.layout.create()
        self.uid = uid
        self.database = Database(self.layout.database)
        self.database.migrate()
        self.index = Index(self.database, self.layout, lambda _association, _n: 1e6)

    def arrivals(self, number: int, count: int = BATCH) -> list[Arrival]:
        """Return a batch of one new series."""
        with self.database.immediate():
            association = associations.begin(self.database, f"{number:019d}-11111111", {"calling_ae": "CT1"}, 2.0)
        study, series = self.uid(number, 900_000), self.uid(number, 800_000)
        found = []
        for k in range(count):
            sop = self.uid(number, k)
            digest = hashlib.sha256(sop.encode()).hexdigest()
            header = Header(Uids(CT, sop, study, series), EXPLICIT, digest, 526_000, "CT", "p", "1.2.9", 512, 512, 1,
                            k + 1, 2.5 * k, is_localizer=False, is_own_result=False)  # fmt: skip
            found.append(Arrival(self.layout.incoming / sop, 2.0 + k, association, header))
        return found

    def insert_ms(self, number: int) -> float:
        arrivals = self.arrivals(number)
        began = time.perf_counter()
        self.index.take(arrivals)
        return 1e3 * (time.perf_counter() - began)


class Sweeper:
    """A waiting room in which open associations hold series, which are all to be looked at or none of them."""

    def __init__(self, node: Node) -> None:
        self.now_s = 1000.0
        self.room = WaitingRoom(node.database, monotonic=lambda: self.now_s, wall=lambda: self.now_s)
        self.settler, self.settings = Settler(node.index), Completion(max_wait_s=1e6, association_hold_s=1e6)
        self.database = node.database
        with node.database.immediate():
            node.database.execute("UPDATE revisions SET state = 'DONE' WHERE state = 'RECEIVING'")
        for number in range(WAITING):
            node.index.take(node.arrivals(2 * SERIES + number, SLICES))
        with node.database.immediate():
            node.database.execute("UPDATE revisions SET quiet_s = 1, deadline = 103 WHERE state = 'RECEIVING'")
            # Who has heard of any list asks for lists at every look.
            evidence.record(node.database, Evidence(EvidenceKind.AVAILABILITY_NOTICE, 1.0, "ris", "1.2", "1.3"))
        fed = node.database.execute("SELECT association_id FROM association_series ORDER BY series_id DESC LIMIT ?",
                                    (WAITING,))  # fmt: skip
        self.opened = [Open(row[0], 1.0 + SLICES, is_storing=True) for row in fed.fetchall()]
        self.room.restore()
        self.look_ms()

    def look_ms(self, *, is_held: bool = False) -> float:
        self.now_s += 2.0
        if not is_held:
            # As when the configuration has changed, or the associations have ended.
            self.room.look_again()
        began = time.perf_counter()
        self.settler.scan()
        ripe = self.room.ripe(self.now_s, self.opened, self.settings)
        revisions.startable(self.database)
        took = 1e3 * (time.perf_counter() - began)
        assert not ripe
        assert len(self.room) == WAITING
        assert self.room.next_look_s() > 0
        return took


def measure() -> None:
    """Print what a sweep and a batch cost beside a large index, in pairs with an empty one."""
    for words, uid in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            large, empty = Node(Path(folder) / "large", uid), Node(Path(folder) / "empty", uid)
            began = time.perf_counter()
            fill(large.database, uid)
            size_mb = large.layout.database.stat().st_size / 1e6
            print(f"{words}: {SERIES * SLICES:,} instances, {size_mb:.0f} MB, made in"
                  f" {time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
            report(f"a batch of {BATCH}, at most 1.3x", [
                paired(lambda node, number=number: node.insert_ms(SERIES + 10 + number), large, empty, number)
                for number in range(ROUNDS)
            ])  # fmt: skip
            for what, number in (("an instance that is held", 0), ("one that is not", SLICES)):
                names = [uid(series, number) for series in range(1, SERIES, 50)]
                began = time.perf_counter()
                held = sum(keys.is_held(large.database, name) for name in names)
                took = 1e3 * (time.perf_counter() - began) / len(names)
                print(f"  finding {what} by its UID: {took:.3f} ms, {held} of {len(names)}", flush=True)
            sweepers = Sweeper(large), Sweeper(empty)
            report(f"a sweep while {WAITING} series of {SLICES} wait, under 10 ms", [
                paired(lambda sweeper: sweeper.look_ms(), *sweepers, number) for number in range(ROUNDS)
            ])  # fmt: skip
            report("the same while open associations hold them", [
                paired(lambda sweeper: sweeper.look_ms(is_held=True), *sweepers, number) for number in range(ROUNDS)
            ])  # fmt: skip
            large.database.close()
            empty.database.close()


def paired(measured: Callable[[Any], float], large: object, empty: object, number: int) -> tuple[float, float]:
    """Measure both, one right after the other, and change who is first."""
    if number % 2:
        second = measured(empty)
        return measured(large), second
    first = measured(large)
    return first, measured(empty)


def report(words: str, pairs: Sequence[tuple[float, float]]) -> None:
    large, empty = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    longest = max(a for a, _ in pairs)
    print(f"  {words}: {large:.2f} ms (longest {longest:.2f}), beside an empty index {empty:.2f} ms, {ratio:.2f}x",
          flush=True)  # fmt: skip
