"""``docs/conformance.md`` says what the node negotiates: each of its tables is compared with the node itself."""

from __future__ import annotations

import errno
import os
import ssl
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ctnode import __version__
from ctnode.archive import vouching
from ctnode.config import Config, Node, Peer
from ctnode.wire import normalized
from ctnode.wire.certificates import Material
from ctnode.wire.contexts import supported_contexts
from ctnode.wire.query import FIND, GET, MOVE
from ctnode.wire.service_classes import SERVICES
from ctnode.words import DimseStatus
from tests.certificates import Authority
from tests.wire_peers import (
    ASSOCIATE_RJ,
    CT,
    EXPLICIT,
    IMPLICIT,
    STANDARD,
    VERIFICATION,
    RawPeer,
    Receiver,
    associate_rq,
    data_set,
    receiver,
    uid,
)

pytestmark = pytest.mark.integration

PAGE = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")
DEFLATED = "1.2.840.10008.1.2.1.99"


def table(*columns: str) -> list[tuple[str, ...]]:
    """Return the rows of the table with these columns."""
    head = f"| {' | '.join(columns)} |\n"
    assert PAGE.count(head) == 1, columns
    lines = PAGE.partition(head)[2].splitlines()[1:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append(tuple(cell.strip() for cell in line.strip("|").split("|")))
    return rows


ITEMS = dict(table("item", "value"))
ORDER = [row[2] for row in table("order", "transfer syntax", "UID")]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Receiver]:
    with receiver(tmp_path) as running:
        yield running


def items(answer: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and value of the items of an A-ASSOCIATE-AC, those of the user information one by one."""
    position = 68
    while position < len(answer):
        kind, _, length = struct.unpack_from(">BBH", answer, position)
        if kind == 0x50:
            position += 4
            continue
        yield kind, answer[position + 4 : position + 4 + length]
        position += 4 + length


def contexts(answer: bytes) -> dict[int, tuple[int, str]]:
    """Return result and transfer syntax of each context."""
    return {value[0]: (value[2], value[8:].decode().rstrip("\0")) for kind, value in items(answer) if kind == 0x21}


def offered(node: Receiver, *proposed: tuple[int, str, tuple[str, ...]]) -> dict[int, tuple[int, str]]:
    with RawPeer(node.port) as peer:
        answer = peer.associate(proposed)
        peer.release()
    return contexts(answer)


def test_sop_classes() -> None:
    listed = [row[1] for row in table("SOP class", "UID")]
    services = table("service", "SOP class UID", "SCU", "SCP")
    served = [row[1] for row in services if row[3] == "yes"]
    assert [name for name in served if "*" not in name] == list(SERVICES)
    assert sorted([*SERVICES, *listed]) == sorted(supported_contexts())
    assert [row[1] for row in services if row[2:] == ("yes", "no")] == [FIND, MOVE, GET]


def test_statuses_of_the_other_services() -> None:
    """Each status that the code can answer is in the table, and the other way round."""
    rows = table("request", "status", "when")
    listed = {int(row[1].partition(",")[0], 16) for row in rows}
    codes = {name: value for name, value in vars(normalized).items() if name.isupper() and name[0] != "_"}
    ours = {value for value in codes.values() if isinstance(value, int) and value <= 0xFFFF}
    assert listed | {normalized.NO_LONGER_UPDATED, normalized.SUCCESS} == ours
    assert any("A710" in row[1] for row in rows)
    assert {int(row[0], 16) for row in table("failure reason", "when")} == {
        vouching.PROCESSING_FAILURE, vouching.NO_SUCH_INSTANCE, vouching.CLASS_CONFLICT,
    }  # fmt: skip


def test_each_sop_class_is_accepted(node: Receiver) -> None:
    listed = [row[1] for row in table("SOP class", "UID")]
    for start in range(0, len(listed), 100):
        part = listed[start : start + 100]
        answers = offered(node, *((2 * place + 1, sop_class, (EXPLICIT,)) for place, sop_class in enumerate(part)))
        assert [result for result, _ in answers.values()] == [0] * len(part)


def test_order_of_transfer_syntaxes(node: Receiver) -> None:
    numbers = range(len(ORDER))
    # The first of the order wins, whatever the order of the proposal.
    proposals = [(2 * place + 1, CT, (DEFLATED, *reversed(ORDER[place:]))) for place in numbers]
    assert offered(node, *proposals) == {2 * place + 1: (0, ORDER[place]) for place in numbers}
    echoed = offered(node, *((2 * place + 1, VERIFICATION, (ORDER[place],)) for place in numbers))
    assert [result for result, _ in echoed.values()] == [0, 0] + [4] * (len(ORDER) - 2)


def test_results_of_contexts(node: Receiver) -> None:
    answers = offered(node, (1, CT, (EXPLICIT,)), (3, "1.2.3", (EXPLICIT,)), (5, CT, (DEFLATED,)))
    seen = sorted({result for result, _ in answers.values()})
    assert [int(row[0]) for row in table("result of a context", "when")] == seen


def test_what_the_application_entity_says_of_itself(node: Receiver) -> None:
    with RawPeer(node.port) as peer:
        answer = dict(items(peer.associate()))
        peer.release()
    assert answer[0x51] == struct.pack(">L", int(ITEMS["Maximum PDU length offered"]))
    assert answer[0x52].decode() == ITEMS["Implementation Class UID"]
    assert ITEMS["Implementation Version Name"] == "CTNODE_ and the version of the package"
    assert answer[0x55].decode().strip() == f"CTNODE_{__version__}"[:16]
    # No asynchronous operations, role selection, extended negotiation or user identity.
    assert set(answer) == {0x10, 0x21, 0x51, 0x52, 0x55}
    limits = Config().receiver
    assert int(ITEMS["Associations at the same time"]) == limits.max_associations
    assert int(ITEMS["Associations at the same time from one address"]) == limits.max_per_address


def test_rejections(tmp_path: Path) -> None:
    config = Config(
        node=Node(called_ae_titles=("CTNODE",)), peers=(Peer(name="raw", ae_title="RAW", host="127.0.0.1"),)
    )
    good = associate_rq(STANDARD)
    with receiver(tmp_path, config, listening_address="0.0.0.0") as node:

        def answer(request: bytes) -> tuple[int, ...]:
            with RawPeer(node.port) as peer:
                peer.send(request)
                kind, body = peer.read_pdu()
                assert kind == ASSOCIATE_RJ
            return tuple(body[1:])

        seen = {
            answer(good.replace(b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.3.1.1.2")),
            answer(associate_rq(STANDARD, calling="OTHER")),
            answer(associate_rq(STANDARD, called="OTHER")),
            answer(good[:6] + b"\0\2" + good[8:]),
        }
        node.over_limit = True
        seen.add(answer(good))
        node.over_limit = False
        node.shared.storage_fault = "full"
        seen.add(answer(good))
    rows = table("result", "source", "reason", "when")
    assert sorted(tuple(int(number) for number in row[:3]) for row in rows) == sorted(seen)


def test_statuses_of_c_store(node: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = sorted(int(row[0], 16) for row in table("status", "meaning", "when"))
    with RawPeer(node.port) as peer:
        peer.associate()
        seen = {
            peer.store(uid(1), data_set(uid(1))).status,
            peer.store(uid(2), data_set(uid(3))).status,
            peer.store(uid(4), b"").status,
            peer.store(uid(5), data_set(uid(5)), sop_class=b"1.2.840.10008.5.1.4.1.1.4").status,
        }

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            patch.setattr(os, "write", full)
            seen.add(peer.store(uid(6), data_set(uid(6))).status)
        peer.release()
    assert listed == sorted(seen)
    # What is left is the status of a fault of the node itself.
    assert {int(status) for status in DimseStatus} - set(listed) == {int(DimseStatus.PROCESSING_FAILURE)}


def test_time_outs() -> None:
    limits = Config().receiver
    for key, seconds in table("time-out", "default in seconds"):
        assert float(seconds) == getattr(limits, key.removeprefix("receiver."))
    named = {row[0] for row in table("time-out", "default in seconds")}
    assert named == {f"receiver.{key}" for key in type(limits).model_fields if key.endswith("_timeout_s")}


def test_ports_and_suites(tmp_path: Path) -> None:
    assert f"Default port {Config().node.port}; with TLS {Config().tls.port}." in PAGE
    authority = Authority(tmp_path)
    issued = authority.issue("node")
    read: Callable[[Path], str] = Path.read_text
    material = Material(read(issued.certificate), read(issued.key), read(authority.certificate), True)
    context = material.server_context()
    # The order of suites is OpenSSL's.
    assert {(suite["protocol"], suite["name"]) for suite in context.get_ciphers()} == {
        (version, name) for version, name in table("version", "cipher suite")
    }
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert IMPLICIT in ORDER[:2]
