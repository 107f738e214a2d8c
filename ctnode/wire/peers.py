"""Who may open an association, and what it may do: a pure decision about titles, addresses and certificates.

An AE title is a name, not a proof. So a node that others can reach asks for title and address together, and for the
certificate where one is named (PS3.8 9.3.4, Table 9-21).
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Final

from ctnode.config import Config, Peer
from ctnode.wire.service_classes import SERVICES
from ctnode.words import ConfigError

PERMANENT: Final = 1
TRANSIENT: Final = 2
BY_USER: Final = 1
BY_PRESENTATION: Final = 3
CALLING_UNKNOWN: Final = 3
CALLED_UNKNOWN: Final = 7
CONGESTION: Final = 1
LOCAL_LIMIT: Final = 2

_RESOLVED_FOR_S: Final = 60.0
_MEGABYTE: Final = 1 << 20

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str], frozenset[Address]]


@dataclass(frozen=True, slots=True)
class Admit:
    """The association is welcome; ``peer`` is the name in ``[[peers]]``, if one matches."""

    peer: str | None


@dataclass(frozen=True, slots=True)
class Reject:
    """The association is not: the three numbers of an A-ASSOCIATE-RJ, and why in words for the log."""

    result: int
    source: int
    reason: int
    why: str


@dataclass(frozen=True, slots=True)
class Terms:
    """What an association may do: the limits of its peer, else those of ``[receiver]``."""

    services: tuple[str, ...]
    sop_classes: tuple[str, ...]
    max_associations: int | None
    max_pdu_bytes: int
    max_object_bytes: int
    idle_timeout_s: float
    pdu_timeout_s: float

    def allow(self, abstract_syntax: str) -> bool:
        """Return whether a presentation context may be accepted."""
        service = SERVICES.get(abstract_syntax)
        if service is not None:
            return service in self.services
        return "store" in self.services and (not self.sop_classes or abstract_syntax in self.sop_classes)


CONGESTED: Final = Reject(TRANSIENT, BY_PRESENTATION, CONGESTION, "storage takes nothing")
TOO_MANY: Final = Reject(TRANSIENT, BY_PRESENTATION, LOCAL_LIMIT, "too many associations")
TOO_MANY_OF_PEER: Final = Reject(TRANSIENT, BY_PRESENTATION, LOCAL_LIMIT, "too many associations of this peer")


def parse_address(text: str) -> Address:
    """Return an address without its zone, and an IPv4 address where IPv6 only wraps one (RFC 4291 2.5.5.2).

    Raises
    ------
    ValueError
        If ``text`` is no address.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_loopback(listening_address: str) -> bool:
    """Return whether only this host can reach a socket that is bound to ``listening_address``."""
    try:
        return parse_address(listening_address).is_loopback
    except ValueError:
        # No internet address: better to ask for peers than to trust.
        return False


def require_policy(listening_address: str, config: Config) -> None:
    """Check that a node that others can reach says who may send.

    Parameters
    ----------
    listening_address
        From ``getsockname()`` of the socket in use, so that a socket handed over cannot bypass the rule.

    Raises
    ------
    ConfigError
        If the address is not loopback and there is neither a peer nor ``node.accept_unknown``.
    """
    if is_loopback(listening_address) or config.peers or config.node.accept_unknown:
        return
    raise ConfigError(
        f"listening on {listening_address} needs to know who may send",
        hint="list the senders in [[peers]], or write node.accept_unknown = true",
    )


class CachedResolver:
    """Looks host names up and remembers the answer for a minute; a name without an answer matches nobody."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, frozenset[Address]]] = {}

    def __call__(self, host: str) -> frozenset[Address]:
        """Return the addresses of ``host``."""
        until, found = self._known.get(host, (0.0, frozenset[Address]()))
        if time.monotonic() < until:
            return found
        try:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            found = frozenset(parse_address(str(answer[4][0])) for answer in answers)
        except (OSError, UnicodeError, ValueError):
            found = frozenset()
        self._known[host] = (time.monotonic() + _RESOLVED_FOR_S, found)
        return found


def decide(
    *,
    calling_ae: str,
    called_ae: str,
    peer_address: str,
    listening_address: str,
    config: Config,
    resolve: Resolver,
    certificate: Set[str] = frozenset(),
) -> Admit | Reject:
    """Decide whether an association is admitted.

    Titles are compared without their padding and with their case (PS3.5 6.2). ``certificate`` holds the names in the
    certificate that the peer proved to have.
    """
    peer = find_peer(calling_ae.strip(), peer_address, config.peers, resolve, certificate)
    if peer is None and find_peer(calling_ae.strip(), peer_address, config.peers, resolve) is not None:
        # Also where strangers are welcome: who calls by this name has to prove it.
        return Reject(PERMANENT, BY_USER, CALLING_UNKNOWN, "the certificate is not that of the peer")
    if peer is None and not config.node.accept_unknown and not is_loopback(listening_address):
        return Reject(PERMANENT, BY_USER, CALLING_UNKNOWN, "calling AE title and address are in no peer")
    if config.node.called_ae_titles and called_ae.strip() not in config.node.called_ae_titles:
        return Reject(PERMANENT, BY_USER, CALLED_UNKNOWN, "called AE title is not served")
    return Admit(peer.name if peer else None)


def find_peer(
    calling_ae: str,
    peer_address: str,
    peers: tuple[Peer, ...],
    resolve: Resolver,
    certificate: Set[str] | None = None,
) -> Peer | None:
    """Return the peer of this AE title at this address; titles alone prove nothing.

    Parameters
    ----------
    certificate
        The names in the caller's certificate; None asks without regard to certificates.

    Raises
    ------
    ValueError
        If ``peer_address`` is no address.
    """
    address = parse_address(peer_address)
    return next(
        (
            peer
            for peer in peers
            if peer.ae_title == calling_ae
            and (certificate is None or not peer.certificate or peer.certificate in certificate)
            and _is_at(address, peer.host, resolve)
        ),
        None,
    )


def terms_of(peer_name: str | None, config: Config) -> Terms:
    """Return what an association of this peer may do; one of a stranger has the limits of ``[receiver]``."""
    receiver = config.receiver
    peer = next((peer for peer in config.peers if peer.name == peer_name), None)
    if peer is None:
        peer = Peer(name="unknown", ae_title="UNKNOWN", host="")
    return Terms(
        services=peer.services,
        sop_classes=peer.sop_classes,
        max_associations=peer.max_associations,
        max_pdu_bytes=peer.max_pdu or receiver.max_pdu,
        max_object_bytes=(peer.max_object_mb or receiver.max_object_mb) * _MEGABYTE,
        idle_timeout_s=peer.idle_timeout_s or receiver.idle_timeout_s,
        pdu_timeout_s=peer.pdu_timeout_s or receiver.pdu_timeout_s,
    )


def _is_at(address: Address, host: str, resolve: Resolver) -> bool:
    try:
        return address == parse_address(host)
    except ValueError:
        # Not one address: a network or a name.
        pass
    try:
        return address in ipaddress.ip_network(host, strict=False)
    except ValueError:
        return address in resolve(host)
