"""A large index for ``bench.web``: rows of series that are done, and the few files that its searches read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ctnode.archive.database import Database

# A series as large as a whole heart in many phases.
LARGE, LARGE_SERIES = 5000, 5000
# A series whose instances are searched, and the folder of the files that are there for it.
SEARCHED, LAID = 77, "s"


def fill(root: Path, series: int, instances: int) -> None:
    """Write an index of so many series, with what hangs on them, without their files."""
    root.mkdir(parents=True)
    with Database(root / "ctnode.db") as index:
        index.migrate()
        many = index.connection.executemany
        each = (instances - LARGE) // (series - 1)
        counts = {k: LARGE if k == LARGE_SERIES else each for k in range(1, series + 1)}
        with index.immediate():
            many(
                "INSERT INTO associations (id, name, door, calling_ae, called_ae, peer_address, opened_at, how,"
                " instances) VALUES (?, ?, 'network', ?, 'CTNODE', '10.0.0.1:4711', ?, 'released', ?)",
                ((k, f"a{k}", f"CT{k % 7}", k, count) for k, count in counts.items()),
            )
            many(
                "INSERT INTO studies (id, uid, state, first_at, last_at) VALUES (?, ?, 'COMPLETE', ?, ?)",
                ((k, f"1.2.840.{k}", k, k) for k in range(1, series + 1)),
            )
            many(
                "INSERT INTO series (id, study_id, uid, split, modality, patient_key, frame_of_reference, rows,"
                " columns, instances, ct_instances, first_at, last_at)"
                " VALUES (?, ?, ?, 1, 'CT', 'k', 'f', 512, 512, ?, ?, ?, ?)",
                ((k, k, f"9.8.{k}", count, count, k, k) for k, count in counts.items()),
            )
            many(
                "INSERT INTO association_series (association_id, series_id, instances, last_arrival)"
                " VALUES (?, ?, ?, ?)",
                ((k, k, count, k) for k, count in counts.items()),
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
                _instances(counts),
            )
            for name, value in (("series", series), ("instances", sum(counts.values()))):
                index.count(name, value)


def _instances(counts: dict[int, int]) -> Iterator[tuple[Any, ...]]:
    for k, count in counts.items():
        for i in range(count):
            yield k, f"9.8.{k}.{i}", f"{k:032x}{i:032x}", f"{LAID}/{k}/{i}.dcm", k, k


def lay_files(store: Path, header: Path, series: int) -> None:
    """Write the files whose headers the searches read: the first of the newest series, all of one."""
    wanted = [(k, 0) for k in range(max(1, series - 100), series + 1)] + [(SEARCHED, i) for i in range(100)]
    for k, i in wanted:
        place = store / LAID / str(k) / f"{i}.dcm"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(header, place)
