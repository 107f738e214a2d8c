"""STOW-RS and QIDO-RS against a service that answers as it is told."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ctnode.config import Target
from ctnode.wire.sender import Outcome
from ctnode.wire.stow import Service, WebFault
from tests.delivery_root import write_object
from tests.integration.test_sender import compressed
from tests.wire_peers import uid

pytestmark = pytest.mark.integration

Reply = tuple[int, Mapping[str, str], bytes]


@dataclass
class Web:
    """A web service: what it got, and what it says."""

    reply: Callable[[str, str, list[str]], Reply]
    port: int = 0
    got: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)


@contextmanager
def web(reply: Callable[[str, str, list[str]], Reply]) -> Iterator[Web]:
    state = Web(reply)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            uids = [name.decode() for name in re.findall(rb"1\.2\.826\.0\.1\.3680043\.8\.498\.7\.\d+", body)]
            state.got.append((self.command, self.path, dict(self.headers)))
            state.bodies.append(body)
            status, headers, content = state.reply(self.command, self.path, list(dict.fromkeys(uids)))
            if not status:
                self.close_connection = True
                return
            if status == 200 and self.command == "POST":
                state.stored += list(dict.fromkeys(uids))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _serve  # noqa: N815

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def service(port: int, **more: object) -> Service:
    values = {"name": "web", "kind": "dicomweb", "url": f"http://127.0.0.1:{port}/dicom-web/", **more}
    return Service(Target.model_validate(values), 20.0)


def objects(place: Path, count: int) -> list[Path]:
    files = [place / f"{number:03d}.dcm" for number in range(count)]
    for number, file in enumerate(files):
        write_object(file, uid(7, number + 1))
    return files


def answer(stored: list[str], failed: Mapping[str, int]) -> bytes:
    def item(name: str, **more: object) -> dict[str, object]:
        return {"00081155": {"vr": "UI", "Value": [name]}, **more}

    return json.dumps(
        {
            "00081199": {"vr": "SQ", "Value": [item(name) for name in stored]},
            "00081198": {
                "vr": "SQ",
                "Value": [item(n, **{"00081197": {"vr": "US", "Value": [why]}}) for n, why in failed.items()],
            },
        }
    ).encode()


def test_objects_arrive_byte_by_byte_in_batches(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("Bearer abc\n")
    files = objects(tmp_path, 45)
    with web(lambda *_: (200, {}, b"")) as there, service(there.port, token_file=str(tmp_path / "token")) as stow:
        results = list(stow.store(files))
    assert [(one.path, one.outcome, one.status) for one in results] == [(file, Outcome.SENT, 200) for file in files]
    assert there.stored == [uid(7, number + 1) for number in range(45)]
    assert [(method, path) for method, path, _ in there.got] == [("POST", "/dicom-web/studies")] * 3
    headers = there.got[0][2]
    assert headers["Authorization"] == "Bearer abc"
    boundary = re.fullmatch(r'multipart/related; type="application/dicom"; boundary=(\w+)', headers["Content-Type"])
    assert boundary is not None
    parts = there.bodies[0].split(f"\r\n--{boundary[1]}".encode())
    assert parts[-1] == b"--\r\n"
    assert [part.partition(b"\r\n\r\n")[2] for part in parts[1:-1]] == [file.read_bytes() for file in files[:20]]


def test_partial_success_is_told_apart(tmp_path: Path) -> None:
    files = objects(tmp_path, 4)

    def reply(_method: str, _path: str, uids: list[str]) -> Reply:
        return 202, {}, answer([uids[0]], {uids[1]: 0xA900, uids[2]: 0xA700})

    with web(reply) as there, service(there.port) as stow:
        results = list(stow.store(files))
    assert [(one.outcome, one.status) for one in results] == [
        (Outcome.SENT, 202), (Outcome.DEAD, 0xA900), (Outcome.RETRY, 0xA700), (Outcome.RETRY, 202),
    ]  # fmt: skip


@pytest.mark.parametrize("status", [409, 400])
def test_a_batch_that_is_refused_as_a_whole_is_tried_one_by_one(tmp_path: Path, status: int) -> None:
    files = objects(tmp_path, 3)
    bad = uid(7, 2)
    with (
        web(lambda _m, _p, uids: (status if bad in uids else 200, {}, b"no JSON")) as there,
        service(there.port) as stow,
    ):
        results = list(stow.store(files))
    assert [one.outcome for one in results] == [Outcome.SENT, Outcome.DEAD, Outcome.SENT]
    assert (results[1].status, results[1].comment) == (status, f"HTTP status {status}")
    assert there.stored == [uid(7, 1), uid(7, 3)]


@pytest.mark.parametrize("status", [401, 404, 429, 502, 503])
def test_what_is_no_fault_of_the_objects_is_one_of_the_service(tmp_path: Path, status: int) -> None:
    with web(lambda *_: (status, {}, b"")) as there, service(there.port) as stow:
        results = list(stow.store(objects(tmp_path, 22)))
    assert {one.outcome for one in results} == {Outcome.UNTRIED}
    assert (results[0].is_fault, results[0].comment) == (True, f"HTTP status {status}")
    assert len(there.got) == 1


def test_one_object_at_which_a_service_breaks_holds_up_no_other(tmp_path: Path) -> None:
    files = objects(tmp_path, 4)
    with (
        web(lambda _m, _p, uids: (500 if uid(7, 2) in uids else 200, {}, b"<html>")) as there,
        service(there.port) as stow,
    ):
        results = list(stow.store(files))
    assert [one.outcome for one in results] == [Outcome.SENT, Outcome.RETRY, Outcome.SENT, Outcome.SENT]
    assert (results[1].status, results[1].is_fault) == (500, False)


def test_what_the_service_has_already_is_there(tmp_path: Path) -> None:
    """What a lost answer leaves: the second transfer is refused, for the first one arrived."""
    files = objects(tmp_path, 2)

    def reply(_method: str, _path: str, uids: list[str]) -> Reply:
        return 409, {}, answer([], {uids[0]: 0xB00E, uids[1]: 0xB00F})

    with web(reply) as there, service(there.port) as stow:
        results = list(stow.store(files))
    assert [(one.outcome, one.status) for one in results] == [(Outcome.SENT, 0xB00E), (Outcome.RETRY, 0xB00F)]
    assert results[0].comment == "it has it already"


@pytest.mark.parametrize("how", [415, 0xC122])
def test_a_compressed_object_is_decoded_only_where_the_service_refuses_it_and_that_is_wanted(
    tmp_path: Path, how: int
) -> None:
    name, pixels = compressed(tmp_path / "packed")
    (plain,) = objects(tmp_path, 1)

    def reply(_method: str, _path: str, uids: list[str]) -> Reply:
        if b"1.2.840.10008.1.2.4.80" not in there.bodies[-1]:
            return 200, {}, b""
        return (415, {}, b"") if how == 415 else (202 if uids else 409, {}, answer(uids, {name: how}))

    with web(reply) as there:
        with service(there.port) as stow:
            results = list(stow.store([tmp_path / "packed", plain]))
        assert [(one.outcome, one.status) for one in results[:1]] == [(Outcome.DEAD, how)]
        assert results[1].outcome is Outcome.SENT
        with service(there.port, transcode=True) as stow:
            results = list(stow.store([tmp_path / "packed", plain]))
        assert [(one.path, one.outcome) for one in results] == [
            (tmp_path / "packed", Outcome.SENT), (plain, Outcome.SENT)
        ]  # fmt: skip
        assert any(pixels.tobytes() in body for body in there.bodies)


def test_an_answer_that_is_lost_may_have_been_a_success(tmp_path: Path) -> None:
    with web(lambda *_: (0, {}, b"")) as there, service(there.port) as stow:
        (result,) = stow.store(objects(tmp_path, 1))
    assert (result.outcome, result.is_fault, result.may_have_arrived) == (Outcome.RETRY, True, True)
    with service(there.port) as stow:
        (result,) = stow.store(objects(tmp_path, 1))
    assert (result.outcome, result.may_have_arrived) == (Outcome.UNTRIED, False)
    assert "no connection" in result.comment


def test_redirects_are_followed_and_the_token_stays(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("Bearer abc")
    with (
        web(lambda *_: (200, {}, b"")) as there,
        web(lambda *_: (307, {"Location": f"http://127.0.0.1:{there.port}/x/studies"}, b"")) as first,
        service(first.port, token_file=str(tmp_path / "token")) as stow,
    ):
        (result,) = stow.store(objects(tmp_path, 1))
    assert result.outcome is Outcome.SENT
    assert first.got[0][2]["Authorization"] == "Bearer abc"
    assert "Authorization" not in there.got[0][2]
    assert there.stored == [uid(7, 1)]
    with (
        web(lambda *_: (308, {"Location": "/again"}, b"")) as round_and_round,
        service(round_and_round.port) as stow,
    ):
        (result,) = stow.store(objects(tmp_path, 1))
    assert (result.outcome, result.comment) == (Outcome.UNTRIED, "it redirects without end")


def test_a_query_tells_what_the_service_has(tmp_path: Path) -> None:
    def reply(_method: str, path: str, _uids: list[str]) -> Reply:
        if "?SOPInstanceUID=" in path:
            return (200, {}, b'[{"00080018": {"vr": "UI", "Value": ["2"]}}]') if path.endswith("=2") else (204, {}, b"")
        return 200, {}, b'[{"00080018": {"vr": "UI", "Value": ["1"]}}]'

    with web(reply) as there, service(there.port) as stow:
        assert stow.held("9", "9.1", ["1", "2", "3"]) == {"1", "2"}
    assert there.got[0][1] == "/dicom-web/studies/9/series/9.1/instances"
    with web(lambda *_: (200, {}, b"<html>")) as there, service(there.port) as stow, pytest.raises(WebFault):
        stow.held("9", "9.1", ["1"])


def test_what_is_no_object_is_dead(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no DICOM at all" * 100)
    with web(lambda *_: (200, {}, b"")) as there, service(there.port) as stow:
        results = list(stow.store([tmp_path / "text", tmp_path / "absent"]))
    assert [one.outcome for one in results] == [Outcome.DEAD, Outcome.RETRY]
    assert there.got == []
