"""Milliseconds of one scrape with a million instances: the sums that triggers keep, beside counting the rows.

Run from the repository: ``python -m bench.metrics [--instances 1000000] [--rounds 15]``. Prints the whole answer, each
statement of it, and what some of the same numbers cost when rows are counted.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ctnode.archive import tallies
from ctnode.archive.database import Database
from ctnode.archive.layout import Layout
from ctnode.config import Config, Peer, Storage, Target
from ctnode.flow.glance import look
from ctnode.flow.metrics import exposition

PEERS, TARGETS, PER_SERIES = 20, 5, 100
COUNTED = (
    "SELECT peer, count(*), sum(i.bytes) FROM instances i JOIN associations a ON a.id = association_id GROUP BY peer",
    "SELECT state, count(*) FROM revisions GROUP BY 1",
    "SELECT target, state, count(*) FROM deliveries GROUP BY 1, 2",
)


def fill(database: Database, instances: int) -> None:
    """Write series of a hundred instances each, with a job and a delivery, as the keeper's batches would."""
    series = instances // PER_SERIES
    many = database.connection.executemany
    with database.immediate():
        many("INSERT INTO associations (id, name, door, calling_ae, called_ae, peer_address, opened_at, peer)"
             " VALUES (?, ?, 'network', 'A', 'B', '127.0.0.1:1', ?, ?)",
             [(n, f"a{n}", float(n), f"ct{n % PEERS}") for n in range(1, series + 1)])  # fmt: skip
        many("INSERT INTO studies VALUES (?, ?, 'COMPLETE', 0, 0, 1)", [(n, f"1.2.{n}") for n in range(1, series + 1)])
        many("INSERT INTO series (id, study_id, uid, split, modality, patient_key, frame_of_reference, rows, columns,"
             " first_at, last_at) VALUES (?, ?, ?, 1, 'CT', '', '', 512, 512, 0, 0)",
             [(n, n, f"1.2.{n}.1") for n in range(1, series + 1)])  # fmt: skip
        many("INSERT INTO revisions (id, series_id, n, state, opened_at, last_arrival, quiet_s, deadline)"
             " VALUES (?, ?, 1, 'DONE', 0, 0, 1, 1)", [(n, n) for n in range(1, series + 1)])  # fmt: skip
        many("INSERT INTO jobs (kind, revision_id, state, due_at) VALUES ('pipeline', ?, ?, ?)",
             [(n, "QUEUED" if n % 10 == 0 else "DONE", float(n)) for n in range(1, series + 1)])  # fmt: skip
        many("INSERT OR IGNORE INTO lanes (name) VALUES (?)", [(f"pacs{n}",) for n in range(TARGETS)])
        many("INSERT INTO deliveries (revision_id, series_id, target, lane, kind, path, digest, state, due_at,"
             " posted_at) VALUES (?1, ?1, ?2, ?2, 'report', ?3, '', ?4, ?5, ?5)",
             [(n, f"pacs{n % TARGETS}", f"{n}", "PENDING" if n % 10 == 0 else "SENT", float(n))
              for n in range(1, series + 1)])  # fmt: skip
        many("INSERT INTO instances (series_id, sop_instance, sop_class, transfer_syntax, digest, path, bytes,"
             " arrived_at, association_id, revision, is_localizer)"
             " VALUES (?1, ?2, 'c', 't', ?2, ?2, 526000, 0, ?1, 1, 0)",
             ((n // PER_SERIES + 1, f"1.2.{n}") for n in range(series * PER_SERIES)))  # fmt: skip
        many("UPDATE associations SET instances = ?1, bytes = ?1 * 526000 WHERE id = ?2",
             [(PER_SERIES, n) for n in range(1, series + 1)])  # fmt: skip


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    """Return the median of some rounds."""
    spent = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        spent.append(1000.0 * (time.perf_counter() - began))
    return statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(Path(folder), Path(folder) / "results")
        layout.create()
        config = Config(
            storage=Storage(root=folder),
            peers=tuple(Peer(name=f"ct{n}", ae_title=f"CT{n}", host="127.0.0.1") for n in range(PEERS)),
            targets=tuple(Target(name=f"pacs{n}", ae_title="P", host="127.0.0.1", port=104) for n in range(TARGETS)),
        )
        with Database(layout.database) as database:
            database.migrate()
            fill(database, options.instances)
        with Database(layout.database, readonly=True) as database:

            def asked(statement: str, *values: object) -> float:
                return milliseconds(lambda: database.execute(statement, values).fetchall(), options.rounds)

            single = {
                "the sums": asked(tallies.ALL), "the oldest job": asked(tallies.OLDEST_JOB),
                "the oldest delivery": asked(tallies.OLDEST_DELIVERY, "pacs0"),
                "the counters": milliseconds(database.counters, options.rounds),
            }  # fmt: skip
            whole = milliseconds(lambda: exposition(config, database), options.rounds)
            glance = milliseconds(lambda: look(config, database), options.rounds)
            counted = {
                statement: milliseconds(lambda s=statement: database.execute(s).fetchall(), 3) for statement in COUNTED
            }
        print(
            f"{options.instances} instances, {options.instances // PER_SERIES} series, SQLite {sqlite3.sqlite_version}"
        )
        for name, spent in single.items():
            print(f"  {name:<22} {spent:9.3f} ms")
        print(f"  whole scrape           {whole:9.3f} ms")
        print(f"  status --watch         {glance:9.3f} ms")
        print(f"  counting the rows      {sum(counted.values()):9.3f} ms, the slowest {max(counted.values()):.1f} ms")
        print(f"ratio counting / whole scrape: {sum(counted.values()) / whole:.1f}")


if __name__ == "__main__":
    main()
