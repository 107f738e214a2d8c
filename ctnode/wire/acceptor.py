"""The ``receive`` role: owns the listening sockets and passes accepted connections to receiver children.

One process accepts, so that the limit counts over all of them, and so that a child that dies takes neither the port nor
the connections of the others with it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Final

from ctnode.archive.layout import Layout
from ctnode.archive.rejections import Rejections
from ctnode.archive.spool import Spool
from ctnode.archive.suspect import clear_by_probe, marked
from ctnode.config import Config
from ctnode.ops import durable, log
from ctnode.ops.role import Role
from ctnode.wire import channel
from ctnode.wire.certificates import Material, read_material
from ctnode.wire.children import RESTART_WAIT_S, Child, Settings, Totals
from ctnode.wire.events import open_events, pass_on
from ctnode.wire.listener import Listener, open_listeners
from ctnode.wire.pacing import Pacing
from ctnode.wire.peers import parse_address
from ctnode.wire.places import Place, Places
from ctnode.wire.receiver import ORPHAN_DRAIN_S, allow_descriptors
from ctnode.words import ConfigError, CtnodeError, ExitCode, StorageError

LOCK_NAME: Final = "receive.lock"
_ACCEPTED_AT_ONCE: Final = 64
_TICK_S: Final = 1.0
# What a child needs after its drain: to abort what is left, write it down, and end.
_CHILD_END_S: Final = 12.0


def receive(config: Config, role: Role, reload: Callable[[], Config] | None = None) -> int:
    """Run the ``receive`` role until it is told to stop.

    Parameters
    ----------
    config
        The configuration; the folders of its root exist.
    role
        The entered role of this process.
    reload
        Returns the configuration anew on SIGHUP (default: SIGHUP changes nothing).

    Returns
    -------
    int
        The exit code: 0.

    Raises
    ------
    ConfigError
        If the node may be reached by others and nothing says who may send, or the files of ``[tls]`` cannot be used.
    Unavailable
        If another process receives for this root, or the port is taken.
    """
    layout = Layout(config.root, config.results)
    held = durable.lock(layout.run / LOCK_NAME, owner="receiver")
    try:
        material = read_material(config.tls) if config.tls.certificate else None
        listeners = open_listeners(config)
        try:
            return _Acceptor(config, role, layout, listeners, material, reload).run()
        finally:
            for listener in listeners:
                listener.socket.close()
    finally:
        os.close(held)


class _Acceptor:
    """The loop of the role."""

    def __init__(
        self,
        config: Config,
        role: Role,
        layout: Layout,
        listeners: tuple[Listener, ...],
        material: Material | None,
        reload: Callable[[], Config] | None,
    ) -> None:
        self._config = config
        self._role = role
        self._listeners = {listener.socket.fileno(): listener for listener in listeners}
        self._reload = reload
        self._material = material
        self._plain = next(listener for listener in listeners if not listener.is_tls)
        self._secured = next((listener for listener in listeners if listener.is_tls), None)
        self._places = Places()
        self._pacing = Pacing()
        self._rejections = Rejections(layout.rejections)
        self._spool = Spool(layout.incoming)
        self._children: list[Child] = []
        self._has_company = False
        self._totals = Totals()
        self._refused = 0
        self._total = 0
        self._accepting = False
        self._next_tick_s = 0.0
        self._paused_until_s = 0.0
        self._storage_fault = ""
        self._run_directory = layout.run
        self._events = open_events(layout.run)
        # Once set it stays until this process ends: nobody knows what a disk holds whose sync failed.
        self._suspect = clear_by_probe(layout)

    def run(self) -> int:
        """Accept until stopped, then drain."""
        allow_descriptors()
        self._take_config()
        self._check_storage()
        role = self._role
        role.watch(self._events.fileno())
        role.report(port=self._plain.port, address=self._plain.address)
        if self._secured is not None:
            role.report(tls_port=self._secured.port, tls_address=self._secured.address)
        for _ in range(self._config.receiver.processes):
            self._start_child()
        self._report()
        while not role.stopping:
            self._loop_once()
        self._drain()
        return int(ExitCode.OK)

    def _loop_once(self) -> None:
        role = self._role
        ready = role.wait(self._pacing.until_due_s(_TICK_S))
        for child in [child for child in self._children if child.end.fileno() in ready]:
            self._hear(child)
        if self._events.fileno() in ready:
            pass_on(self._events, [child.end for child in self._children])
        if role.reload_wanted:
            role.reload_wanted = False
            self._do_reload()
        if time.monotonic() >= self._next_tick_s:
            self._next_tick_s = time.monotonic() + _TICK_S
            self._check_storage()
            self._restore_children()
            self._rejections.flush()
        # Judged anew before anybody is let in: the child that would serve may just have died.
        self._watch_listeners()
        for descriptor in self._listeners.keys() & ready if self._accepting else ():
            self._accept(self._listeners[descriptor])
        # Those that are due wait on while nobody serves, as the others do in the backlog.
        for held in self._pacing.due() if self._accepting else ():
            self._pass_on(held.connection, held.place, is_tls=held.is_tls)
        self._tell_of_company()
        self._report()

    # ------------------------------------------------------------------------------------------- connections

    def _watch_listeners(self) -> None:
        """Accept only while somebody serves; until then connections wait in the backlog."""
        wanted = any(child.is_ready for child in self._children) and time.monotonic() >= self._paused_until_s
        if wanted and not self._accepting:
            for descriptor in self._listeners:
                self._role.watch(descriptor)
            if self._role.state == "starting":
                self._role.ready()
        elif self._accepting and not wanted:
            self._unwatch_listeners()
        self._accepting = wanted

    def _unwatch_listeners(self) -> None:
        for descriptor in self._listeners:
            self._role.unwatch(descriptor)

    def _accept(self, listener: Listener) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                connection, address = listener.socket.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                # The peer went away between knocking and being let in.
                continue
            except OSError as error:
                # Out of descriptors or memory: the backlog holds the others meanwhile.
                log.get().warning("cannot accept", error=error.strerror)
                self._paused_until_s = time.monotonic() + _TICK_S
                return
            self._take_in(connection, str(parse_address(address[0])), is_tls=listener.is_tls)

    def _take_in(self, connection: socket.socket, address: str, *, is_tls: bool) -> None:
        """Give a connection its place, and pass it on now or a little later."""
        limits = self._config.receiver
        self._total += 1
        place = self._places.take(address, limit=limits.max_associations, per_address=limits.max_per_address)
        if place is None or place.over_limit:
            self._refused += 1
        if place is None:
            connection.close()
        elif self._pacing.is_knocking(address):
            self._pacing.hold(connection, place, is_tls=is_tls)
        else:
            self._pass_on(connection, place, is_tls=is_tls)

    def _pass_on(self, connection: socket.socket, place: Place, *, is_tls: bool) -> None:
        ready = sorted((child for child in self._children if child.is_ready), key=lambda child: len(child.places))
        with connection:
            is_taken = any(child.give(connection, place, is_tls=is_tls) for child in ready)
        if not is_taken:
            self._places.give_back(place.number)
            self._refused += 1
            log.get().warning("no receiver takes connections", count=len(self._children))

    def _tell_of_company(self) -> None:
        """Tell the receivers whether an association has the processors to itself."""
        if self._has_company != (len(self._places) > 1):
            self._has_company = not self._has_company
            for child in self._children:
                channel.send(child.end, "company", has_others=self._has_company)

    # ---------------------------------------------------------------------------------------------- children

    def _start_child(self) -> None:
        child = Child(self._settings())
        if self._storage_fault:
            channel.send(child.end, "storage", fault=self._storage_fault, suspect=self._suspect)
        channel.send(child.end, "company", has_others=self._has_company)
        self._children.append(child)
        self._role.watch(child.end.fileno())

    def _hear(self, child: Child) -> None:
        if self._take_messages(child):
            return
        self._bury(child)
        log.get().error("receiver died", exit_code=child.process.returncode)

    def _take_messages(self, child: Child) -> bool:
        is_there = child.take_messages()
        for end in child.ended:
            place = self._places.give_back(end.place)
            if end.rejected:
                self._rejections.add(end.rejected)
            if place is not None and not end.has_asked:
                self._pacing.count(place.address)
        child.ended.clear()
        if child.suspect and not self._suspect:
            self._suspect = child.suspect
            self._check_storage()
        return is_there

    def _bury(self, child: Child) -> None:
        for number in child.places:
            self._places.give_back(number)
        self._role.unwatch(child.end.fileno())
        child.end.close()
        child.end_process()
        self._totals.bury(child)
        self._children.remove(child)
        if time.monotonic() - child.started_s < RESTART_WAIT_S:
            # It cannot even start: not at once again.
            self._next_tick_s = time.monotonic() + RESTART_WAIT_S
        else:
            self._next_tick_s = 0.0

    def _restore_children(self) -> None:
        while len(self._children) < self._config.receiver.processes:
            self._start_child()

    # --------------------------------------------------------------------------------------------- condition

    def _check_storage(self) -> None:
        # The mark may be another role's, which keeps what comes by other doors.
        self._suspect = self._suspect or marked(self._run_directory)
        try:
            if not (fault := self._suspect):
                self._spool.check_room()
        except StorageError as error:
            fault = error.message
        if fault == self._storage_fault:
            return
        self._storage_fault = fault
        if fault:
            log.get().error("storage takes nothing", error=fault)
        else:
            log.get().info("storage takes instances again")
        for child in self._children:
            channel.send(child.end, "storage", fault=fault, suspect=self._suspect)

    def _do_reload(self) -> None:
        if self._reload is None:
            return
        try:
            self._config = self._reload()
        except CtnodeError as error:
            log.get().error("configuration not reloaded", error=error.message, hint=error.hint)
            return
        self._take_config()
        self._renew_certificate()
        for child in self._children:
            child.configure(self._settings())

    def _renew_certificate(self) -> None:
        """Read the files of ``[tls]`` anew; what cannot be used changes nothing."""
        if self._material is None:
            return
        try:
            self._material = read_material(self._config.tls)
        except ConfigError as error:
            log.get().error("certificate not reloaded", error=error.message, hint=error.hint)
            return
        log.get().info("certificate reloaded", count=round(self._material.days_left()))

    def _settings(self) -> Settings:
        secured = self._secured.address if self._secured is not None else ""
        return Settings(self._config, self._plain.address, secured, self._material)

    def _take_config(self) -> None:
        self._role.config_digest = self._config.digest()
        self._spool.reserve_bytes = self._config.storage.reserve_mb << 20
        self._spool.reserve_inodes = self._config.storage.reserve_inodes

    def _report(self) -> None:
        self._role.report(
            associations={
                "open": len(self._places),
                "total": self._total,
                "refused": self._refused,
            },
            storage=self._storage_fault or "ok",
            certificate_days=round(self._material.days_left(), 1) if self._material is not None else None,
            receivers=[child.pid for child in self._children],
            **self._totals.over(self._children),
        )

    # ------------------------------------------------------------------------------------------------- drain

    def _drain(self) -> None:
        """Stop accepting, let open associations finish, see every child end."""
        role = self._role
        if self._accepting:
            self._unwatch_listeners()
            self._accepting = False
        for listener in self._listeners.values():
            listener.socket.close()
        for held in self._pacing.due(all_of_them=True):
            held.connection.close()
            self._places.give_back(held.place.number)
        role.unwatch(self._events.fileno())
        self._events.close()
        role.draining()
        seconds = ORPHAN_DRAIN_S if role.orphaned else self._config.node.drain_s
        for child in self._children:
            channel.send(child.end, "drain", seconds=seconds)
        deadline_s = time.monotonic() + seconds + _CHILD_END_S
        while self._children and time.monotonic() < deadline_s:
            ready = role.wait(_TICK_S)
            for child in [child for child in self._children if child.end.fileno() in ready]:
                if not self._take_messages(child):
                    self._bury(child)
            self._report()
        for child in tuple(self._children):
            log.get().error("receiver did not end", pid=child.pid)
            self._bury(child)
        self._rejections.flush(is_last=True)
        self._report()
        role.write_report()
