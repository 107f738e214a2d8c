"""Who may open an association."""

from __future__ import annotations

import ipaddress

import pytest

from ctnode.config import Config, Node, Peer
from ctnode.wire.peers import Address, Admit, CachedResolver, Reject, decide, is_loopback, require_policy, terms_of
from ctnode.words import ConfigError

pytestmark = pytest.mark.unit

NAMES = {
    "ct.example": frozenset({ipaddress.ip_address("10.1.2.3"), ipaddress.ip_address("2001:db8::7")}),
    "nowhere.example": frozenset[Address](),
}
CONFIG = Config(
    peers=(
        Peer(name="one", ae_title="CT1", host="10.0.0.5"),
        Peer(name="net", ae_title="CT1", host="192.168.4.0/22"),
        Peer(name="named", ae_title="CT2", host="ct.example"),
        Peer(name="lost", ae_title="CT3", host="nowhere.example"),
        Peer(name="six", ae_title="CT6", host="2001:db8:1::/48"),
    )
)


def asked(
    calling: str,
    address: str,
    *,
    called: str = "CTNODE",
    listening: str = "0.0.0.0",
    config: Config = CONFIG,
) -> Admit | Reject:
    return decide(
        calling_ae=calling,
        called_ae=called,
        peer_address=address,
        listening_address=listening,
        config=config,
        resolve=lambda host: NAMES[host],
    )


@pytest.mark.parametrize(
    ("calling", "address", "peer"),
    [
        ("CT1", "10.0.0.5", "one"),
        (" CT1 ", "10.0.0.5", "one"),
        ("CT1", "::ffff:10.0.0.5", "one"),
        ("CT1", "192.168.7.255", "net"),
        ("CT2", "10.1.2.3", "named"),
        ("CT2", "2001:db8::7", "named"),
        ("CT6", "2001:db8:1:2::9", "six"),
    ],
)
def test_title_and_address_together_are_known(calling: str, address: str, peer: str) -> None:
    assert asked(calling, address) == Admit(peer)


@pytest.mark.parametrize(
    ("calling", "address"),
    [
        ("CT1", "10.0.0.6"),
        ("CT1", "192.168.8.0"),
        ("ct1", "10.0.0.5"),
        ("OTHER", "10.0.0.5"),
        ("", "10.0.0.5"),
        ("CT2", "10.0.0.5"),
        ("CT3", "10.0.0.5"),
        ("CT6", "::ffff:10.0.0.5"),
        ("CT1", "127.0.0.1"),
    ],
)
def test_anything_else_is_not_recognised(calling: str, address: str) -> None:
    decision = asked(calling, address)
    assert isinstance(decision, Reject)
    assert (decision.result, decision.source, decision.reason) == (1, 1, 3)


@pytest.mark.parametrize("listening", ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1"])
def test_on_loopback_anybody_may_send_and_is_still_named(listening: str) -> None:
    assert asked("ANY", "127.0.0.1", listening=listening) == Admit(None)
    assert asked("CT1", "10.0.0.5", listening=listening) == Admit("one")


def test_unknown_senders_where_they_are_accepted() -> None:
    config = CONFIG.model_copy(update={"node": Node(accept_unknown=True)})
    assert asked("ANY", "203.0.113.9", config=config) == Admit(None)
    assert asked("CT1", "10.0.0.5", config=config) == Admit("one")


def test_called_titles() -> None:
    config = CONFIG.model_copy(update={"node": Node(called_ae_titles=("CTNODE", "FAST"))})
    assert asked("CT1", "10.0.0.5", called=" FAST ", config=config) == Admit("one")
    for listening in ("0.0.0.0", "127.0.0.1"):
        decision = asked("CT1", "10.0.0.5", called="OTHER", listening=listening, config=config)
        assert isinstance(decision, Reject)
        assert (decision.result, decision.source, decision.reason) == (1, 1, 7)


@pytest.mark.parametrize("listening", ["0.0.0.0", "::", "10.0.0.1", "fe80::1%eth0", "", "/run/socket"])
def test_who_is_reachable_must_say_who_may_send(listening: str) -> None:
    assert not is_loopback(listening)
    with pytest.raises(ConfigError) as caught:
        require_policy(listening, Config())
    assert caught.value.exit_code == 78
    require_policy(listening, CONFIG)
    require_policy(listening, Config(node=Node(accept_unknown=True)))


@pytest.mark.parametrize("listening", ["127.0.0.1", "::1"])
def test_loopback_needs_no_peers(listening: str) -> None:
    require_policy(listening, Config())


def test_names_are_looked_up_once_a_minute_and_a_failure_matches_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[str] = []

    def look_up(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked_for.append(host)
        if host == "ct.example":
            return [(2, 1, 6, "", ("::ffff:10.1.2.3", 0, 0, 0))]
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    resolver = CachedResolver()
    for _ in range(3):
        assert resolver("ct.example") == {ipaddress.ip_address("10.1.2.3")}
        assert resolver("nowhere.example") == frozenset()
    assert asked_for == ["ct.example", "nowhere.example"]


CERTIFIED = Config(
    peers=(
        Peer(name="strict", ae_title="CT1", host="10.0.0.5", certificate="ct1.example"),
        Peer(name="finger", ae_title="CT1", host="10.0.0.0/24", certificate="sha256:" + "ab" * 32),
        Peer(name="open", ae_title="CT2", host="10.0.0.5"),
        Peer(name="other", ae_title="CT3", host="192.0.2.0/25", certificate="CN=ct3,O=Hospital"),
    )
)
TITLES = ("CT1", "CT2", "CT3", "ct1", "CT", "CT11", "NODE", "")
ADDRESSES = ("10.0.0.5", "10.0.0.6", "10.0.1.5", "192.0.2.127", "192.0.2.128", "::ffff:10.0.0.5", "2001:db8::5")
PROOFS: tuple[frozenset[str], ...] = (
    frozenset(),
    frozenset({"ct1.example", "CN=ct1"}),
    frozenset({"ct1.example.evil"}),
    frozenset({"sha256:" + "ab" * 32}),
    frozenset({"sha256:" + "ac" * 32}),
    frozenset({"CN=ct3,O=Hospital", "ct3"}),
    frozenset({"CN=ct3,O=Other"}),
    frozenset({""}),
)
ADDRESS_AND_WRAPPED = ("10.0.0.5", "::ffff:10.0.0.5")
WELCOME = {
    ("CT1", "10.0.0.6", 3): "finger",
    ("CT3", "192.0.2.127", 5): "other",
    **{("CT1", address, 1): "strict" for address in ADDRESS_AND_WRAPPED},
    **{("CT1", address, 3): "finger" for address in ADDRESS_AND_WRAPPED},
    **{("CT2", address, proof): "open" for address in ADDRESS_AND_WRAPPED for proof in range(len(PROOFS))},
}


def certified(title: str, address: str, proof: int, *, accept_unknown: bool = False) -> Admit | Reject:
    return decide(
        calling_ae=title,
        called_ae="CTNODE",
        peer_address=address,
        listening_address="0.0.0.0",
        config=CERTIFIED.model_copy(update={"node": Node(accept_unknown=accept_unknown)}),
        resolve=lambda host: NAMES[host],
        certificate=PROOFS[proof],
    )


def test_title_address_and_certificate_together_in_every_combination() -> None:
    admitted = {
        (title, address, proof): decision.peer
        for title in TITLES
        for address in ADDRESSES
        for proof in range(len(PROOFS))
        if isinstance(decision := certified(title, address, proof), Admit)
    }
    assert admitted == WELCOME


def test_where_strangers_are_welcome_nobody_takes_the_name_of_a_peer_without_its_certificate() -> None:
    assert certified("STRANGER", "203.0.113.9", 0, accept_unknown=True) == Admit(None)
    decision = certified("CT1", "10.0.0.5", 2, accept_unknown=True)
    assert isinstance(decision, Reject)
    assert decision.why == "the certificate is not that of the peer"
    assert certified("CT1", "10.0.0.5", 1, accept_unknown=True) == Admit("strict")


def test_terms_are_those_of_the_peer_and_else_those_of_the_receiver() -> None:
    own = Peer(
        name="own",
        ae_title="A",
        host="10.0.0.1",
        max_pdu=8192,
        max_object_mb=2,
        idle_timeout_s=5,
        pdu_timeout_s=7,
        services=["echo"],
    )
    config = Config(peers=(own,))
    terms, general = terms_of("own", config), terms_of(None, config)
    assert (terms.max_pdu_bytes, terms.max_object_bytes) == (8192, 2 << 20)
    assert (terms.idle_timeout_s, terms.pdu_timeout_s) == (5.0, 7.0)
    assert (general.idle_timeout_s, general.pdu_timeout_s) == (60.0, 60.0)
    assert not terms.allow("1.2.840.10008.5.1.4.1.1.2")
    assert (general.max_pdu_bytes, general.max_object_bytes) == (131072, 8192 << 20)
    assert general.allow("1.2.840.10008.5.1.4.1.1.2")
    assert terms_of("forgotten by a reload", config) == general
