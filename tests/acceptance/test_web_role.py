"""The web role of a real node: it cannot take the node with it, and a bad lock keeps the node from starting."""

from __future__ import annotations

import json
import socket
import urllib.request
from pathlib import Path

import pytest

from tests.harness import CEILING_S, LOOPBACK, Node

pytestmark = pytest.mark.acceptance


def test_a_node_whose_page_has_no_port_works_and_gets_its_page_once_the_port_is_free(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = int(taken.getsockname()[1])
        node = Node(tmp_path / "node", web={"enabled": True, "port": port})
        with node:
            node.wait_for(lambda: node.events("role ended"), "the page has given up for now")
            assert {event["reason"] for event in node.events("role ended")} == {"web"}
            assert node.command("echo", expect=1).stderr
            taken.close()
            node.wait_for(lambda: node.counters("web").get("port") == port, "the page is served")
            with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/readyz", timeout=CEILING_S) as answer:
                assert json.loads(answer.read()) == {"status": "ok", "failing": []}
            # Pages that listen do not hold up the end.
            with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/events", timeout=CEILING_S) as stream:
                assert stream.readline() == b"retry: 3000\n"
                assert node.terminate() == 0


def test_a_node_whose_page_others_could_reach_without_a_lock_does_not_start(tmp_path: Path) -> None:
    node = Node(tmp_path / "node", web={"enabled": True, "host": "0.0.0.0"})
    for command in ("run", "web"):
        done = node.command(command, expect=78)
        assert "web.users" in done.stderr, command
        assert "ctnode user" in done.stderr, command
    assert not node.layout.database.exists()
