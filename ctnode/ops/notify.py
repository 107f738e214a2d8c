"""The service manager's datagrams (sd_notify(3)) without a library."""

from __future__ import annotations

import os
import socket
import time
from typing import Final

PATIENCE_S: Final = 1.0
# sd_listen_fds(3): SD_LISTEN_FDS_START.
FIRST_HANDED: Final = 3


def notify(*lines: str, patience_s: float = PATIENCE_S) -> None:
    """Send state lines such as ``READY=1`` to the service manager, if there is one.

    One that reads nothing for longer than ``patience_s`` does not hold us up: its queue takes some datagrams only.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(patience_s)
        try:
            channel.sendto("\n".join(lines).encode(), address)
        except OSError:
            # A service manager that went away or sleeps must not take the node with it.
            return


def notify_reloading() -> None:
    """Announce a reload; the time stamp is what ``Type=notify-reload`` waits for."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def adopt_sockets() -> dict[str, socket.socket]:
    """Return the listening sockets that the service manager handed over (sd_listen_fds(3)), by their names.

    They were handed to this process or to the supervisor that started it. Of several with one name the first is taken.
    """
    owners = {str(os.getpid()), str(os.getppid())}
    if os.environ.get("LISTEN_PID") not in owners:
        return {}
    handed = range(FIRST_HANDED, FIRST_HANDED + int(os.environ.get("LISTEN_FDS", "0")))
    names = [name for name in os.environ.get("LISTEN_FDNAMES", "").split(":") if name]
    adopted: dict[str, socket.socket] = {}
    for number, descriptor in enumerate(handed):
        name = names[number] if number < len(names) else "unknown"
        if name not in adopted:
            adopted[name] = socket.socket(fileno=descriptor)
            adopted[name].set_inheritable(False)
    return adopted
