"""Where the page may be served, and under which names: loopback for everybody here, elsewhere only with a lock."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from pathlib import Path
from typing import Final

from ctnode.config import Config
from ctnode.web.users import read_users
from ctnode.wire.listener import listening_address
from ctnode.wire.peers import is_loopback
from ctnode.words import ConfigError, Unavailable

_LOCAL_NAMES: Final = frozenset({"localhost"})


def require_access(config: Config, address: str | None = None) -> None:
    """Check that a page that others can reach asks who they are, and that nobody can listen.

    Parameters
    ----------
    config
        The configuration; nothing is asked of a page that is not enabled.
    address
        What the socket is bound to; without it, what ``web.host`` stands for.

    Raises
    ------
    ConfigError
        If others can reach it without users, or without TLS and without a proxy that speaks it; if a file is not right.
    """
    web = config.web
    if not web.enabled:
        return
    users = read_users(Path(web.users)) if web.users else {}
    if web.users and not users:
        raise ConfigError(f"web.users: {web.users} names nobody", hint="`ctnode user NAME`")
    if address is None:
        try:
            address = listening_address(web.host)
        except Unavailable:
            # A name that has no address now keeps the page down and not the node.
            address = web.host
    is_local = is_loopback(address)
    if (not is_local or web.behind_proxy) and not users:
        raise ConfigError(
            f"web.users: a page at {web.host}{' behind a proxy' if is_local else ''} needs users",
            hint="make a file with `ctnode user NAME`, or serve it at 127.0.0.1",
        )
    if not is_local and not web.certificate and not web.behind_proxy:
        raise ConfigError(
            f"web.certificate: a page at {web.host} needs TLS, else passwords and images can be read on the way",
            hint="set web.certificate, or web.behind_proxy = true where a proxy speaks TLS",
        )
    for key, file in (("certificate", web.certificate), ("key", web.key)):
        if file and not Path(file).is_file():
            raise ConfigError(f"web.{key}: no file at {file}")


def is_our_name(host: str, names: Collection[str]) -> bool:
    """Return whether a Host header names this page.

    Against DNS rebinding: an address cannot be rebound to another, a foreign name can.

    Parameters
    ----------
    host
        The header, with or without a port.
    names
        ``web.host`` and ``web.names``.
    """
    name = _without_port(host.strip().lower())
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.rstrip(".") in _LOCAL_NAMES | {known.lower() for known in names}
    return True


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
