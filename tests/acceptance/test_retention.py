"""The keeper deletes by rule and forgets on demand, as a real process that is killed while it does.

The oracle stands outside: each image that ever came is either there byte for byte with its row, or has a tombstone;
what the rules spare is untouched; of who is forgotten no byte is left below the root.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ctnode.archive import holdings, outbox, removal
from ctnode.archive.outbox import Parcel
from ctnode.archive.retention import Going, Kind
from tests.archive_root import Image, Root, stack, without_syncs
from tests.harness import REPOSITORY, data_set_of, end, wait_until
from tests.integration.test_forget import OTHER, PATIENT, SERIES, STUDY, fill, fingerprint, found
from tests.integration.test_retention import POINTS, done

pytestmark = pytest.mark.acceptance

IMAGES = 70
DELETED, SPARED = ("1.2.71", "1.2.72", "1.2.73", "1.2.74"), ("1.2.81", "1.2.82")


@contextmanager
def keeper(config: Path, log: Path, crash: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Run the keeper as the only role of a root; killed at the end of the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ctnode", "--config", str(config), "keep"],
            cwd=REPOSITORY,
            env={**os.environ, **({"CTNODE_TEST_CRASH": crash} if crash else {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        end(process)


def configure(folder: Path, root: Root, rules: str = "") -> Path:
    config = folder / "config.toml"
    config.write_text(f'[storage]\nroot = "{root.layout.root}"\nreserve_mb = 1\n[retention]\nfloor_days = 0.0\n{rules}')
    return config


def series(study: str) -> list[Image]:
    return stack(IMAGES, study=study, series=f"{study}.5", patient=study)


def require_each_once(root: Root, images: list[Image]) -> None:
    """Check that each image is there with its bytes, or has a tombstone, and nothing is half done."""
    assert root.breaches() == []
    rows = {str(sop): str(path) for sop, path in root.rows("SELECT sop_instance, path FROM instances")}
    stones = {str(sop) for (sop,) in root.rows("SELECT sop_instance FROM tombstones")}
    going = {str(sop) for (sop,) in root.rows("SELECT sop_instance FROM going JOIN instances ON id = instance_id")}
    waiting = {path.read_bytes()[-8:] for path in root.layout.incoming.rglob("*.dcm")}
    for image in images:
        assert (image.sop in rows) != (image.sop in stones), image.sop
        if image.sop in rows and image.sop not in going and not waiting:
            assert data_set_of(root.layout.store / rows[image.sop]) == image.encode()


def test_a_keeper_that_is_killed_while_it_deletes_loses_nothing_and_comes_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = int(os.environ.get("CTNODE_TEST_RETENTION_KILLS", "5"))
    dice = random.Random(int(os.environ.get("CTNODE_TEST_SEED", "1")))
    without_syncs(monkeypatch)
    root = Root(tmp_path / "node")
    log = tmp_path / "log"
    images = [image for study in (*DELETED, *SPARED) for image in series(study)]
    revisions = {study: done(root, *series(study)) for study in (*DELETED, *SPARED)}
    with root.database.immediate():
        root.database.execute("UPDATE series SET hold = 'as a test wants it' WHERE uid = ?", (f"{SPARED[0]}.5",))
        outbox.post(root.database, revisions[SPARED[1]].id, [Parcel("pacs", "report", "x", "d")])
    config = configure(tmp_path, root, "originals_days = 1e-9\nresults_days = 1e-9\n")
    died = 0
    try:
        for number in range(kills):
            crash = f"{POINTS[number % len(POINTS)]}:{dice.randint(1, 3)}" if number % 3 < 2 else ""
            before = int(str(root.one("SELECT count(*) FROM tombstones")))
            with keeper(config, log, crash) as process:
                if crash:
                    wait_until(lambda process=process: process.poll() is not None or is_done(root), "the crash")  # type: ignore[misc]
                else:
                    wait_until(lambda before=before: counted(root) > before or is_done(root), "it deletes")  # type: ignore[misc]
                    time.sleep(dice.uniform(0.0, 0.2))
                died += process.poll() is None or process.returncode == -9
            require_each_once(root, images)
            # What is deleted comes again, whole or in part, and goes again by the same rule.
            again = dice.choice(DELETED)
            root.push(dice.sample(series(again), dice.randint(1, IMAGES)))
        with keeper(config, log) as process:
            wait_until(lambda: is_done(root) or process.poll() is not None, "the rest is deleted")
            assert process.poll() is None, log.read_text()[-2000:]
        require_each_once(root, images)
        kept = {str(sop) for (sop,) in root.rows("SELECT sop_instance FROM instances")}
        assert kept == {image.sop for study in SPARED for image in series(study)}
        assert sorted(path.parts[0] for path in map(Path, root.files("results")))[::3] == sorted(SPARED)
        assert died == kills
        assert root.one("SELECT count(*) FROM revisions WHERE n > 1") == 0
        print(f"{kills} kills, {len(images)} images, {root.one('SELECT sum(duplicates) FROM series')} came again")
    finally:
        root.close()


def counted(root: Root) -> int:
    return int(str(root.one("SELECT count(*) FROM tombstones")))


def is_done(root: Root) -> bool:
    spared = len(SPARED) * IMAGES
    return (
        not any(root.layout.incoming.glob("*/*.dcm"))
        and root.one("SELECT count(*) FROM instances") == spared
        and root.one("SELECT count(*) FROM removals WHERE ended_at IS NULL") == 0
        and len(list(root.layout.results.iterdir())) == len(SPARED)
    )


def test_a_running_keeper_forgets_and_no_byte_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_syncs(monkeypatch)
    root = Root(tmp_path / "node")
    fill(root)
    done(root, *series(DELETED[0])[:3])
    reduced = int(str(root.one("SELECT id FROM series WHERE uid = ?", f"{DELETED[0]}.5")))
    (unit,) = holdings.units_of(root.database, root.layout, reduced, frozenset({Kind.ORIGINALS}))
    going = removal.begin(root.database, root.layout, Going(unit, "as a test wants it"))
    assert going is not None
    removal.step(root.database, root.layout, going)
    before = fingerprint(root)
    config = configure(tmp_path, root, "[completion]\nquiet_s = 0.5\nmax_wait_s = 2.0\n")
    try:
        with keeper(config, tmp_path / "log") as process:
            # It waits for a revision of the series, which goes under its hands.
            root.push([Image(f"{SERIES}.8", study=STUDY, series=SERIES, patient=PATIENT, position=20.0)])
            wait_until(lambda: not any(root.layout.incoming.glob("*/*.dcm")), "the keeper settles")
            told = subprocess.run(
                [sys.executable, "-m", "ctnode", "--config", str(config), "forget", "--patient", PATIENT, "--reason",
                 "consent withdrawn", "--yes"],
                cwd=REPOSITORY, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert told.returncode == 0, told.stderr
            assert STUDY not in told.stdout
            assert PATIENT not in told.stdout
            assert found(root, STUDY, SERIES, PATIENT) == {}
            # What comes late for a series whose images a rule deleted is a part that must not pass for the whole.
            root.push(series(DELETED[0])[3:5])
            wait_until(lambda: root.rows("SELECT 1 FROM series WHERE id = ? AND hold <> ''", reduced), "it is held")
            assert "retention deleted 3 of its images" in str(root.one("SELECT hold FROM series WHERE id = ?", reduced))
            assert root.rows("SELECT n, state FROM revisions WHERE series_id = ? ORDER BY n", reduced) == [
                (1, "SUPERSEDED"), (2, "COMPLETE"),
            ]  # fmt: skip
            # It goes on, with a later image of the same series as the first of a new one.
            root.push([Image(f"{SERIES}.9", study=STUDY, series=SERIES, patient=PATIENT)])
            wait_until(lambda: root.rows("SELECT 1 FROM series WHERE uid = ?", SERIES), "the keeper settles")
            assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
        assert fingerprint(root) == before
        assert root.rows("SELECT n FROM revisions JOIN series ON series.id = series_id WHERE uid = ?", SERIES) == [(1,)]
        assert root.one("SELECT instances FROM forgotten") == 5
        assert root.one("SELECT count(*) FROM series WHERE uid = ?", f"{OTHER}.5") == 1
        assert root.breaches() == []
    finally:
        root.close()
