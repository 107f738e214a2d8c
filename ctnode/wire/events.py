"""How another role reaches an association that is open in some receiver: through the acceptor, answered directly.

The asker sends a datagram with a memory file and one end of a socket pair. The acceptor hands both to every receiver;
the one that has the association answers through the socket, the others close it. So the end of the file means that
nobody has it.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final, cast

from ctnode.archive.doorbell import bind_datagrams
from ctnode.ops import log
from ctnode.wire import channel
from ctnode.wire.channel import Message
from ctnode.wire.reactor import SyncAssociation
from ctnode.wire.reporting import Answer, Report, report_here
from ctnode.wire.services import NodeSession

SOCKET_NAME: Final = "receive.sock"
# What the way there and back may take beside the peer's own time.
_MARGIN_S: Final = 5.0


def open_events(run_directory: Path) -> socket.socket:
    """Bind the acceptor's end and return it, non-blocking; the caller holds the receiver's lock."""
    return bind_datagrams(run_directory, SOCKET_NAME)


def pass_on(end: socket.socket, children: Iterable[socket.socket]) -> None:
    """Hand everything that waits to the receivers."""
    while True:
        try:
            message = channel.receive(end)
        except BlockingIOError:
            return
        if message is None:
            continue
        for child in children:
            channel.send(child, "report", descriptors=message.descriptors, **message.fields)
        message.close()


def report_where_it_is_open(run_directory: Path, association: str, report: Report, timeout_s: float) -> Answer | None:
    """Report on an association of the receivers; None if it is open in none of them."""
    directory = os.open(run_directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memory = channel.as_memory_file(report.as_text())
    try:
        with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asker:
            try:
                # sun_path is short, a root may lie deep: the name goes through the open directory.
                asker.connect(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
            except OSError:
                return None
            descriptors = (memory, theirs.fileno())
            if not channel.send(asker, "report", descriptors=descriptors, association=association, timeout_s=timeout_s):
                return None
        ours.settimeout(timeout_s + _MARGIN_S)
        try:
            answer = channel.receive(ours)
        except TimeoutError:
            return None
        return Answer(answer.fields["status"], str(answer.fields["why"])) if answer is not None else None
    finally:
        ours.close()
        os.close(memory)
        os.close(directory)


def answer_report(message: Message, associations: Iterable[SyncAssociation]) -> None:
    """Report in a thread of its own if the association is one of these; else let go of the message."""
    wanted = str(message.fields["association"])
    found = next((one for one in associations if cast(NodeSession, one.session).journal_name == wanted), None)
    if found is None or len(message.descriptors) != 2:
        message.close()
        return
    threading.Thread(target=_report, args=(message, found), name="report", daemon=True).start()


def _report(message: Message, association: SyncAssociation) -> None:
    memory, reply = message.descriptors
    with socket.socket(fileno=reply) as end:
        try:
            report = Report.from_text(channel.read_memory_file(memory))
            answer = report_here(association, report, float(message.fields["timeout_s"]))
        except Exception as error:  # noqa: BLE001 - nobody is above this frame: the asker is told, and goes another way
            name = cast(NodeSession, association.session).journal_name
            log.get().error("report failed", exception=type(error).__name__, association=name)
            answer = Answer(None, "the node failed on this association")
        channel.send(end, "reported", status=answer.status, why=answer.why)
