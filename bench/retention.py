"""What retention costs whom: the length of its steps, and what indexing loses while it deletes.

python -m bench.retention [--series 2000] [--images 200] [--going 20]

An index of ``--series`` series with ``--images`` rows each, of which ``--going`` have files and are old enough to go.
Batches of 50 fresh images are settled, in turn beside a step of retention and without one, so that both have the same
disk at the same time. Synced as in a node.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from ctnode.archive import holdings
from ctnode.config import Retention
from ctnode.flow.retaining import Retainer
from tests.archive_root import Root, stack

BATCH = 50


def fill(root: Root, series: int, images: int, going: int) -> None:
    """Bring in the series that go through the front door, and the others as rows alone."""
    for number in range(going):
        root.hold(*stack(images, study=f"1.5.{number}", series=f"1.5.{number}.1", pixels=bytes(20_000)))
    with root.database.immediate():
        root.database.execute("UPDATE revisions SET state = 'DONE', verdict_at = 1")
        root.database.execute("UPDATE studies SET state = 'COMPLETE', is_routed = 1")
        for number in range(series):
            study = root.database.insert(
                "INSERT INTO studies (uid, state, first_at, last_at) VALUES (?, 'COMPLETE', 1, 1)", (f"1.6.{number}",)
            )
            one = root.database.insert(
                "INSERT INTO series (study_id, uid, split, modality, patient_key, frame_of_reference, rows, columns,"
                " instances, ct_instances, bytes, hold, first_at, last_at)"
                " VALUES (?, ?, 1, 'CT', '', '', 512, 512, ?, 1, 1000000, 'spared', 1, 1)",
                (study, f"1.6.{number}.1", images),
            )
            root.database.insert(
                "INSERT INTO revisions (series_id, n, state, opened_at, last_arrival, quiet_s, deadline)"
                " VALUES (?, 1, 'DONE', 1, 1, 1, 1)",
                (one,),
            )
            root.database.connection.executemany(
                "INSERT INTO instances (series_id, sop_instance, sop_class, transfer_syntax, digest, path, bytes,"
                " arrived_at, association_id, revision, is_localizer) VALUES (?, ?, '', '', '', ?, 5000, 1, 1, 1, 0)",
                [(one, f"1.6.{number}.1.{k}", f"1.6.{number}/1/{k}") for k in range(images)],
            )


def milliseconds(times_s: list[float]) -> str:
    """Return median, 99th percentile and maximum."""
    ordered = sorted(times_s)
    at = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return f"median {statistics.median(ordered) * 1e3:.1f}, p99 {at * 1e3:.1f}, max {ordered[-1] * 1e3:.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=2000)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--going", type=int, default=20)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Root(Path(place) / "node")
        fill(root, wanted.series, wanted.images, wanted.going)
        run(root, wanted.going * wanted.images)
        root.close()


def run(root: Root, going: int) -> None:
    clock = iter(range(10**9))
    retainer = Retainer(root.database, root.layout, monotonic=lambda: float(next(clock)))
    rules = Retention(originals_days=1e-9, floor_days=0)
    steps: list[float] = []
    batches: dict[bool, list[float]] = {False: [], True: []}
    number = 0
    while True:
        for beside in (False, True):
            number += 1
            fresh = stack(BATCH, study=f"1.7.{number}", series=f"1.7.{number}.1")
            root.push(fresh)
            if beside:
                began = time.perf_counter()
                retainer.step(rules)
                steps.append(time.perf_counter() - began)
            began = time.perf_counter()
            root.settler.scan()
            batches[beside].append(time.perf_counter() - began)
        if root.database.counters().get("retention.originals", 0) >= going:
            break
    reads = []
    for series_id in holdings.pages(root.database):
        began = time.perf_counter()
        holdings.units_of(root.database, root.layout, series_id, frozenset(("originals", "results")))
        reads.append(time.perf_counter() - began)
    alone, beside_step = (statistics.median(batches[beside]) for beside in (False, True))
    rows = root.one("SELECT count(*) FROM instances")
    print(f"index of {rows} instances; {going} images deleted in {len(steps)} steps")
    print(f"a step:                         {milliseconds(steps)}")
    print(f"all that is read of one series: {milliseconds(reads)}")
    print(f"a batch of {BATCH} without a step:  {milliseconds(batches[False])}")
    print(
        f"a batch of {BATCH} after a step:    {milliseconds(batches[True])}, ratio of medians {beside_step / alone:.2f}"
    )


if __name__ == "__main__":
    main()
