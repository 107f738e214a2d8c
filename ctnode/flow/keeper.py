"""The ``keep`` role: the only writer of instance rows; settles the journal and decides what is complete."""

from __future__ import annotations

import errno
import socket
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog

from ctnode.archive import associations, catalog, revisions, steps
from ctnode.archive.database import Database, copy_to
from ctnode.archive.doorbell import GATHER_S, open_doorbell
from ctnode.archive.index import Arrival, Index
from ctnode.archive.layout import Layout
from ctnode.archive.settle import Ended, Scan, Settler
from ctnode.archive.suspect import mark, marked
from ctnode.config import Completion, CompletionRule, Config
from ctnode.flow import auditing, forgetting
from ctnode.flow.completion import AT_ONCE, quiet_seconds
from ctnode.flow.dispatch import Dispatcher
from ctnode.flow.inbox import Inbox
from ctnode.flow.policy import Policy
from ctnode.flow.retaining import Retainer
from ctnode.flow.studies import StudyRoom
from ctnode.flow.waiting import Ripe, WaitingRoom
from ctnode.ops import audit, log
from ctnode.ops.durable import lock
from ctnode.ops.role import Role
from ctnode.wire.peers import CachedResolver, find_peer
from ctnode.words import Verdict

IDLE_SCAN_S: Final = 1.0
RETRY_S: Final = 1.0
# The end of one association may complete a thousand series, and nobody else may wait for them.
MOST_S: Final = 0.5
NETWORK: Final = "network"
# What came by a C-GET has the sender of what came before.
RETRIEVED: Final = "get"
HELD_SUSPECT: Final = "its verdict is SUSPECT"
_SYNC_FAULTS: Final = frozenset({"SQLITE_IOERR_FSYNC", "SQLITE_IOERR_DIR_FSYNC"})

Reload = Callable[[], Config]


def keep(config: Config, role: Role, reload: Reload) -> int:
    """Run the keeper until the role stops; the last thing it does is to empty the journal.

    Raises
    ------
    Unavailable
        If another keeper holds the root.
    """
    layout = Layout(config.root, config.results)
    layout.create()
    lock(layout.run / "keep.lock", owner="keeper")
    with Database(layout.database) as database:
        database.migrate()
        keeper = Keeper(config, layout, database, role, reload)
        keeper.run()
    return 0


class Keeper:
    """The loop of the ``keep`` role."""

    def __init__(self, config: Config, layout: Layout, database: Database, role: Role, reload: Reload) -> None:
        self.config = config
        self.layout = layout
        self.database = database
        self.role = role
        self.reload = reload
        self.index = Index(database, layout, self._quiet_s)
        self.settler = Settler(self.index, on_ended=self._note_ended)
        self.waiting = WaitingRoom(database)
        self.studies = StudyRoom(database)
        self.dispatcher = Dispatcher(database, layout)
        self.inbox = Inbox(config, role.wake)
        self.retainer = Retainer(database, layout)
        self._clock = steps.StepWatch()
        self._resolver = CachedResolver()
        self._seen_version = -1
        self._has_missed = False
        # Why the storage is not to be trusted any more, as long as nobody else knows.
        self._distrust = ""
        self._log: structlog.typing.FilteringBoundLogger = log.get()

    def _quiet_s(self, arrival: Arrival, revision: int) -> float:
        association, peer = arrival.association, None
        if association.door in {NETWORK, RETRIEVED}:
            # A journal of an older version names no peer; then title and address decide as they did at the door.
            peer = next((known for known in self.config.peers if known.name == association.peer), None)
        if association.door == NETWORK and peer is None:
            host = association.peer_address.rpartition(":")[0].strip("[]")
            peer = find_peer(association.calling_ae, host, self.config.peers, self._resolver)
        return quiet_seconds(self.config, peer, association.called_ae, revision, arrival.header.modality)

    def _note_ended(self, ended: Sequence[Ended]) -> None:
        if self.config.audit.enabled:
            audit.note(self.layout.root, *auditing.of_associations(self.database, ended))
        for association, ending in ended:
            if ending.how == associations.DRAINED:
                # Its sender begins anew once the node is there again.
                cut_off = associations.restart_quiet(self.database, association.id)
                self.waiting.touch(cut_off, cut_off)

    def run(self) -> None:
        """Loop until the role stops."""
        bell = open_doorbell(self.layout.run)
        self.role.watch(bell.fileno())
        self.waiting.restore()
        self.studies.restore()
        with self.inbox:
            self.role.ready()
            while not self.role.stopping:
                if self.role.wait(self._pause_s()):
                    self._answer_bell(bell)
                self._turn()
            self.role.draining()
        self._empty_journal()
        self.role.unwatch(bell.fileno())
        bell.close()

    def _pause_s(self) -> float:
        pauses_s = (self.waiting.next_look_s(), self.studies.next_look_s(), self.retainer.pause_s())
        return min([IDLE_SCAN_S, *(pause_s + 0.001 for pause_s in pauses_s if pause_s is not None)])

    def _answer_bell(self, bell: socket.socket) -> None:
        # Emptied before the pause: who rings during it may have come too late for the look that follows.
        _drain(bell)
        time.sleep(GATHER_S)

    def _turn(self) -> None:
        """Do all that is to do now; a storage that fails is tried again a little later."""
        if self._distrust:
            # Until it is written down: the mark is all that the receivers hear of it.
            mark(self.layout.run, self._distrust)
            self._distrust = "" if marked(self.layout.run) else self._distrust
        if self.role.reload_wanted:
            self.role.reload_wanted = False
            self.config = self.inbox.config = self.reload()
            self.dispatcher.forget_waiting()
            self.waiting.look_again()
            self._seen_version = -1
        try:
            if step_s := self._clock.step_s():
                # Who asks peers, and the next keeper, go by what the index says.
                steps.shift_waiting(self.database, step_s)
                self._clock.made_good(step_s)
                self._log.warning("the clock was set", seconds=round(step_s, 1))
            if self._has_missed:
                # What was settled before a fault waits too, and what could not be started is looked at again; so is
                # what a list or the operator's word had made complete, for nobody tells of those twice.
                self.waiting.restore()
                self.waiting.look_again()
                self.studies.restore()
                self._seen_version, self._has_missed = -1, False
            self.index.keeps_resent = self.config.retention.resent == "keep"
            scan = self._settle()
            version = self.database.data_version()
            if scan.settled or version != self._seen_version:
                self._seen_version = version
                self.dispatcher.start_complete(self.config)
                self._answer_requests()
            self._forget_wanted()
            self.inbox.look()
            # What has just come may be part of what is to go: then it is looked at again before anything goes.
            self.retainer.step(self.config.retention)
        except (OSError, sqlite3.Error) as error:
            self.database.connection.rollback()
            self._has_missed = True
            self._log.error("keeper cannot work now", error=type(error).__name__, reason=_without_path(error))
            if _is_fault_of_disk(error):
                # The next sync may succeed without what this one has lost (see archive.suspect).
                self._distrust = f"storage is suspect: the keeper met {_without_path(error)}"
            self.role.report(errors=int(str(self.role.counters.get("errors", 0))) + 1)
            self.role.wait(RETRY_S)

    def _settle(self) -> Scan:
        while True:
            began = time.monotonic()
            scan = self.settler.scan()
            self._touch(scan)
            self.role.report(waiting=len(self.waiting), open_associations=len(scan.open_associations))
            policy = (self.config.completion, self.config.completion_rules)
            if scan.is_whole and self._complete_ripe(began, scan, *policy):
                if self.studies.settle(began, scan.open_associations, *policy):
                    self.dispatcher.start_complete(self.config)
                return scan

    def _complete_ripe(self, began: float, scan: Scan, settings: Completion, rules: Sequence[CompletionRule]) -> bool:
        """Complete what is; False if some of it is left, because the journal has to be looked at again meanwhile."""
        asked = {peer.name for peer in self.config.peers if peer.active_check}
        ripe = self.waiting.ripe(began, scan.open_associations, settings, rules, asked)
        started = time.monotonic()
        # What has a proof is found by this look alone; the rest is due at the next one, too.
        for one in sorted(ripe, key=_has_no_proof):
            if _has_no_proof(one) and time.monotonic() - started > MOST_S:
                return self.role.stopping
            self._complete(one)
            self.role.report()
        return True

    def _touch(self, scan: Scan) -> None:
        touched = {placement.series_id for placement in scan.settled}
        new = {placement.series_id for placement in scan.settled if placement.is_new}
        self.waiting.touch(touched, touched - new)
        self.studies.touch(new)

    def _complete(self, ripe: Ripe) -> None:
        revision, decision = ripe.revision, ripe.decision
        with self.database.immediate():
            revisions.complete(
                self.database,
                revision,
                decision.verdict,
                decision.evidence,
                rule=decision.rule,
                otherwise=decision.otherwise,
                policy=ripe.policy.rule,
                settles_study=False,
            )
            self._hold_suspect(revision, decision.verdict, ripe.policy)
            self._hold_reduced(revision)
        self.waiting.leave(revision.id)
        series = catalog.by_id(self.database, revision.series_id)
        self._log.info(
            "series complete",
            series=series.name,
            revision=revision.n,
            verdict=str(decision.verdict),
            instances=series.instances,
        )
        self.dispatcher.start_complete(self.config)

    def _hold_suspect(self, revision: revisions.Revision, verdict: Verdict, policy: Policy) -> None:
        """Hold a SUSPECT revision where its policy wants it; a better one after it lifts that hold."""
        hold = catalog.by_id(self.database, revision.series_id).hold
        if verdict is Verdict.SUSPECT and policy.suspect == "hold" and not hold:
            revisions.set_hold(self.database, revision, HELD_SUSPECT)
        elif verdict is not Verdict.SUSPECT and hold == HELD_SUSPECT:
            revisions.lift_hold(self.database, revision, hold)

    def _hold_reduced(self, revision: revisions.Revision) -> None:
        """Hold a series of which a rule has deleted images: what came late is not all of it."""
        series = catalog.by_id(self.database, revision.series_id)
        if series.deleted and series.ct_instances and not series.hold:
            words = f"retention deleted {series.deleted} of its images: send them again, or release it as it is"
            revisions.set_hold(self.database, revision, words)

    def _forget_wanted(self) -> None:
        """Forget what is to be forgotten; what is on its way just now has to arrive or fail first."""
        for (identifier,) in self.database.execute(
            "SELECT id FROM requests WHERE ended_at IS NULL AND kind = ?", (forgetting.REQUEST,)
        ).fetchall():
            if forgetting.carry_out(self.database, self.layout, identifier):
                # Its numbers may be given again.
                self.waiting.forget()
                self.studies.forget()
                self.dispatcher.forget_waiting()
                self._log.info("forgotten, as the operator asked")

    def _answer_requests(self) -> None:
        """Carry out what other processes asked the keeper to do on its connection."""
        for identifier, argument in self.database.execute(
            "SELECT id, argument FROM requests WHERE ended_at IS NULL AND kind = 'backup'"
        ).fetchall():
            error = ""
            try:
                copy_to(self.database.connection, Path(argument), between=self._between_backup_steps)
            except (OSError, sqlite3.Error) as problem:
                error = f"{type(problem).__name__}: {problem}"
            with self.database.immediate():
                self.database.execute(
                    "UPDATE requests SET ended_at = ?, error = ? WHERE id = ?", (time.time(), error, identifier)
                )

    def _between_backup_steps(self, _status: int, _remaining: int, _total: int) -> None:
        self._touch(self.settler.scan())
        self.role.report()

    def _empty_journal(self) -> None:
        """Settle what the receivers left, so that a stopped node has nothing under way."""
        try:
            self._settle()
            self.dispatcher.start_complete(self.config)
        except (OSError, sqlite3.Error) as error:
            self._log.error("journal not emptied", error=type(error).__name__, reason=_without_path(error))


def _drain(bell: socket.socket) -> None:
    try:
        while bell.recv(4096):
            pass
    except BlockingIOError:
        return


def _is_fault_of_disk(error: OSError | sqlite3.Error) -> bool:
    """Return whether the disk failed, and is not only full or busy."""
    if isinstance(error, OSError):
        return error.errno == errno.EIO
    return str(getattr(error, "sqlite_errorname", "")) in _SYNC_FAULTS


def _has_no_proof(ripe: Ripe) -> bool:
    return ripe.decision.rule not in AT_ONCE


def _without_path(error: Exception) -> str:
    """Return an error's words without file names, which may be anything a user chose."""
    return error.strerror or "" if isinstance(error, OSError) else str(error)
