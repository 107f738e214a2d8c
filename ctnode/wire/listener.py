"""The listening socket: bound here or handed over by the service manager."""

from __future__ import annotations

import errno
import socket
from typing import Any, Final

from ctnode.config import Config
from ctnode.ops.notify import adopt_socket
from ctnode.wire.peers import require_policy
from ctnode.words import ConfigError, Unavailable

BACKLOG: Final = 512


def open_listener(config: Config) -> socket.socket:
    """Return the non-blocking listening socket, allowed to be where it is.

    Raises
    ------
    ConfigError
        If others can reach it and the configuration does not say who may send.
    Unavailable
        If the address cannot be listened on.
    """
    listener = adopt_socket() or _bind(config.node.host, config.node.port)
    try:
        if listener.family not in (socket.AF_INET, socket.AF_INET6) or listener.type != socket.SOCK_STREAM:
            raise ConfigError("the socket that was handed over is no TCP socket", hint="see ListenStream= of the unit")
        require_policy(str(listener.getsockname()[0]), config)
    except ConfigError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


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


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _name, address = _resolve(host, port)
    listener = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise Unavailable(f"cannot listen on {host} port {port}: {error.strerror}", hint=_hint(error)) from None
    return listener


def _hint(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program holds the port; stop it, or set node.port (0 takes any free one)"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "ports under 1024 need the socket unit of systemd or CAP_NET_BIND_SERVICE"
    return "check node.host and node.port"
