"""A disk that takes nothing here costs no delivery: what was answered is written down as soon as it can be."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from ctnode.archive import outbox
from ctnode.archive.database import Database
from ctnode.archive.outbox import Ending
from ctnode.flow import recorder as recorder_module
from tests.delivery_root import Archive, Clock, office, target
from tests.wire_peers import uid

pytestmark = pytest.mark.integration


def test_a_full_disk_here_holds_the_rows_and_nothing_is_sent_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock().install(monkeypatch)
    settle, failures = outbox.settle, 0
    is_tried = threading.Event()

    def full(database: Database, endings: Sequence[Ending]) -> None:
        nonlocal failures
        if failures < 3:
            failures += 1
            is_tried.set()
            raise sqlite3.OperationalError("database or disk is full")
        settle(database, endings)

    monkeypatch.setattr(recorder_module.outbox, "settle", full)
    monkeypatch.setattr(recorder_module, "RETRY_S", 0.01)
    with Archive() as archive, office(tmp_path, target("pacs", archive.port)) as node:
        node.owe(node.series()[0], [uid(7, number) for number in range(1, 31)], "pacs")
        node.work()
        assert is_tried.is_set()
        assert failures == 3
        assert set(node.states()) == {"SENT"}
        assert archive.taken == [uid(7, number) for number in range(1, 31)]


def test_what_could_not_be_written_down_until_the_end_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock().install(monkeypatch)

    is_tried = threading.Event()

    def full(_database: Database, _endings: Sequence[Ending]) -> None:
        is_tried.set()
        raise sqlite3.OperationalError("database or disk is full")

    settle = outbox.settle
    with Archive() as archive, office(tmp_path, target("pacs", archive.port)) as node:
        node.owe(node.series()[0], [uid(7, 1)], "pacs")
        monkeypatch.setattr(recorder_module.outbox, "settle", full)
        node.deliverer.start_due()
        assert is_tried.wait(60)
        node.recorder.__exit__(None, None, None)
        assert archive.taken == [uid(7, 1)]
        assert node.states() == ["SENDING"]
        monkeypatch.setattr(recorder_module.outbox, "settle", settle)
        assert outbox.take_back(node.root.database) == 1
        assert (node.states(), node.deliveries()[0].transfers) == (["RETRY"], 1)
