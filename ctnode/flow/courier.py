"""One thread's work for one destination: claim, send over one association, judge each answer, prove the arrival."""

from __future__ import annotations

import random
import shutil
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Final

import structlog

from ctnode.archive import lanes, outbox, proofs
from ctnode.archive.database import Database
from ctnode.archive.jobs import retry_after_s
from ctnode.archive.layout import Layout
from ctnode.archive.outbox import Delivery, Ending
from ctnode.archive.patience import DAY_S
from ctnode.config import Config
from ctnode.flow import auditing
from ctnode.flow.carrier import Carrier, Named, Unproved, carrier_of
from ctnode.flow.outgoing import Item, is_rewritten, outgoing_item, outgoing_names, scratch_of
from ctnode.flow.recorder import Recorder
from ctnode.ops import audit, log
from ctnode.ops.process import identity
from ctnode.wire.sender import Outcome, SendResult
from ctnode.words import ConfigError, CtnodeError, DeliveryEvent

# Over one association; what is behind them waits for the next one.
BATCH: Final = 200
# Their new forms lie on the disk until all of them are sent.
REWRITTEN_BATCH: Final = 25
# Spreads the retries of many objects and nodes, so that a destination that comes back is not hit by all at once.
JITTER: Final = 0.2
# So many objects refused for want of resources, one after the other, are the state of the destination.
FULL_AFTER: Final = 3
_AUDITED: Final = {
    DeliveryEvent.SEND: audit.Outcome.SUCCESS,
    DeliveryEvent.DIE: audit.Outcome.SERIOUS_FAILURE,
}


@dataclass
class Line:
    """What the couriers of one destination share: which series are under way, so that each keeps its order."""

    name: str
    lock: Lock = field(default_factory=Lock)
    proving: Lock = field(default_factory=Lock)
    series: set[int] = field(default_factory=set)
    is_paused: bool = False


class Courier:
    """Serves one destination until nothing is due, it fails as a whole, or the role stops."""

    def __init__(
        self, config: Config, layout: Layout, database: Database, recorder: Recorder, line: Line,
        is_stopping: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._config = config
        self._layout = layout
        self._database = database
        self._recorder = recorder
        self._line = line
        self._is_stopping = is_stopping
        self._carrier = carrier_of(config, line.name)
        # What one association takes, the others do not get.
        self._limit = BATCH // (self._carrier.target.associations if self._carrier is not None else 1)
        if self._carrier is not None and is_rewritten(self._carrier.target):
            self._limit = min(self._limit, REWRITTEN_BATCH)
        self._log: structlog.typing.FilteringBoundLogger = log.get().bind(target=line.name)

    def serve(self) -> None:
        """Send all that is due, then prove what is due."""
        is_well = True
        while is_well and not self._has_to_end():
            with self._line.lock:
                batch = outbox.claim(
                    self._database, self._line.name, identity(), limit=self._limit, not_series=self._line.series
                )
                series = {delivery.series_id for delivery in batch}
                self._line.series |= series
            if not batch:
                break
            try:
                is_well = self._send(batch)
            finally:
                self._recorder.drain()
                with self._line.lock:
                    self._line.series -= series
        if is_well and not self._has_to_end() and self._line.proving.acquire(blocking=False):
            try:
                if self._carrier is not None and self._carrier.target.proof != "none":
                    self._prove(self._carrier)
                else:
                    unasked = [delivery.id for delivery in proofs.due(self._database, self._line.name)]
                    proofs.dropped(self._database, unasked, "no proof of arrival is configured any more")
            finally:
                self._line.proving.release()

    def _has_to_end(self) -> bool:
        return self._is_stopping() or self._line.is_paused

    # ------------------------------------------------------------------------------------------ sending

    def _send(self, batch: tuple[Delivery, ...]) -> bool:
        """Send what was claimed; False where the destination failed as a whole."""
        if self._carrier is None:
            for delivery in batch:
                self._die(delivery, "no target of this name in the configuration")
            return True
        scratch = scratch_of(self._layout)
        try:
            return self._send_from(scratch, self._carrier, batch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _send_from(self, scratch: Path, carrier: Carrier, batch: tuple[Delivery, ...]) -> bool:
        judge = _Judge(self._config, lanes.get(self._database, self._line.name), carrier.target.proof != "none")
        open_ones: dict[Path, Delivery] = {}
        names: dict[Path, str] = {}
        # Whatever happens, none of them stays SENDING: only a restart would free it.
        held = {delivery.id: delivery for delivery in batch}
        audited: list[tuple[Delivery, audit.Outcome]] = []
        try:
            for delivery in batch:
                item = self._item(carrier, delivery, scratch, judge)
                if item is None:
                    del held[delivery.id]
                elif item.path in open_ones:
                    # Another revision owes the same object; it goes out once now, and this row comes after.
                    continue
                else:
                    open_ones[item.path], names[item.path] = delivery, item.name
            if not open_ones:
                return True
            with closing(carrier.send(names)) as results:
                for result in results:
                    delivery = open_ones[result.path]
                    ending = judge.ending(delivery, result)
                    del held[delivery.id]
                    self._recorder.add(ending)
                    self._tell(ending, is_said_there=result.status is not None)
                    if ending.event in _AUDITED:
                        audited.append((delivery, _AUDITED[ending.event]))
                    # What may have arrived has to be noted as such, also behind the one that failed.
                    if (judge.fault and not result.may_have_arrived) or self._has_to_end():
                        break
        finally:
            for delivery in held.values():
                self._recorder.add(Ending(delivery, DeliveryEvent.RELEASE))
            if judge.note is not None:
                self._recorder.add(judge.note)
            if self._config.audit.enabled:
                node = self._config.node.ae_title
                entries = auditing.of_deliveries(self._database, node, carrier.target, audited)
                audit.note(self._layout.root, *entries)
        if judge.fault:
            self._log.warning("destination fails", reason=judge.own_words, again_in_s=round(judge.wait_s))
        return not judge.fault

    def _item(self, carrier: Carrier, delivery: Delivery, scratch: Path, judge: _Judge) -> Item | None:
        """Return what leaves for a delivery; None where nothing may or can, which is then written down."""
        path = self._path(delivery)
        if not path.is_file():
            self._die(delivery, "the file is gone")
            return None
        try:
            return outgoing_item(self._config, carrier.target, path, delivery.path, scratch)
        except CtnodeError as refusal:
            self._die(delivery, str(refusal))
        except Exception as error:  # noqa: BLE001 - one object that nobody can make ready stops no other
            why = getattr(error, "strerror", None) or type(error).__name__
            ending = judge.unprepared(delivery, f"cannot be prepared: {why}")
            self._recorder.add(ending)
            self._tell(ending)
        return None

    def _path(self, delivery: Delivery) -> Path:
        return (self._layout.store if delivery.kind == outbox.ORIGINAL else self._layout.results) / delivery.path

    def _die(self, delivery: Delivery, reason: str) -> None:
        ending = Ending(delivery, DeliveryEvent.DIE, comment=reason)
        self._recorder.add(ending)
        self._tell(ending)

    def _tell(self, ending: Ending, *, is_said_there: bool = False) -> None:
        """Log how an attempt ended; what the other side said stands in the index alone, for it may name the patient."""
        delivery = ending.delivery
        bound = self._log.bind(delivery=delivery.id, attempt=delivery.attempt, status=ending.status)
        if ending.event is DeliveryEvent.SEND:
            bound.info("delivered")
        elif ending.event is not DeliveryEvent.RELEASE:
            state = "DEAD" if ending.event is DeliveryEvent.DIE else "RETRY"
            reason = "refused" if is_said_there else ending.comment
            bound.warning("not delivered", reason=reason, state=state)

    # ------------------------------------------------------------------------------------------ proving

    def _prove(self, carrier: Carrier) -> None:
        owed = proofs.due(self._database, self._line.name)
        settings = self._config.delivery
        wait_s = settings.proof_wait_s
        try:
            found = {delivery: one for delivery in owed if (one := self._names(carrier, delivery)) is not None}
        except ConfigError as fault:
            proofs.asked(
                self._database, dict.fromkeys((one.id for one in owed), ""), wait_s, comment=f"not proved: {fault}"
            )
            self._log.warning("arrival not proved", reason=str(fault))
            return
        gone = [delivery.id for delivery in owed if delivery not in found]
        if gone:
            proofs.dropped(self._database, gone, "its file is gone, so its arrival is not proved")
        if not found:
            return
        ids = {delivery.id: one.sop_instance for delivery, one in found.items()}
        # A new one for each try: a late report on an earlier one changes nothing.
        transaction = f"2.25.{uuid.uuid4().int}"
        is_commitment = carrier.target.proof == "commitment"
        try:
            if not is_commitment:
                held = carrier.held(found.values())
                proofs.answered(self._database, list(ids.items()), held, how="query", wait_s=wait_s)
                return
            # Before it is asked for: the answer may come on another association at once.
            proofs.asked(self._database, ids, 2 * wait_s, transaction_uid=transaction, comment="commitment asked for")
            report = carrier.commitment(transaction, list(found.values()), min(wait_s, settings.timeout_s))
            if report is not None:
                proofs.report(self._database, transaction, report.committed)
        except Unproved as fault:
            proofs.asked(
                self._database, ids, wait_s * (1.0 + random.uniform(0.0, JITTER)), comment=f"not proved: {fault}"
            )
            self._log.warning("arrival not proved", reason=str(fault))

    def _names(self, carrier: Carrier, delivery: Delivery) -> Named | None:
        return outgoing_names(self._config, carrier.target, self._path(delivery))


class _Judge:
    """Decides what each answer means for the object, and when it is the destination that fails."""

    def __init__(self, config: Config, lane: lanes.Lane, wants_proof: bool) -> None:
        self._settings = config.delivery
        self._lane = lane
        self._wants_proof = wants_proof
        self._failures = lane.failures
        self._refused = 0
        # Whether the count of failures in a row begins anew.
        self._is_well = False
        # What goes into the index, and what of it may go into the log.
        self.fault = self.own_words = ""
        self.wait_s = 0.0
        days = config.delivery.give_up_days
        self._give_up_s = days * DAY_S if days else None

    @property
    def note(self) -> Callable[[Database], None] | None:
        """Return what is to be written about the destination, if anything."""
        if self.fault:
            return partial(_note_failure, self._lane.name, self.fault, self.wait_s, self._is_well, self._give_up_s)
        if self._is_well and self._lane.failures:
            return partial(_note_well, self._lane.name)
        return None

    def unprepared(self, delivery: Delivery, comment: str) -> Ending:
        """Return what is to be written about an object that could not be made ready, which may work later."""
        return self._failure(delivery, comment=comment, wait_s=self._patience_s(delivery.attempt))

    def ending(self, delivery: Delivery, result: SendResult) -> Ending:
        """Return what is to be written about an object."""
        status, comment = result.status, result.comment
        if result.outcome is Outcome.SENT:
            self._answers()
            proof_s = self._settings.proof_wait_s * 2.0 ** min(delivery.transfers, 10) if self._wants_proof else None
            return Ending(delivery, DeliveryEvent.SEND, status, comment, went_out=True, proof_s=proof_s)
        if result.outcome is Outcome.DEAD:
            if status is not None:
                self._answers()
            return Ending(delivery, DeliveryEvent.DIE, status, comment)
        if result.outcome is Outcome.UNTRIED:
            if not result.is_fault or self.fault:
                return Ending(delivery, DeliveryEvent.RELEASE)
            # The first of them stands for all: it goes first again, and the others are neither tried nor counted.
            self._fail(comment, self._patience_s(self._failures + 1))
            return self._failure(delivery, status, comment, wait_s=self.wait_s)
        wait_s = self._patience_s(delivery.attempt)
        if result.is_fault:
            # Perhaps only this object does it to the other side; the next one shows.
            self._fail(comment, self._patience_s(self._failures) if self._failures else 0.0)
        elif status is not None:
            self._refused += 1
            if self._refused == FULL_AFTER:
                self._fail("it takes nothing now", self._patience_s(self._failures + 1), said=comment)
        return self._failure(delivery, status, comment, wait_s=wait_s, went_out=result.may_have_arrived)

    def _failure(
        self, delivery: Delivery, status: int | None = None, comment: str = "", *, wait_s: float, went_out: bool = False
    ) -> Ending:
        return Ending(
            delivery, DeliveryEvent.FAIL, status, comment, wait_s=wait_s, went_out=went_out, give_up_s=self._give_up_s
        )

    def _answers(self) -> None:
        self._is_well = True
        self._failures = self._refused = 0

    def _fail(self, why: str, wait_s: float, *, said: str = "") -> None:
        self.own_words, self.fault, self.wait_s = why, f"{why}: {said}".rstrip(" :"), wait_s

    def _patience_s(self, times: int) -> float:
        base_s = retry_after_s(times, first_s=self._settings.first_retry_s, longest_s=self._settings.max_retry_s)
        return base_s * (1.0 + random.uniform(0.0, JITTER))


def _note_failure(
    name: str, why: str, wait_s: float, was_well: bool, give_up_s: float | None, database: Database
) -> None:
    if was_well:
        lanes.well(database, name)
    lanes.failed(database, name, why, wait_s, give_up_s)


def _note_well(name: str, database: Database) -> None:
    lanes.well(database, name)
