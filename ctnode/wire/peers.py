"""Who may open an association: a pure decision about titles and addresses (PS3.8 9.3.4, Table 9-21).

An AE title is a name, not a proof. So a node that others can reach asks for title and address together.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ctnode.config import Config, Peer
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


CONGESTED: Final = Reject(TRANSIENT, BY_PRESENTATION, CONGESTION, "storage takes nothing")
TOO_MANY: Final = Reject(TRANSIENT, BY_PRESENTATION, LOCAL_LIMIT, "too many associations")


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
) -> Admit | Reject:
    """Decide whether an association is admitted.

    Titles are compared without their padding and with their case (PS3.5 6.2).
    """
    peer = find_peer(calling_ae.strip(), peer_address, config.peers, resolve)
    if peer is None and not config.node.accept_unknown and not is_loopback(listening_address):
        return Reject(PERMANENT, BY_USER, CALLING_UNKNOWN, "calling AE title and address are in no peer")
    if config.node.called_ae_titles and called_ae.strip() not in config.node.called_ae_titles:
        return Reject(PERMANENT, BY_USER, CALLED_UNKNOWN, "called AE title is not served")
    return Admit(peer.name if peer else None)


def find_peer(calling_ae: str, peer_address: str, peers: tuple[Peer, ...], resolve: Resolver) -> Peer | None:
    """Return the peer of this AE title at this address; titles alone prove nothing.

    Raises
    ------
    ValueError
        If ``peer_address`` is no address.
    """
    address = parse_address(peer_address)
    candidates = (peer for peer in peers if peer.ae_title == calling_ae)
    return next((peer for peer in candidates if _is_at(address, peer.host, resolve)), None)


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
