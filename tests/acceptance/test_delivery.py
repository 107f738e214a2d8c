"""The deliverer as a real process: a table of faults with the state that each ends in, and deaths at any moment."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE

from tests.certificates import Authority
from tests.delivery_root import Archive, DeliverProcess, Office, office, target
from tests.harness import end, free_port, storescp, tool, tool_environment
from tests.wire_peers import CT, data_set_of, uid

pytestmark = pytest.mark.acceptance

TIMEOUT_S = 2.0


def only(*sop_classes: str) -> list[Any]:
    entity = AE("X")
    for sop_class in sop_classes:
        entity.add_supported_context(sop_class)
    return entity.supported_contexts


def names(count: int, series: int = 7) -> list[str]:
    return [uid(series, number + 1) for number in range(count)]


def dcmtk(stack: ExitStack, place: Path, *options: str, tls: tuple[Authority, Any] | None = None) -> int:
    """Run storescp with one of its faults and return its port."""
    import subprocess

    place.mkdir()
    port = free_port()
    secured = ["+tls", str(tls[1].key), str(tls[1].certificate), "-ic"] if tls else []
    process = subprocess.Popen(
        [tool("storescp"), *options, *secured, "-od", str(place), "-aet", "THERE", str(port)],
        env=tool_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    stack.callback(end, process)
    return port


def test_every_fault_ends_in_the_state_that_the_page_says(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    hanging = threading.Event()

    def hang(_event: object, _name: str) -> None:
        hanging.wait(60)

    with ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        full = stack.enter_context(Archive(answer=lambda name: 0xA700))
        slow = stack.enter_context(Archive())
        slow.on_store = hang  # type: ignore[assignment]
        stack.callback(hanging.set)
        picky = stack.enter_context(Archive(answer=lambda name: 0xC000 if name in names(100)[7::40] else 0))
        narrow = stack.enter_context(Archive(supported_contexts=only(CT)))
        expired = authority.issue("old", days=-2)
        secured: dict[str, object] = {"tls": True, "ca": str(authority.certificate), "host": "localhost"}
        targets = [
            target("refuses", dcmtk(stack, tmp_path / "a", "--refuse")),
            target("silent", silent.getsockname()[1]),
            target("slow", slow.port),
            target("aborts", dcmtk(stack, tmp_path / "b", "--abort-during")),
            target("loses", dcmtk(stack, tmp_path / "c", "--abort-after")),
            target("full", full.port),
            target("narrow", narrow.port),
            target("picky", picky.port),
            target("expired", dcmtk(stack, tmp_path / "d", tls=(authority, expired)), **secured),
            target("nowhere", 104, host="nowhere.invalid"),
            target("gone", free_port()),
            {"name": "unmounted", "kind": "folder", "path": str(tmp_path / "unmounted")},
        ]
        settings = {"timeout_s": TIMEOUT_S, "first_retry_s": 30.0}
        node = stack.enter_context(office(tmp_path / "office", *targets, delivery=settings))
        one, hundred, two = node.series(3)
        everybody = [str(each["name"]) for each in targets]
        node.owe(one, names(2, 8), *[name for name in everybody if name not in {"picky", "narrow"}])
        node.owe(hundred, names(100), "picky")
        node.owe(two, [uid(9, 1)], "narrow")
        node.owe(two, [uid(9, 2)], "narrow", sop_class=CT)
        process = stack.enter_context(DeliverProcess(node, tmp_path))
        process.wait_for(lambda: _is_settled(node), "each destination has shown its fault")
        found = {name: _row(node, name) for name in everybody}
        # What failed as a whole has tried its first object only; what failed at one object has tried the next as well.
        down = ["RETRY", "PENDING"]
        assert found == {
            "refuses": (down, "association rejected permanently: no reason given"),
            "silent": (down, "no answer to the association request"),
            "slow": (["RETRY", "RETRY"], "no answer"),
            "aborts": (["RETRY", "RETRY"], "association aborted"),
            "loses": (["RETRY", "RETRY"], "association aborted"),
            "full": (["RETRY", "RETRY"], ""),
            "narrow": (["DEAD", "SENT"], "SOP class not accepted"),
            "picky": (["DEAD"] * 3 + ["SENT"] * 97, ""),
            "expired": (down, "no connection: certificate has expired"),
            "nowhere": (down, "the host is not known"),
            "gone": (down, "no connection: connection refused"),
            "unmounted": (down, "the folder is not there"),
        }
        assert {one.transfers for one in node.deliveries("loses")} == {1}
        assert {one.transfers for one in node.deliveries("refuses")} == {0}
        assert node.lane("gone").failures == node.lane("silent").failures == 1
        # All of them come back; an operator need not wait for the next try.
        hanging.set()
        full.answer = picky.answer = lambda name: 0
        (tmp_path / "unmounted").mkdir()
        there = stack.enter_context(storescp(tmp_path / "back", title="THERE"))
        healed = [
            {**each, "port": there, "tls": False, "host": "127.0.0.1"} if each["name"] in _DOWN else each
            for each in targets
        ]
        process.kill()
        node.reconfigure(healed)
        node.retry("picky")
        process = stack.enter_context(DeliverProcess(node, tmp_path))
        process.wait_for(lambda: set(node.states()) == {"SENT", "DEAD"}, "all is delivered")
        assert [one.target for one in node.deliveries() if one.state == "DEAD"] == ["narrow"]
        assert sorted(_stored(tmp_path / "back")) == sorted(names(2, 8))
        assert sorted(picky.taken) == sorted(names(100))


_DOWN = {"refuses", "silent", "aborts", "loses", "expired", "nowhere", "gone"}


def _is_settled(node: Office) -> bool:
    states = [one.state for one in node.deliveries()]
    tried = {one.target for one in node.deliveries() if one.status is not None or one.comment}
    lanes_tried = len(tried) == len(node.config.targets)
    both = all(one.comment for name in ("slow", "aborts", "loses") for one in node.deliveries(name))
    return lanes_tried and both and "SENDING" not in states and "PENDING" not in node.states("picky")


def _row(node: Office, name: str) -> tuple[list[str], str]:
    owed = node.deliveries(name)
    comments = [one.comment for one in owed if one.comment]
    return sorted((str(one.state) for one in owed), key=_ORDER.index), comments[0] if comments else ""


_ORDER = ["DEAD", "RETRY", "SENDING", "PENDING", "SENT"]


def test_a_deliverer_that_is_killed_at_any_moment_loses_nothing_and_repeats_harmlessly(tmp_path: Path) -> None:
    kills = int(os.environ.get("CTNODE_TEST_DELIVERY_KILLS", "6"))
    dice = random.Random(int(os.environ.get("CTNODE_TEST_SEED", "1")))
    shelf = tmp_path / "archive"
    shelf.mkdir()
    with ExitStack() as stack:
        port = stack.enter_context(storescp(shelf, title="THERE"))
        other = tmp_path / "folder"
        other.mkdir()
        targets = [target("pacs", port, associations=2), {"name": "folder", "kind": "folder", "path": str(other)}]
        node = stack.enter_context(office(tmp_path / "office", *targets))
        owed: list[str] = []
        revisions = node.series(4)
        # Between the answer and its row, before and behind the commit, and then wherever the dice say.
        points = ["deliver.before-commit:2", "deliver.after-commit:2"]
        for number in range(kills):
            made = names(60, 100 + number)
            for place, revision in enumerate(revisions):
                node.owe(revision, made[place::4], "pacs", "folder")
            owed += made
            armed = {"CTNODE_TEST_CRASH": points[number]} if number < len(points) else {}
            with DeliverProcess(node, tmp_path, **armed) as process:
                if armed:
                    process.process.wait(60)
                else:
                    before = _arrived(node)
                    process.wait_for(lambda before=before: _arrived(node) > before, "it delivers")  # type: ignore[misc]
                    time.sleep(dice.uniform(0.0, 0.05))
        with DeliverProcess(node, tmp_path) as process:
            process.wait_for(lambda: set(node.states()) == {"SENT"}, "the rest is delivered")
        assert len(node.deliveries()) == 2 * len(owed)
        stored = _stored(shelf)
        assert sorted(stored) == sorted(owed)
        assert {name: data_set_of(path) for name, path in stored.items()} == {
            path.stem: data_set_of(path) for path in node.root.layout.results.glob("*/*.dcm")
        }
        assert sorted(path.stem for path in other.rglob("*.dcm")) == sorted(owed)
        repeated = node.root.database.counters().get("deliveries.repeated", 0)
        print(f"{kills} kills, {len(owed)} objects for each of 2 destinations, {repeated} sent again")
        assert repeated > 0


def _stored(folder: Path) -> dict[str, Path]:
    """Return what storescp has, by SOP Instance UID: it puts an abbreviation of the SOP class before it."""
    return {path.name.partition(".")[2]: path for path in folder.iterdir()}


def _arrived(node: Office) -> int:
    return int(str(node.root.one("SELECT count(*) FROM deliveries WHERE state = 'SENT'")))
