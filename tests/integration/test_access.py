"""What a peer may do: its services, SOP classes, places, sizes and times; and what an association leaves behind."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctnode.archive import associations, timeline
from ctnode.archive.database import Database
from ctnode.archive.index import Index
from ctnode.archive.settle import Settler
from ctnode.config import Config, Node, Peer
from ctnode.config import Receiver as Settings
from tests.wire_peers import (
    ABORT,
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

MR = "1.2.840.10008.5.1.4.1.1.4"
PROPOSED = (
    (1, VERIFICATION, (IMPLICIT,)),
    (3, CT, (EXPLICIT,)),
    (5, MR, (EXPLICIT,)),
    (7, CT, ("1.2.840.10008.1.2.1.99",)),
)


def peer(name: str, **terms: object) -> Peer:
    return Peer.model_validate({"name": name, "ae_title": name.upper(), "host": "127.0.0.1", **terms})


PEERS = (
    peer("any"),
    peer("pinger", services=["echo"]),
    peer("scanner", sop_classes=[CT], services=["store"]),
    peer("single", max_associations=1),
    peer("small", max_object_mb=1, max_pdu=8192),
    peer("hasty", idle_timeout_s=0.2),
    peer("secure", certificate="secure.example"),
)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Receiver]:
    config = Config(node=Node(called_ae_titles=("CTNODE",)), receiver=Settings(max_pdu=16384), peers=PEERS)
    with receiver(tmp_path, config, listening_address="0.0.0.0") as running:
        yield running


def results(answer: bytes) -> dict[int, int]:
    """Return the result of each presentation context of an A-ASSOCIATE-AC (PS3.8 9.3.3.2)."""
    found, position = {}, 68
    while position < len(answer):
        kind, _, length = struct.unpack_from(">BBH", answer, position)
        if kind == 0x21:
            found[answer[position + 4]] = answer[position + 6]
        position += 4 + length
    return found


def pdu_limit(answer: bytes) -> int:
    """Return the maximum length of an A-ASSOCIATE-AC (PS3.8 D.1)."""
    position = answer.index(struct.pack(">BBH", 0x51, 0, 4))
    (limit,) = struct.unpack_from(">L", answer, position + 4)
    return int(limit)


@pytest.mark.parametrize(
    ("calling", "accepted"),
    [("ANY", {1: 0, 3: 0, 5: 0, 7: 4}), ("PINGER", {1: 0, 3: 3, 5: 3, 7: 3}), ("SCANNER", {1: 3, 3: 0, 5: 3, 7: 4})],
)
def test_services_and_sop_classes(node: Receiver, calling: str, accepted: dict[int, int]) -> None:
    with RawPeer(node.port) as sender:
        assert results(sender.associate(PROPOSED, calling=calling)) == accepted
        sender.release()


def test_the_journal_says_in_words_why_a_context_was_refused(node: Receiver) -> None:
    with RawPeer(node.port) as sender:
        sender.associate(((1, "1.2.3", (EXPLICIT,)), *PROPOSED[1:]), calling="SCANNER")
        sender.release()
    opened = json.loads(node.journals()[0].splitlines()[0])
    assert opened["peer"] == "scanner"
    assert opened["refused"] == [
        ["1.2.3", "SOP class not supported"],
        [MR, "not allowed to this peer"],
        [CT, "no transfer syntax in common: 1.2.840.10008.1.2.1.99"],
    ]


def test_a_peer_has_no_more_places_than_it_may(node: Receiver) -> None:
    with RawPeer(node.port) as first, RawPeer(node.port) as second, RawPeer(node.port) as other:
        first.associate(calling="SINGLE")
        second.send(associate_rq(STANDARD, calling="SINGLE"))
        assert second.read_pdu() == (ASSOCIATE_RJ, bytes([0, 2, 3, 2]))
        other.associate(calling="ANY")
        first.release()
        first.socket.close()
        second.socket.close()
        node.wait_ended(2)
        with RawPeer(node.port) as third:
            third.associate(calling="SINGLE")
            third.release()
        other.release()


def test_sizes(node: Receiver) -> None:
    with RawPeer(node.port) as sender:
        assert pdu_limit(sender.associate(calling="SMALL")) == 8192
        large = sender.store(uid(1), data_set(uid(1), pixels=bytes(1_100_000)), piece_bytes=8000)
        assert large.status == 0xC000
        assert sender.store(uid(2), data_set(uid(2)), piece_bytes=8000).status == 0
        sender.release()
    with RawPeer(node.port) as sender:
        assert pdu_limit(sender.associate(calling="ANY")) == 16384
        assert sender.store(uid(3), data_set(uid(3), pixels=bytes(1_100_000))).status == 0
        sender.release()
    with RawPeer(node.port) as sender:
        sender.associate(calling="SMALL")
        # One byte of it is enough: the length alone is too long.
        sender.send(struct.pack(">BBLB", 4, 0, 8193, 0))
        assert sender.read_pdu()[0] == ABORT


def test_a_peer_has_its_own_patience(node: Receiver) -> None:
    with RawPeer(node.port) as patient, RawPeer(node.port) as hasty:
        patient.associate(calling="ANY")
        hasty.associate(calling="HASTY")
        assert hasty.read_pdu()[0] == ABORT
        patient.release()


@pytest.mark.parametrize(
    ("calling", "called", "reason"), [("SECURE", "CTNODE", 3), ("NOBODY", "CTNODE", 3), ("ANY", "OTHER", 7)]
)
def test_who_is_turned_away_leaves_no_journal(node: Receiver, calling: str, called: str, reason: int) -> None:
    with RawPeer(node.port) as sender:
        sender.send(associate_rq(STANDARD, calling=calling, called=called))
        assert sender.read_pdu() == (ASSOCIATE_RJ, bytes([0, 1, 1, reason]))
    assert node.journals() == []


def test_an_association_leaves_one_row_that_tells_what_it_was_answered(node: Receiver) -> None:
    with RawPeer(node.port) as sender:
        sender.associate(PROPOSED, calling="SCANNER")
        for number in range(3):
            assert sender.store(uid(number), data_set(uid(number))).status == 0
        assert sender.store(uid(2), data_set(uid(2))).status == 0
        assert sender.store(uid(9), b"").status == 0xC000
        assert sender.store(uid(8), data_set(uid(7))).status == 0xA900
        sender.release()
    node.wait_ended(1)
    with Database(node.layout.database) as database:
        database.migrate()
        settler = Settler(Index(database, node.layout, lambda _association, _n: 10.0))
        while list(node.layout.incoming.iterdir()):
            settler.scan()
        (row,) = associations.listing(database, calling_ae="SCANNER", since=0.0, limit=10)
        assert associations.listing(database, calling_ae="OTHER", since=0.0, limit=10) == ()
        assert associations.listing(database, calling_ae=None, since=row["opened_at"] + 1.0, limit=10) == ()
        assert associations.show(database, row["association"]) == row
        assert (row["how"], row["peer"], row["instances"], row["duplicates"]) == ("released", "scanner", 3, 1)
        assert row["statuses"] == {"0000": 4, "A900": 1, "C000": 1}
        assert [(refusal["status"], refusal["sop_instance"]) for refusal in row["refusals"]] == [
            (0xC000, uid(9)), (0xA900, uid(8))
        ]  # fmt: skip
        assert "empty" in row["refusals"][0]["comment"]
        assert row["series"] == [{"study": uid(1), "series": uid(1, 1), "instances": 3}]
        # One row for the association and one for each decision, none for an instance.
        entries = timeline.read(database, 1)
        assert [entry.kind for entry in entries] == ["opened", "association"]


def test_a_flood_of_bad_instances_leaves_a_bounded_record(node: Receiver) -> None:
    with RawPeer(node.port) as sender:
        sender.associate(calling="ANY")
        for number in range(150):
            assert sender.store(uid(number), b"").status == 0xC000
        sender.release()
    records = [json.loads(line) for line in node.journals()[0].splitlines()]
    assert sum(record["what"] == "refused" for record in records) == 100
    assert records[-1]["statuses"] == {"C000": 150}
