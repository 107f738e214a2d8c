"""The active check: ask the peer that sent a series what it holds of it, and fetch what is missing."""

from __future__ import annotations

import time
from typing import Final

import structlog

from ctnode.archive import asks, evidence
from ctnode.archive.asks import Ask
from ctnode.archive.database import Database
from ctnode.archive.doorbell import Doorbell
from ctnode.archive.layout import Layout
from ctnode.archive.part10 import Opened
from ctnode.archive.spool import Journal, Spool
from ctnode.config import Config, Peer
from ctnode.flow.perpeer import PerPeer
from ctnode.ops import log
from ctnode.ops.process import identity
from ctnode.wire.calling import Callee
from ctnode.wire.query import Found, QueryFault, Retrieved, Wanted, find, get, move
from ctnode.words import CtnodeError, Evidence, EvidenceKind

# The door of what a C-GET brings.
DOOR: Final = "get"
# A peer that holds more than it has sent is not asked again before this.
LEAST_WAIT_S: Final = 5.0
_CT: Final = "1.2.840.10008.5.1.4.1.1.2"


class Asker:
    """Plans and asks questions; a part of the ``deliver`` role, one thread for each peer."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._threads = PerPeer("ask")
        self._log: structlog.typing.FilteringBoundLogger = log.get()

    @property
    def busy(self) -> tuple[str, ...]:
        """Return the peers that are being asked."""
        return self._threads.busy

    def begin(self, database: Database) -> None:
        """Take back what a process that died was asking."""
        asks.release_interrupted(database)

    def start_due(self, database: Database, config: Config) -> None:
        """Plan what is to be asked, and start a thread for each peer that something is due for."""
        asks.plan(database, {peer.name for peer in config.peers if peer.active_check})
        for name in asks.peers_due(database):
            self._threads.start(name, lambda peer: self._serve(peer, config))

    def stop(self) -> None:
        """Let what is under way end."""
        self._threads.stop()

    def _serve(self, name: str, config: Config) -> None:
        peer = next((peer for peer in config.peers if peer.name == name and peer.active_check), None)
        with Database(self._layout.database) as database:
            while not self._threads.stopping.is_set():
                ask = asks.claim(database, name, identity())
                if ask is None:
                    return
                log.bind(job=ask.job_id)
                if peer is None:
                    with database.immediate():
                        asks.done(database, ask, f"{name} is not to be asked any more")
                    continue
                try:
                    self._ask(database, config, peer, ask)
                except (QueryFault, ValueError, RuntimeError, AttributeError, TypeError) as fault:
                    # pynetdicom raises whatever a strange answer makes it raise.
                    why = fault.why if isinstance(fault, QueryFault) else f"no usable answer: {type(fault).__name__}"
                    asks.failed(database, ask, f"{name}: {why}")
                    self._log.warning("question failed", peer=name, series=ask.series, reason=why)

    def _ask(self, database: Database, config: Config, peer: Peer, ask: Ask) -> None:
        callee = callee_of(peer)
        wanted = Wanted(ask.study, ask.series)
        found = find(
            callee,
            config.node.ae_title,
            wanted,
            is_exact=peer.active_check == "image",
            timeout_s=peer.query_timeout_s,
        )
        held = asks.held(database, ask.series_id)
        missing = missing_of(found, held)
        words = f"{peer.name} holds {found.count} instances, {missing} of them are not here"
        self._log.info("peer asked", peer=peer.name, series=ask.series, count=found.count, missing=missing)
        with database.immediate():
            names = tuple(sorted(found.instances or ()))
            kind = EvidenceKind.QUERY_RESULT
            evidence.record(
                database,
                Evidence(kind, time.time(), peer.name, ask.study, ask.series, count=found.count, instances=names),
            )
            if not missing:
                asks.done(database, ask, words)
            elif not peer.retrieve:
                if ask.is_receiving:
                    # It may still be sending: what it holds then counts.
                    asks.later(database, ask, words, wait_s=max(ask.quiet_s, LEAST_WAIT_S))
                else:
                    asks.done(database, ask, words)
        if missing and peer.retrieve:
            self._fetch(database, config, peer, ask, found, held)

    def _fetch(
        self, database: Database, config: Config, peer: Peer, ask: Ask, found: Found, held: frozenset[str]
    ) -> None:
        absent = tuple(sorted(found.instances - held)) if found.instances is not None else ()
        wanted = Wanted(ask.study, ask.series, absent)
        callee, timeout_s = callee_of(peer), peer.query_timeout_s
        if peer.retrieve == "move":
            result = move(callee, config.node.ae_title, wanted, timeout_s)
        else:
            result = self._get(config, peer, wanted, found.classes | {_CT}, timeout_s)
        words = (
            f"{peer.retrieve} from {peer.name}: {result.completed} sent, {result.failed} failed,"
            f" {result.warning} with warnings, status {result.status:04X}"
        )
        with database.immediate():
            evidence.record(
                database,
                Evidence(
                    EvidenceKind.RETRIEVE_FINAL, time.time(), peer.name, ask.study, ask.series,
                    count=result.completed + result.warning, instances=absent, failed=result.failed,
                ),
            )  # fmt: skip
            if result.is_whole:
                asks.done(database, ask, words)
        if not result.is_whole:
            raise QueryFault(words)
        self._log.info("peer sent what was missing", peer=peer.name, series=ask.series, count=result.completed)

    def _get(self, config: Config, peer: Peer, wanted: Wanted, classes: frozenset[str], timeout_s: float) -> Retrieved:
        callee = callee_of(peer)
        spool = Spool(
            self._layout.incoming,
            reserve_bytes=config.storage.reserve_mb << 20,
            reserve_inodes=config.storage.reserve_inodes,
        )
        opened = Opened(
            door=DOOR,
            calling_ae=callee.ae_title,
            called_ae=config.node.ae_title,
            peer_address=f"{callee.host}:{callee.port}",
            own_address=f"{DOOR}:",
            peer=peer.name,
        )
        doorbell = Doorbell(self._layout.run)
        try:
            with spool.open_association(opened) as journal:
                return get(callee, config.node.ae_title, wanted, classes, _Keeper(journal), timeout_s)
        except CtnodeError as error:
            raise QueryFault(error.message) from error
        finally:
            doorbell.ring()
            doorbell.close()


class _Keeper:
    """Puts what a C-GET brings through the front door."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __call__(self, sop_class: str, sop_instance: str, transfer_syntax: str, data_set: bytes) -> None:
        incoming = self._journal.receive(
            transfer_syntax=transfer_syntax, sop_class=sop_class, sop_instance=sop_instance
        )
        incoming.write(data_set)
        incoming.commit()


def missing_of(found: Found, held: frozenset[str]) -> int:
    """Return how many instances the peer holds and we do not."""
    if found.instances is not None:
        return len(found.instances - held)
    return max(0, found.count - len(held))


def callee_of(peer: Peer) -> Callee:
    """Return whom questions about the series of a peer are put to."""
    port = peer.query_port or peer.port
    assert port is not None
    return Callee(peer.query_ae_title or peer.ae_title, peer.query_host or peer.host, port)
