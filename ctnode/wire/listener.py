"""The listening sockets: bound here or handed over by the service manager."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import Any, Final

from ctnode.config import Config
from ctnode.ops.notify import adopt_sockets
from ctnode.wire.peers import require_policy
from ctnode.words import ConfigError, Unavailable

BACKLOG: Final = 512
TLS_NAME: Final = "tls"


@dataclass(frozen=True, slots=True)
class Listener:
    """One listening socket."""

    socket: socket.socket
    is_tls: bool

    @property
    def address(self) -> str:
        """Return the address it is bound to."""
        return str(self.socket.getsockname()[0])

    @property
    def port(self) -> int:
        """Return the port it is bound to."""
        return int(self.socket.getsockname()[1])


def open_listeners(config: Config) -> tuple[Listener, ...]:
    """Return the listening sockets, allowed to be where they are: the plain one, and one with TLS if wanted.

    A socket of the service manager is one with TLS if its name says so (``FileDescriptorName=dicom-tls``).

    Raises
    ------
    ConfigError
        If others can reach one and the configuration does not say who may send.
    Unavailable
        If an address cannot be listened on.
    """
    listeners: list[Listener] = []
    try:
        for name, handed in adopt_sockets().items():
            listeners.append(Listener(handed, is_tls=TLS_NAME in name))
        kinds = {listener.is_tls for listener in listeners}
        if False not in kinds:
            listeners.append(Listener(_bind("node", config.node.host, config.node.port), is_tls=False))
        if config.tls.certificate and True not in kinds:
            host = config.tls.host or config.node.host
            listeners.append(Listener(_bind("tls", host, config.tls.port), is_tls=True))
        for listener in listeners:
            _check(listener, config)
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return tuple(listeners)


def _check(listener: Listener, config: Config) -> None:
    bound = listener.socket
    if bound.family not in (socket.AF_INET, socket.AF_INET6) or bound.type != socket.SOCK_STREAM:
        raise ConfigError("the socket that was handed over is no TCP socket", hint="see ListenStream= of the unit")
    if listener.is_tls and not config.tls.certificate:
        raise ConfigError("a socket for TLS was handed over, and there is no tls.certificate")
    require_policy(listener.address, config)
    bound.setblocking(False)


def listening_address(host: str) -> str:
    """Return the address that a socket bound to ``host`` has.

    Raises
    ------
    Unavailable
        If the name has no address.
    """
    return str(_resolve(host, 0)[4][0])


def _resolve(host: str, port: int) -> tuple[Any, ...]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise Unavailable(f"cannot listen on {host}: {error.strerror}", hint="check node.host") from None


def _bind(section: str, host: str, port: int) -> socket.socket:
    family, kind, protocol, _name, address = _resolve(host, port)
    listener = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise Unavailable(
            f"cannot listen on {host} port {port}: {error.strerror}", hint=_hint(error, section)
        ) from None
    return listener


def _hint(error: OSError, section: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"another program holds the port; stop it, or set {section}.port (0 takes any free one)"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "ports under 1024 need the socket unit of systemd or CAP_NET_BIND_SERVICE"
    return f"check {section}.host and {section}.port"
