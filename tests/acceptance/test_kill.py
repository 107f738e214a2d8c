"""SIGKILL to the whole node: what a sender has read success for is there, byte for byte and with a row, and finishes.

``CTNODE_TEST_KILLS`` sets the number of random kills (1000 for a long night), ``CTNODE_TEST_SEED`` repeats a run.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.harness import (
    Answer,
    Node,
    data_set_of,
    descendants,
    send_as_is,
    sha256,
    small_series,
    sop_and_digest,
    wait_until,
)

pytestmark = pytest.mark.acceptance

KILLS = int(os.environ.get("CTNODE_TEST_KILLS", "20"))
SEED = int(os.environ.get("CTNODE_TEST_SEED", str(random.SystemRandom().randrange(1 << 32))))
# A fresh root after so many kills, so that a long run does not read the same files again and again.
KILLS_OF_A_ROOT = 10
SLICES = 30
# Senders at the same time; each brings a part of the series.
SENDERS = 2


@dataclass
class Pushed:
    """What was pushed to one root, and what the senders know of it."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    series: list[str] = field(default_factory=list)


class Push:
    """Senders that push a series in the background and note each success the moment they read it."""

    def __init__(self, port: int, files: Sequence[Path], pushed: Pushed, *, senders: int = SENDERS) -> None:
        self.count = 0
        self._digests = {file: sop_and_digest(file) for file in files}
        self._pushed = pushed
        self._lock = threading.Condition()
        self._threads = [
            threading.Thread(target=self._send, args=(port, files[part::senders], f"SENDER{part}"))
            for part in range(senders)
        ]
        self._left = senders

    def __enter__(self) -> Push:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()

    def _send(self, port: int, files: Sequence[Path], calling: str) -> None:
        try:
            send_as_is(port, files, calling=calling, on_answer=self._note)
        finally:
            with self._lock:
                self._left -= 1
                self._lock.notify_all()

    def _note(self, answer: Answer) -> None:
        if answer.status != 0:
            return
        uid, digest = self._digests[answer.file]
        with self._lock:
            self._pushed.acknowledged[uid] = digest
            self.count += 1
            self._lock.notify_all()

    def wait(self, count: int) -> None:
        """Wait until so many successes are noted, or nobody sends any more."""
        with self._lock:
            self._lock.wait_for(lambda: self.count >= count or not self._left)


@contextmanager
def index_of_the_dead(node: Node, place: Path) -> Iterator[sqlite3.Connection]:
    """Open a copy of the index of a killed node; SQLite rolls the copy back as it will the original."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for file in node.root.glob("ctnode.db*"):
        shutil.copy(file, place / file.name)
    connection = sqlite3.connect(place / "ctnode.db")
    try:
        yield connection
    finally:
        connection.close()


def check_the_dead(node: Node, pushed: Pushed, place: Path) -> None:
    """While nothing runs: each acknowledged data set lies in journal or store, and no file of the store lacks a row."""
    files = [*node.layout.incoming.glob("*/*.dcm"), *node.layout.store.rglob("*.dcm")]
    present = {sha256(data_set_of(file)) for file in files}
    lost = [uid for uid, digest in pushed.acknowledged.items() if digest not in present]
    assert not lost, f"{len(lost)} acknowledged instances are on no disk"
    with index_of_the_dead(node, place) as index:
        rows = {node.layout.store / path for (path,) in index.execute("SELECT path FROM instances")}
    strangers = [file for file in node.layout.store.rglob("*") if file.is_file() and file not in rows]
    assert not strangers, f"files of the store without a row: {strangers}"


def check_alive(node: Node, pushed: Pushed) -> None:
    """After the restart: everything settles, and files and rows agree both ways."""
    node.wait_settled()
    node.check_promises(pushed.acknowledged)
    assert node.query("SELECT * FROM quarantine") == []


def is_tidy(folder: Path) -> bool:
    return not any(path.name.startswith(".") for path in folder.iterdir())


def check_finished(node: Node, pushed: Pushed) -> None:
    """Every series of which anything arrived ends as DONE, with results of all its instances."""
    for uid in pushed.series:
        if node.series(uid) is None:
            continue
        node.wait_series(uid)
        now = node.series(uid)
        assert now is not None
        folder = node.results(uid, now.revision)
        assert (folder / "ct.json").is_file()
        # The folder that was moved aside goes after the row was committed.
        wait_until(partial(is_tidy, folder.parent), "nothing left from publishing")
    held = [uid for uid in pushed.acknowledged if not node.query("SELECT 1 FROM instances WHERE sop_instance = ?", uid)]
    assert not held
    assert node.findings() == []


def test_killed_at_random_moments_of_a_push(tmp_path: Path) -> None:
    print(f"CTNODE_TEST_SEED={SEED} CTNODE_TEST_KILLS={KILLS}")
    chance = random.Random(SEED)
    number = 0
    for first in range(0, KILLS, KILLS_OF_A_ROOT):
        folder = tmp_path / f"root-{first}"
        pushed = Pushed()
        with Node(folder, completion={"quiet_s": 2.0, "max_wait_s": 10.0}) as node:
            for _ in range(min(KILLS_OF_A_ROOT, KILLS - first)):
                number += 1
                _push_and_kill(node, pushed, number, chance, tmp_path)
                node.start()
                check_alive(node, pushed)
            check_finished(node, pushed)
            assert pushed.acknowledged
            assert node.terminate() == 0
        shutil.rmtree(folder)


def _push_and_kill(node: Node, pushed: Pushed, number: int, chance: random.Random, place: Path) -> None:
    uid, files = small_series(place, number, slices=SLICES)
    pushed.series.append(uid)
    # Mostly in the middle; sometimes after the end, while the keeper settles and the worker computes and publishes.
    count = chance.randrange(SLICES + 1) if chance.random() < 0.75 else SLICES
    delay_s = chance.uniform(0.0, 0.03) if count < SLICES else chance.uniform(0.0, 3.0)
    known = (node.pid, *descendants(node.pid))
    with Push(node.port, files, pushed) as push:
        push.wait(count)
        time.sleep(delay_s)
        node.kill(known)
    print(f"kill {number}: after {count} successes and {delay_s:.3f} s, {push.count} were read")
    check_the_dead(node, pushed, place / "dead-index")
    shutil.rmtree(place / f"series-{number}")


def armed(folder: Path, point: str, count: int = 1) -> Node:
    """Return a node whose processes kill themselves at the n-th time they pass a point."""
    return Node(folder, environment={"CTNODE_TEST_CRASH": f"{point}:{count}"})


def died(node: Node, role: str) -> bool:
    """Return whether the supervisor saw a role die of SIGKILL."""
    return any(event["reason"] == role and event["exit_code"] == -9 for event in node.events("role ended"))


# Each with how many instances are acknowledged before the kill, and at which passing it comes: most are passed once for
# each instance, the sync of the directory where names run out, at the second and the fifth.
SPOOL_POINTS = (
    ("spool.before-journal", 0, 1), ("spool.before-part", 4, 5), ("spool.before-check", 4, 5),
    ("spool.before-fsync", 4, 5), ("spool.before-rename", 4, 5), ("spool.before-directory-fsync", 4, 2),
    ("spool.before-acknowledgement", 4, 5),
)  # fmt: skip


def test_receiver_killed_before_it_could_acknowledge(tmp_path: Path) -> None:
    pushed = Pushed()
    sent: dict[str, list[Path]] = {}
    for number, (point, acknowledged, passing) in enumerate(SPOOL_POINTS, start=1):
        uid, files = small_series(tmp_path, number, slices=8)
        sent[uid] = files
        pushed.series.append(uid)
        with armed(tmp_path / "node", point, passing) as node:
            with Push(node.port, files, pushed, senders=1) as push:
                push.wait(len(files))
            assert push.count == acknowledged, point
            node.wait_for(lambda: node.events("receiver died"), "the acceptor sees its child die")
            node.kill()
            check_the_dead(node, pushed, tmp_path / "dead-index")
    with Node(tmp_path / "node") as node:
        check_alive(node, pushed)
        for files in sent.values():
            assert [answer.status for answer in send_as_is(node.port, files)] == [0] * len(files)
        for uid, files in sent.items():
            node.wait_series(uid, instances=len(files))
        check_finished(node, pushed)
        assert not list(node.layout.incoming.iterdir())


@pytest.mark.parametrize(
    ("point", "count"),
    [("keeper.between-commit-and-rename", 1), ("keeper.after-rename", 1), ("keeper.after-rename", 3)],
)
def test_keeper_killed_while_it_settles(tmp_path: Path, point: str, count: int) -> None:
    pushed = Pushed()
    uid, files = small_series(tmp_path, 1)
    pushed.series.append(uid)
    with armed(tmp_path / "node", point, count) as node:
        with Push(node.port, files, pushed) as push:
            push.wait(len(files))
        assert push.count == len(files), "the receiver needs no keeper"
        node.wait_for(lambda: died(node, "keep"), "the keeper dies")
        node.kill()
        check_the_dead(node, pushed, tmp_path / "dead-index")
    with Node(tmp_path / "node") as node:
        check_alive(node, pushed)
        check_finished(node, pushed)
        series = node.series(uid)
        assert series is not None
        assert (series.instances, series.duplicates, series.revision) == (len(files), 0, 1)


@pytest.mark.parametrize("point", ["worker.before-publish", "worker.between-renames", "worker.before-commit"])
def test_worker_killed_while_it_publishes(tmp_path: Path, point: str) -> None:
    pushed = Pushed()
    uid, files = small_series(tmp_path, 1, slices=8)
    pushed.series.append(uid)
    replaces = point == "worker.between-renames"
    if replaces:  # only a folder that stands there is moved aside
        with Node(tmp_path / "node") as node:
            with Push(node.port, files, pushed):
                pass
            node.wait_series(uid)
            assert node.terminate() == 0
    with armed(tmp_path / "node", point) as node:
        if replaces:
            node.command("series", "requeue", uid)
        else:
            with Push(node.port, files, pushed):
                pass
        node.wait_for(lambda: died(node, "work"), "the worker dies")
        node.kill()
        check_the_dead(node, pushed, tmp_path / "dead-index")
        with index_of_the_dead(node, tmp_path / "dead-index") as index:
            states = [row[0] for row in index.execute("SELECT state FROM revisions")]
        assert states != ["DONE"], "not DONE before the commit"
    with Node(tmp_path / "node") as node:
        check_alive(node, pushed)
        check_finished(node, pushed)
        (job,) = node.json("series", "show", uid)["jobs"]
        assert job["interruptions"] >= 1
        assert job["failures"] == 0
