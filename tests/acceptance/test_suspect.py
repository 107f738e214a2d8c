"""A disk whose sync failed, as the whole receive role takes it: nobody is served until it starts again."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from ctnode.archive.suspect import MARK_NAME, mark
from tests.acceptance.test_crash_points import injected
from tests.harness import Node, sha256
from tests.wire_peers import ASSOCIATE_AC, ASSOCIATE_RJ, STANDARD, RawPeer, associate_rq, data_set, uid
from tests.wire_roles import ReceiveRole, receive_role, wait_until

pytestmark = pytest.mark.acceptance

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None or os.geteuid() != 0,
    reason="strace is not installed (Debian package strace), or may not attach: it needs root",
)
CONGESTED = (ASSOCIATE_RJ, bytes([0, 2, 3, 1]))


def answer(port: int) -> tuple[int, bytes]:
    with RawPeer(port) as peer:
        peer.send(associate_rq(STANDARD))
        kind, body = peer.read_pdu()
        return kind, body[:4]


def receivers(role: ReceiveRole) -> list[int]:
    """Return the children, once there are two of them that serve."""

    def serving() -> list[int] | None:
        found: list[int] = role.counters().get("receivers", [])
        files = [role.root / "run" / f"receiver-{pid}.json" for pid in found]
        states = [json.loads(file.read_text())["state"] for file in files if file.exists()]
        return found if states == ["ready", "ready"] else None

    found: list[int] = wait_until(serving, "both receivers")
    return found


@needs_strace
def test_one_receiver_that_meets_it_stops_all_even_where_the_mark_cannot_be_written(tmp_path: Path) -> None:
    with receive_role(tmp_path, **{"receiver.processes": 2}) as role:
        port = role.wait_ready()
        children = receivers(role)
        with RawPeer(port) as first, RawPeer(port) as second:
            first.associate()
            second.associate()
            assert first.store(uid(1), data_set(uid(1))).status == 0
            assert second.store(uid(2), data_set(uid(2))).status == 0
            # The kernel says it once, of one file of one process; but nothing that this one writes is sound now.
            with injected(children[0], "fsync,fdatasync:error=EIO", tmp_path / "strace"):
                statuses = [first.store(uid(3), data_set(uid(3))).status, second.store(uid(4), data_set(uid(4))).status]
                # The other receiver may have been quicker than the news.
                assert 0xA700 in statuses
                assert set(statuses) <= {0, 0xA700}
                wait_until(lambda: "suspect" in role.counters()["storage"], "the acceptor")
                wait_until(lambda: answer(port) == CONGESTED, "the refusal")
            # The disk seems well again: nothing is tried, by nobody.
            assert not (role.root / "run" / MARK_NAME).exists()
            for peer, number in ((first, 5), (second, 6)):
                assert peer.store(uid(number), data_set(uid(number))).status == 0xA700
        told = {
            line["event"]: line["error"]
            for line in map(json.loads, role.log.read_text().splitlines())
            if "error" in line
        }
        for event in ("storage is suspect", "storage takes nothing"):
            assert "a sync failed: Input/output error" in told[event]
        # New receivers are told as well.
        for child in children:
            os.kill(child, signal.SIGKILL)
        wait_until(lambda: not set(children) & set(receivers(role)), "new receivers")
        assert [answer(port) for _ in range(6)] == [CONGESTED] * 6
    with receive_role(tmp_path) as role:
        port = role.wait_ready()
        assert role.counters()["storage"] == "ok"
        assert answer(port)[0] == ASSOCIATE_AC
        assert len(list((role.root / "incoming").glob("*/*.dcm"))) == 2 + statuses.count(0)
        assert not list((role.root / "incoming").glob("*/*.part"))


def test_a_mark_of_another_role_counts_until_a_restart(tmp_path: Path) -> None:
    with receive_role(tmp_path) as role:
        port = role.wait_ready()
        assert answer(port)[0] == ASSOCIATE_AC
        mark(role.root / "run", "storage is suspect: a sync of the index failed")
        wait_until(lambda: answer(port) == CONGESTED, "the refusal")
        # Whoever takes the mark away has not looked at the disk.
        (role.root / "run" / MARK_NAME).unlink()
        role.signal(signal.SIGHUP)
        # Two rounds of its loop are two looks at the storage.
        seen: set[str] = set()
        wait_until(lambda: seen.add(role.report()["at"]) or len(seen) > 2, "two more rounds")  # type: ignore[func-returns-value]
        assert answer(port) == CONGESTED
        assert "a sync of the index failed" in role.counters()["storage"]


@needs_strace
def test_a_sync_of_the_keeper_that_fails_counts_as_well(tmp_path: Path) -> None:
    with Node(tmp_path / "node") as node:
        (keeper,) = node.roles()["keep"]
        # Of the index as of the folders of the store; once.
        with injected(keeper, "fsync,fdatasync:error=EIO:when=1", tmp_path / "strace"), RawPeer(node.port) as peer:
            peer.associate()
            assert peer.store(uid(1), data_set(uid(1))).status == 0
            node.wait_for(lambda: answer(node.port) == CONGESTED, "the refusal")
            assert peer.store(uid(2), data_set(uid(2))).status == 0xA700
        assert "the keeper met" in json.loads((node.root / "run" / MARK_NAME).read_text())["reason"]
        # What was acknowledged is settled all the same.
        node.wait_settled()
        node.check_promises({uid(1): sha256(data_set(uid(1)))})


def test_a_node_with_a_mark_starts_goes_on_and_says_so(tmp_path: Path) -> None:
    node = Node(tmp_path / "node")
    (node.root / "run").mkdir(parents=True, mode=0o700)
    mark(node.root / "run", "storage is suspect: a sync failed last night")
    with node:
        assert answer(node.port)[0] == ASSOCIATE_AC
        assert not (node.root / "run" / MARK_NAME).exists()
        mark(node.root / "run", "storage is suspect: a sync failed: Input/output error")
        node.wait_for(lambda: node.events("storage takes nothing"), "the log")
        node.wait_for(lambda: answer(node.port) == CONGESTED, "the refusal")
        (finding,) = [found for found in node.json("doctor", expect=1) if found["what"] == "trust in the storage"]
        assert not finding["is_good"]
        assert "Input/output error" in finding["found"]
        assert "a sync failed: Input/output error" in node.command("status").stdout
