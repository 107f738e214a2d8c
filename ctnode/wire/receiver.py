"""A receiver child: takes accepted connections from the acceptor and serves them until the acceptor says or ends.

Run as ``python -m ctnode.wire.receiver --control FD --parent PID``. The first message is the configuration.
"""

from __future__ import annotations

import argparse
import resource
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ctnode.archive.doorbell import Doorbell
from ctnode.archive.layout import Layout
from ctnode.archive.spool import Spool
from ctnode.archive.suspect import mark
from ctnode.ops import log
from ctnode.ops.role import Role, die_with_parent
from ctnode.wire import channel
from ctnode.wire.channel import Message
from ctnode.wire.children import Settings
from ctnode.wire.events import answer_report
from ctnode.wire.host import Ended, Host
from ctnode.wire.places import Slots
from ctnode.wire.shared import Shared
from ctnode.words import ExitCode

ROLE: Final = "receiver"
ORPHAN_DRAIN_S: Final = 2.0
_REPORT_S: Final = 1.0
_DRAIN_STEP_S: Final = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one receiver child."""
    parser = argparse.ArgumentParser(prog="ctnode.wire.receiver")
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    control = socket.socket(fileno=options.control)
    control.set_inheritable(False)
    allow_descriptors()
    first = channel.receive(control)
    if first is None or first.what != "config":
        return int(ExitCode.UNAVAILABLE)
    settings = Settings.read(first)
    config = settings.config
    log.configure(config.log, role=ROLE)
    layout = Layout(config.root, config.results)
    with Role(ROLE, layout.run, config.digest()) as role:
        shared = Shared(config, "", Spool(layout.incoming), Doorbell(layout.run), slots=Slots(layout.run))
        _take_settings(shared, settings)
        return _Receiver(role, control, shared, layout.run).run()


def allow_descriptors() -> None:
    """Raise the soft limit of open files to the hard one: an association holds five of them."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _take_settings(shared: Shared, settings: Settings) -> None:
    shared.apply(settings.config)
    shared.listening_address = settings.listening_address
    shared.tls_listening_address = settings.tls_listening_address
    shared.tls_context = settings.material.server_context() if settings.material is not None else None


class _Receiver:
    """The loop of the child: messages of the acceptor in, ended associations and counters out."""

    def __init__(self, role: Role, control: socket.socket, shared: Shared, run_directory: Path) -> None:
        self._role = role
        self._control = control
        self._shared = shared
        self._run_directory = run_directory
        self._host = Host(self._shared, on_ended=self._on_ended)
        shared.spool.on_suspect = self._on_suspect
        self._drain_s = shared.config.node.drain_s
        self._reported: dict[str, object] = {}

    def run(self) -> int:
        """Serve until told to drain, orphaned or signalled."""
        # Sending waits if the acceptor is slow; receiving never does, the role waits for what is ready.
        channel.send(self._control, "ready")
        self._role.ready()
        self._role.watch(self._control.fileno())
        while not self._role.stopping:
            for _descriptor in self._role.wait(_REPORT_S):
                self._take_message()
            self._report()
        self._drain()
        return int(ExitCode.OK)

    def _drain(self) -> None:
        """Let open associations finish, abort the rest; without an acceptor there is less time."""
        role = self._role
        role.draining()
        began_s = time.monotonic()
        while self._host.associations:
            for _descriptor in role.wait(_DRAIN_STEP_S):
                self._take_message()
            if time.monotonic() - began_s >= (ORPHAN_DRAIN_S if role.orphaned else self._drain_s):
                break
        self._host.abort_all()
        self._shared.knocks.tell(all_of_them=True)
        self._report()

    def _take_message(self) -> None:
        message = channel.receive(self._control)
        role = self._role
        if message is None:
            role.unwatch(self._control.fileno())
            role.stopping = role.orphaned = True
        elif message.what == "connection":
            self._serve(message)
        elif message.what == "config":
            settings = Settings.read(message)
            config = settings.config
            _take_settings(self._shared, settings)
            self._drain_s = config.node.drain_s
            role.config_digest = config.digest()
            log.configure(config.log, role=ROLE)
        elif message.what == "report":
            answer_report(message, self._host.associations)
        elif message.what == "storage":
            self._shared.storage_fault = str(message.fields["fault"])
            self._shared.spool.suspect = self._shared.spool.suspect or str(message.fields["suspect"])
        elif message.what == "company":
            self._shared.spool.hashing.is_alone = not message.fields["has_others"]
        elif message.what == "drain":
            self._drain_s = float(message.fields["seconds"])
            role.stopping = True
        else:
            message.close()

    def _serve(self, message: Message) -> None:
        for descriptor in message.descriptors:
            self._host.serve(
                socket.socket(fileno=descriptor),
                over_limit=bool(message.fields["over_limit"]),
                is_tls=bool(message.fields["is_tls"]),
                place=int(message.fields["place"]),
            )

    def _on_ended(self, ended: Ended) -> None:
        channel.send(
            self._control,
            "ended",
            place=ended.place,
            rejected=ended.rejected,
            has_asked=ended.has_asked,
            counters=self._shared.tally.as_json(),
        )

    def _on_suspect(self, reason: str) -> None:
        """Tell everybody, from the thread that met the failure: this process, the acceptor, and who looks into run/."""
        self._shared.storage_fault = reason
        log.get().error("storage is suspect", error=reason)
        mark(self._run_directory, reason)
        channel.send(self._control, "suspect", reason=reason)

    def _report(self) -> None:
        self._shared.knocks.tell()
        counters = self._shared.tally.as_json()
        self._role.report(open=len(self._host.associations), **counters)
        if counters != self._reported:
            self._reported = counters
            channel.send(self._control, "counters", counters=counters)


if __name__ == "__main__":
    sys.exit(main())
