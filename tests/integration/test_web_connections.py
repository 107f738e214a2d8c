"""Slow and greedy clients of the page, and its certificate: real sockets, the server in a thread of this process."""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ctnode.config import Config
from ctnode.web import connections, server
from ctnode.web.connections import network_of
from tests.certificates import Authority, Issued
from tests.web_root import Site

pytestmark = pytest.mark.integration

GREEDY, HONEST = "127.0.0.2", "127.0.0.1"
CEILING_S = 20.0
LARGE = 8 << 20


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Count a body; answer at once, late, with much, or with a stream that says little."""
    count, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        count, more = count + len(message["body"]), message.get("more_body", False)
    if scope["path"] == "/late":
        await asyncio.sleep(1.5)
    body = b"x" * LARGE if scope["path"] == "/large" else str(count).encode()
    headers = [] if scope["path"] == "/stream" else [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["path"] == "/stream":
        await send({"type": "http.response.body", "body": b"hello", "more_body": True})
        await asyncio.sleep(1.5)
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    patience = {"HEAD": 1.0, "BODY": 1.01, "READER": 1.02, "NOTHING": float("inf")}
    monkeypatch.setattr(connections, "_Stage", Enum("_Stage", patience))
    monkeypatch.setattr(connections, "HEAD_S", 1.0)
    monkeypatch.setattr(connections, "LOOK_S", 0.05)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., tuple[server._Loop, int]]]:
    with ExitStack() as opened:

        def begin(**web: Any) -> tuple[server._Loop, int]:
            site = Site(tmp_path, web={"port": 0, **web})
            opened.callback(site.close)
            listener = opened.enter_context(server.bind(site.config))
            loop = server._Loop(server._settings(site.config, application), site.node)
            thread = threading.Thread(target=loop.begin, args=(listener,))
            thread.start()
            opened.callback(thread.join)
            opened.callback(setattr, loop, "should_exit", True)
            return loop, int(listener.getsockname()[1])

        yield begin


@contextmanager
def connected(port: int, source: str = HONEST) -> Iterator[socket.socket]:
    with socket.create_connection((HONEST, port), CEILING_S, (source, 0)) as client:
        yield client


def is_cut(client: socket.socket) -> bool:
    """Return whether the other side has let go, soon."""
    client.settimeout(CEILING_S)
    try:
        return not client.recv(1)
    except ConnectionError:
        return True


def ask(port: int, path: str = "/", source: str = HONEST) -> bytes:
    connection = http.client.HTTPConnection(HONEST, port, CEILING_S, (source, 0))
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def drip(clients: list[socket.socket], piece: bytes, seconds: float) -> None:
    """Send a piece on each connection every so often, until they are cut or the time is over."""
    end = time.monotonic() + seconds
    while clients and time.monotonic() < end:
        for client in list(clients):
            try:
                client.sendall(piece)
            except OSError:
                clients.remove(client)
        time.sleep(0.05)


def test_one_address_that_drips_heads_takes_neither_all_places_nor_any_for_long(serve: Callable[..., Any]) -> None:
    _, port = serve()
    with ExitStack() as opened:
        many = [opened.enter_context(connected(port, GREEDY)) for _ in range(connections.PER_ADDRESS)]
        for client in many:
            client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nx-slow: ")
        beyond = [opened.enter_context(connected(port, GREEDY)) for _ in range(5)]
        assert all(map(is_cut, beyond))
        assert ask(port) == b"0"
        silent = opened.enter_context(connected(port))
        drip(many, b"a", CEILING_S)
        assert many == []
        assert is_cut(silent)
        # It is let in again once it holds none.
        assert ask(port, source=GREEDY) == b"0"


def test_a_body_that_drips_is_cut_and_one_that_moves_is_not(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "PIECE_BYTES", 2000)
    _, port = serve()
    head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 30000\r\n\r\n"
    with connected(port) as slow, connected(port) as steady:
        slow.sendall(head)
        steady.sendall(head)
        for _ in range(30):
            # Longer than the patience, and a thousand bytes twenty times as often.
            steady.sendall(b"y" * 1000)
            time.sleep(0.05)
        slow_ones = [slow]
        drip(slow_ones, b"y", CEILING_S)
        assert slow_ones == []
        assert steady.makefile("rb").read().endswith(b"30000")


def test_who_reads_nothing_of_a_large_answer_is_cut(serve: Callable[..., Any]) -> None:
    loop, port = serve()
    with connected(port) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        end = time.monotonic() + CEILING_S
        while not loop.server_state.connections and time.monotonic() < end:
            time.sleep(0.02)
        while loop.server_state.connections and time.monotonic() < end:
            time.sleep(0.02)
        assert not loop.server_state.connections
    assert len(ask(port, "/large")) == LARGE


def test_answers_that_take_long_and_streams_that_are_quiet_are_left_alone(serve: Callable[..., Any]) -> None:
    _, port = serve()
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(partial(ask, port), ("/late", "/stream"))) == [b"0", b"hello0"]


@pytest.mark.parametrize(
    ("address", "who"),
    [
        ("10.0.0.1", "10.0.0.1"), ("2001:db8:1:2::1", "2001:db8:1:2::/64"), ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
    ],
)  # fmt: skip
def test_an_ipv6_client_is_its_network(address: str, who: str) -> None:
    assert network_of(address) == who


# ------------------------------------------------------------------------------------------------------------ TLS


def serial(port: int, authority: Authority) -> str:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    with (
        socket.create_connection((HONEST, port), CEILING_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        return str((client.getpeercert() or {})["serialNumber"])


def put(issued: Issued, certificate: Path, key: Path) -> None:
    certificate.write_bytes(issued.certificate.read_bytes())
    key.write_bytes(issued.key.read_bytes())


def test_a_new_certificate_is_shown_from_then_on_and_a_broken_one_never(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    certificate, key = tmp_path / "page.pem", tmp_path / "page.key"
    put(authority.issue("one"), certificate, key)
    loop, port = serve(certificate=str(certificate), key=str(key))
    config = Config.model_validate({"web": {"certificate": str(certificate), "key": str(key)}})
    assert serial(port, authority) == "01"
    put(authority.issue("two"), certificate, key)
    assert serial(port, authority) == "01"
    loop.renew_certificate(config)
    assert serial(port, authority) == "02"
    key.write_text("no key")
    loop.renew_certificate(config)
    assert serial(port, authority) == "02"
    # Who never begins with TLS is cut as well.
    with connected(port) as client:
        assert is_cut(client)
    # What RFC 9325 has let go is not spoken.
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.set_ciphers("AES128-SHA:AES256-SHA:ECDHE-ECDSA-AES128-SHA")
    with socket.create_connection((HONEST, port), CEILING_S) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain)
