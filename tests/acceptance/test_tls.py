"""The TLS port and TLS to targets, with DCMTK's programs on the other side."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ctnode.config import Target
from ctnode.wire.sender import Destination, Outcome, echo, send
from tests.acceptance.test_wire_dcmtk import stored, write_slice
from tests.certificates import Authority, Issued
from tests.pdu_writer import TLS_HELLO
from tests.wire_peers import ASSOCIATE_AC, PATIENCE_S, STANDARD, RawPeer, associate_rq, data_set, uid
from tests.wire_roles import ReceiveRole, dcmtk, receive_role, run_tool, wait_until

pytestmark = pytest.mark.acceptance

EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def node_files(authority: Authority) -> Issued:
    return authority.issue("node")


@pytest.fixture(scope="module")
def scanner(authority: Authority) -> Issued:
    return authority.issue("ct1")


def tls_keys(authority: Authority, issued: Issued, **more: object) -> dict[str, object]:
    files = {"tls.certificate": issued.certificate, "tls.key": issued.key, "tls.ca": authority.certificate}
    return {**{key: str(path) for key, path in files.items()}, "tls.port": 0, **more}


@pytest.fixture
def role(tmp_path: Path, authority: Authority, node_files: Issued) -> Iterator[ReceiveRole]:
    with receive_role(tmp_path, **tls_keys(authority, node_files)) as running:
        running.wait_ready()
        yield running


def tls_port(role: ReceiveRole) -> int:
    return int(role.counters()["tls_port"])


def storescu(port: int, source: Path, shown: Issued, authority: Authority, *options: str) -> int:
    arguments = ["+tls", shown.key, shown.certificate, "+cf", authority.certificate, *options]
    return run_tool(dcmtk("storescu"), *arguments, "-aet", "CT1", "127.0.0.1", port, source).returncode


@contextmanager
def client(port: int, authority: Authority, shown: Issued | None) -> Iterator[RawPeer]:
    """A raw peer behind a TLS connection."""
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if shown is not None:
        context.load_cert_chain(shown.certificate, shown.key)
    peer = RawPeer(port)
    peer.socket = context.wrap_socket(peer.socket, server_hostname="localhost")
    with peer:
        yield peer


@pytest.mark.parametrize("options", [(), ("+py",), ("+px",), ("+pz",)], ids=["default", "nd", "bcp195", "extended"])
def test_storescu_with_each_profile(
    role: ReceiveRole, tmp_path: Path, authority: Authority, scanner: Issued, options: tuple[str, ...]
) -> None:
    source = tmp_path / "slice.dcm"
    write_slice(source, 1, EXPLICIT)
    assert storescu(tls_port(role), source, scanner, authority, *options) == 0
    assert len(stored(role)) == 1
    journal = next((role.root / "incoming").glob("*/association.jsonl")).read_text()
    assert '"is_tls": true' in journal


def test_an_rsa_certificate_serves_as_well(tmp_path: Path, authority: Authority, scanner: Issued) -> None:
    source = tmp_path / "slice.dcm"
    write_slice(source, 1, EXPLICIT)
    with receive_role(tmp_path, **tls_keys(authority, authority.issue("rsa", kind="rsa"))) as role:
        role.wait_ready()
        assert storescu(tls_port(role), source, scanner, authority) == 0


def test_who_cannot_prove_itself_is_refused_and_the_plain_port_goes_on(
    role: ReceiveRole, tmp_path: Path, authority: Authority, scanner: Issued
) -> None:
    source = tmp_path / "slice.dcm"
    write_slice(source, 1, EXPLICIT)
    stranger = Authority(tmp_path, "stranger")
    expired = authority.issue("expired", days=-1)
    port = tls_port(role)
    assert storescu(port, source, expired, authority) != 0
    assert storescu(port, source, stranger.issue("ct1"), authority) != 0
    anonymous = run_tool(dcmtk("storescu"), "+tla", "-ic", "127.0.0.1", port, source)
    assert anonymous.returncode != 0
    assert stored(role) == []

    def causes() -> dict[str, int]:
        found: dict[str, int] = role.counters().get("cut", {})
        return {cause: count for cause, count in found.items() if cause.startswith("tls: ")}

    wait_until(lambda: sum(causes().values()) == 3, "three refusals")
    assert set(causes()) == {
        "tls: certificate has expired",
        "tls: unable to get local issuer certificate",
        "tls: peer did not return a certificate",
    }
    assert run_tool(dcmtk("storescu"), "127.0.0.1", role.wait_ready(), source).returncode == 0


@pytest.mark.parametrize(
    ("option", "is_served"), [("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)], ids=["1.1", "1.2", "1.3"]
)
def test_versions(role: ReceiveRole, authority: Authority, scanner: Issued, option: str, is_served: bool) -> None:
    openssl = shutil.which("openssl")
    assert openssl is not None
    result = subprocess.run(
        [openssl, "s_client", "-connect", f"127.0.0.1:{tls_port(role)}", option, "-cipher", "DEFAULT@SECLEVEL=0",
         "-cert", scanner.certificate, "-key", scanner.key, "-CAfile", authority.certificate, "-verify_return_error"],
        input=b"", capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert (result.returncode == 0) is is_served, result.stderr
    # It was the node that said no, not a client that cannot speak a version so old.
    assert (b"alert protocol version" in result.stderr) is not is_served


def test_only_the_suites_of_the_profile(
    role: ReceiveRole, tmp_path: Path, authority: Authority, scanner: Issued
) -> None:
    source = tmp_path / "slice.dcm"
    write_slice(source, 1, EXPLICIT)
    # What PS3.15 has retired, as DCMTK still offers it: CBC with SHA-1, and no encryption at all.
    for profile in ("+pa", "+pn"):
        assert storescu(tls_port(role), source, scanner, authority, profile) != 0
    wait_until(lambda: role.counters()["cut"] == {"tls: no shared cipher": 2}, "the node to have refused both")
    assert stored(role) == []
    openssl = shutil.which("openssl")
    assert openssl is not None
    taken = set()
    for suite in (
        "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-SHA256",
        "ECDHE-ECDSA-AES256-SHA", "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES128-CCM",
    ):  # fmt: skip
        result = subprocess.run(
            [openssl, "s_client", "-connect", f"127.0.0.1:{tls_port(role)}", "-tls1_2", "-cipher", suite,
             "-cert", scanner.certificate, "-key", scanner.key, "-CAfile", authority.certificate],
            input="", capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        if re.search(rf"Cipher is {suite}\b", result.stdout):
            taken.add(suite)
    assert taken == {"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"}


def test_plain_on_the_tls_port_and_tls_on_the_plain_port_end_cleanly(
    role: ReceiveRole, authority: Authority, scanner: Issued
) -> None:
    with RawPeer(tls_port(role)) as peer:
        peer.send(associate_rq(STANDARD))
        assert peer.is_closed()
    with pytest.raises(OSError), client(role.wait_ready(), authority, scanner):
        pytest.fail("the plain port speaks TLS")
    wait_until(lambda: role.counters()["associations"]["open"] == 0, "both to end")
    with client(tls_port(role), authority, scanner) as peer:
        peer.associate()
        peer.release()


def test_a_silent_peer_hurts_only_itself(
    tmp_path: Path, authority: Authority, node_files: Issued, scanner: Issued
) -> None:
    keys = tls_keys(authority, node_files, **{"receiver.request_timeout_s": 2.0})
    with receive_role(tmp_path, **keys) as role:
        role.wait_ready()
        silent = [RawPeer(tls_port(role)) for _ in range(20)]
        try:
            for peer in silent[10:]:
                # A hello that is begun and never ended has no more time than none.
                peer.send(TLS_HELLO[:20])
            with client(tls_port(role), authority, scanner) as peer:
                peer.associate()
                assert peer.store(uid(1), data_set(uid(1), pixels=os.urandom(400_000))).status == 0
                peer.release()
            assert all(peer.is_closed() for peer in silent)
        finally:
            for peer in silent:
                peer.socket.close()
        wait_until(lambda: role.counters()["associations"]["open"] == 0, "the silent ones to be gone")
        wait_until(lambda: role.counters()["cut"], "the counters")
        assert role.counters()["cut"] == {"tls: the peer does not end the handshake": 20}
        assert role.counters()["ended"]["unnegotiated"] == 20
        assert not list((role.root / "incoming").glob("*/*.part"))
        assert "Traceback" not in role.log.read_text()
    told = [
        line for line in map(json.loads, role.log.read_text().splitlines()) if "without an association" in line["event"]
    ]
    assert [(line["address"], line["count"]) for line in told] == [("127.0.0.1", 20)]


def test_a_certificate_is_renewed_without_dropping_an_association(
    tmp_path: Path, authority: Authority, scanner: Issued
) -> None:
    live = Issued(tmp_path / "live.pem", tmp_path / "live.key")

    def install(issued: Issued) -> None:
        shutil.copy(issued.certificate, live.certificate)
        shutil.copy(issued.key, live.key)

    def shown(peer: RawPeer) -> str:
        assert isinstance(peer.socket, ssl.SSLSocket)
        return dict(pair for names in peer.socket.getpeercert()["subject"] for pair in names)["commonName"]  # type: ignore[index, misc, union-attr, return-value]

    install(authority.issue("first", days=5))
    with receive_role(tmp_path, **tls_keys(authority, live)) as role:
        role.wait_ready()
        assert 4 < role.counters()["certificate_days"] <= 5
        with client(tls_port(role), authority, scanner) as peer:
            assert shown(peer) == "first"
            peer.associate()
            # A key of another certificate changes nothing.
            shutil.copy(scanner.key, live.key)
            role.signal(signal.SIGHUP)
            wait_until(lambda: "certificate not reloaded" in role.log.read_text(), "the refusal")
            install(authority.issue("second", days=90))
            role.signal(signal.SIGHUP)
            wait_until(lambda: role.counters()["certificate_days"] > 80, "the new certificate")

            def renewed() -> bool:
                with client(tls_port(role), authority, scanner) as other:
                    return shown(other) == "second"

            wait_until(renewed, "a receiver to serve it")
            assert peer.store(uid(1), data_set(uid(1))).status == 0
            peer.release()


def test_the_certificate_is_part_of_who_a_peer_is(
    tmp_path: Path, authority: Authority, node_files: Issued, scanner: Issued
) -> None:
    peers = [{"name": "ct1", "ae_title": "CT1", "host": "127.0.0.1", "certificate": "CN=ct1,O=Hospital"}]
    with receive_role(tmp_path, **tls_keys(authority, node_files), peers=peers) as role:
        plain = role.wait_ready()
        with client(tls_port(role), authority, scanner) as peer:
            peer.associate(calling="CT1")
            peer.release()
        with client(tls_port(role), authority, authority.issue("ct2")) as peer:
            peer.send(associate_rq(STANDARD, calling="CT1"))
            assert peer.read_pdu()[1] == bytes([0, 1, 1, 3])
        with RawPeer(plain) as peer:
            peer.send(associate_rq(STANDARD, calling="CT1"))
            assert peer.read_pdu()[1] == bytes([0, 1, 1, 3])


def test_a_client_certificate_may_be_left_out_where_the_configuration_says_so(
    tmp_path: Path, authority: Authority, node_files: Issued
) -> None:
    keys = tls_keys(authority, node_files, **{"tls.require_client_certificate": False, "tls.ca": ""})
    with receive_role(tmp_path, **keys) as role:
        role.wait_ready()
        with client(tls_port(role), authority, None) as peer:
            peer.send(associate_rq(STANDARD))
            assert peer.read_pdu()[0] == ASSOCIATE_AC


def test_files_that_cannot_be_used_are_a_bad_configuration(
    tmp_path: Path, authority: Authority, node_files: Issued, scanner: Issued
) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    for broken in (
        {"tls.certificate": str(tmp_path / "nowhere.pem")},
        {"tls.key": str(scanner.key)},
        {"tls.ca": str(empty)},
        {"tls.certificate": str(empty)},
    ):
        role = ReceiveRole(tmp_path, **tls_keys(authority, node_files, **broken))
        assert role.wait_exit() == 78, broken


# ------------------------------------------------------------------------------------------------- towards targets


@contextmanager
def storescp(folder: Path, issued: Issued, authority: Authority, *options: str) -> Iterator[int]:
    program = dcmtk("storescp")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            program,
            "+tls",
            issued.key,
            issued.certificate,
            "+cf",
            authority.certificate,
            *options,
            "-od",
            folder,
            str(port),
        ]
    )
    try:
        wait_until(lambda: _listens(port), "storescp")
        yield port
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S):
            return True
    except ConnectionRefusedError:
        return False


def target(port: int, authority: Authority, shown: Issued | None, **more: str) -> Destination:
    files = {"certificate": str(shown.certificate), "key": str(shown.key)} if shown is not None else {}
    values = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": port, "tls": True}
    return Destination.of(Target.model_validate({**values, "ca": str(authority.certificate), **files, **more}))


def test_sending_to_a_target_with_tls(tmp_path: Path, authority: Authority, node_files: Issued) -> None:
    source = tmp_path / "slice.dcm"
    write_slice(source, 1, EXPLICIT)
    received = tmp_path / "received"
    received.mkdir()
    with storescp(received, authority.issue("pacs"), authority) as port:
        answer = echo(target(port, authority, node_files), "CTNODE", PATIENCE_S)
        assert answer.ok
        assert re.fullmatch(r"TLSv1\.[23] \S+ certificate until 20\d\d-\d\d-\d\d", answer.tls)
        (result,) = send(target(port, authority, node_files), "CTNODE", [source], PATIENCE_S)
        assert result.outcome is Outcome.SENT
        assert len(list(received.iterdir())) == 1
        named = target(port, authority, node_files, tls_name="pacs.example")
        assert echo(named, "CTNODE", PATIENCE_S).ok
        misnamed = target(port, authority, node_files, tls_name="other.example")
        assert "Hostname mismatch" in echo(misnamed, "CTNODE", PATIENCE_S).detail
        assert not echo(target(port, authority, None), "CTNODE", PATIENCE_S).ok


def test_a_target_that_cannot_prove_itself_gets_nothing(
    tmp_path: Path, authority: Authority, node_files: Issued
) -> None:
    source = tmp_path / "slice.dcm"
    write_slice(source, 1, EXPLICIT)
    stranger = Authority(tmp_path, "stranger")
    with storescp(tmp_path, authority.issue("late", days=-1), authority) as port:
        (result,) = send(target(port, authority, node_files), "CTNODE", [source], PATIENCE_S)
        assert (result.outcome, result.comment) == (Outcome.UNTRIED, "no connection: certificate has expired")
    with storescp(tmp_path, stranger.issue("pacs"), authority) as port:
        (result,) = send(target(port, authority, node_files), "CTNODE", [source], PATIENCE_S)
        assert result.outcome is Outcome.UNTRIED
        assert "unable to get local issuer certificate" in result.comment


@pytest.mark.parametrize(("option", "is_called"), [("-tls1_1", False), ("-tls1_2", True)], ids=["1.1", "1.2"])
def test_a_target_with_an_old_version_gets_nothing(
    tmp_path: Path, authority: Authority, node_files: Issued, option: str, *, is_called: bool
) -> None:
    openssl = shutil.which("openssl")
    assert openssl is not None
    issued = authority.issue("pacs")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (tmp_path / "told").open("wb") as told:
        process = subprocess.Popen(
            [openssl, "s_server", "-accept", f"127.0.0.1:{port}", option, "-cipher", "ALL@SECLEVEL=0", "-cert",
             issued.certificate, "-key", issued.key, "-msg"],
            stdin=subprocess.PIPE, stdout=told, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        wait_until(lambda: b"ACCEPT" in (tmp_path / "told").read_bytes(), "the server")
        # It speaks no DICOM: whether it was spoken to is told by what came through TLS.
        assert not echo(target(port, authority, node_files), "CTNODE", 2.0).ok
    finally:
        process.kill()
        process.communicate()
    assert (b"Finished" in (tmp_path / "told").read_bytes()) is is_called
