"""The web role of a real node: it cannot take the node with it, and a bad lock keeps the node from starting."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import urllib.request
from contextlib import closing
from http.client import HTTPMessage, HTTPSConnection
from pathlib import Path
from urllib.parse import urlencode

import pytest

from ctnode.web.users import Role as WebRole
from ctnode.web.users import password_line
from tests.certificates import Authority
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


def test_a_page_for_others_speaks_tls_only_and_takes_a_new_certificate_on_reload(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    first, second = authority.issue("first"), authority.issue("second")
    users, certificate, key = tmp_path / "users", tmp_path / "page.pem", tmp_path / "page.key"
    users.write_text(password_line("alice", WebRole.VIEW, "correct horse battery") + "\n")
    shutil.copy(first.certificate, certificate)
    shutil.copy(first.key, key)
    web = {"enabled": True, "host": "0.0.0.0", "port": 0, "users": str(users)}
    node = Node(tmp_path / "node", web={**web, "certificate": str(certificate), "key": str(key)})
    context = ssl.create_default_context(cafile=str(authority.certificate))

    def ask(method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, HTTPMessage, str]:
        """Ask, with names and authority checked; returns status, headers and the serial of the certificate."""
        connection = HTTPSConnection(LOOPBACK, node.counters("web")["port"], timeout=CEILING_S, context=context)
        with closing(connection):
            connection.request(method, path, body, headers)
            shown = connection.sock.getpeercert() if isinstance(connection.sock, ssl.SSLSocket) else None
            answer = connection.getresponse()
            return answer.status, answer.headers, str((shown or {}).get("serialNumber"))

    with node:
        node.wait_for(lambda: node.counters("web").get("port"), "the page is served")
        assert node.counters("web")["tls"] is True
        assert ask("GET", "/")[0] == 303
        assert ask("GET", "/api/v1/series")[0] == 401
        form = urlencode({"name": "alice", "password": "correct horse battery"})
        status, headers, serial = ask("POST", "/login", form)
        assert (status, serial) == (303, "01")
        assert headers["strict-transport-security"]
        assert "secure" in headers["set-cookie"].lower()
        cookie = headers["set-cookie"].partition(";")[0]
        shutil.copy(second.certificate, certificate)
        shutil.copy(second.key, key)
        os.kill(node.pid, signal.SIGHUP)
        node.wait_for(lambda: node.events("certificate read anew"), "the certificate is read anew")
        # Who is logged in stays so.
        assert node.wait_for(lambda: ask("GET", "/series", cookie=cookie)[2] == "02", "the new one is shown")
        assert ask("GET", "/series", cookie=cookie)[0] == 200
        # Nothing answers without TLS.
        with socket.create_connection((LOOPBACK, node.counters("web")["port"]), CEILING_S) as plain:
            plain.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"HTTP" not in plain.recv(100)


def test_a_node_whose_page_others_could_reach_without_a_lock_does_not_start(tmp_path: Path) -> None:
    node = Node(tmp_path / "node", web={"enabled": True, "host": "0.0.0.0"})
    for command in ("run", "web"):
        done = node.command(command, expect=78)
        assert "web.users" in done.stderr, command
        assert "ctnode user" in done.stderr, command
    assert not node.layout.database.exists()
