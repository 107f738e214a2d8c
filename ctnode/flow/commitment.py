"""Storage commitment: verify on disk what a peer asked for, and tell it, however long that takes (PS3.4 J)."""

from __future__ import annotations

import random
import time
from typing import Final

import structlog

from ctnode.archive import commitments
from ctnode.archive.commitments import Commitment, Failure
from ctnode.archive.database import Database
from ctnode.archive.jobs import retry_after_s
from ctnode.archive.layout import Layout
from ctnode.archive.ledger import Ledger
from ctnode.archive.spool import Spool
from ctnode.archive.vouching import HELD, NO_SUCH_INSTANCE, PROCESSING_FAILURE, verify
from ctnode.config import Config, Peer
from ctnode.flow.perpeer import PerPeer
from ctnode.ops import log
from ctnode.wire.calling import Callee
from ctnode.wire.events import report_where_it_is_open
from ctnode.wire.reporting import Answer, Report, report_anew

# Reports are tried for as long as this; a peer that was away for longer has asked anew.
GIVE_UP_S: Final = 7 * 86400.0
# What is not there may still be on its way; it is looked for again in such steps.
LOOK_AGAIN_S: Final = 2.0
# Spreads the retries of many transactions, so that a peer that comes back is not hit by all at once.
JITTER: Final = 0.2
_MAY_CHANGE: Final = frozenset({NO_SUCH_INSTANCE, PROCESSING_FAILURE})


class CommitmentDesk:
    """Verifies and reports; a part of the ``deliver`` role."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._threads = PerPeer("commitment")
        self._log: structlog.typing.FilteringBoundLogger = log.get()

    def begin(self, database: Database) -> None:
        """Take over what a process that died was at, and forget what is older than anybody asks about."""
        commitments.release_interrupted(database)
        Ledger(Spool(self._layout.incoming)).sweep()

    def start_due(self, database: Database, config: Config) -> None:
        """Start a thread for each caller that is owed a report."""
        for calling_ae in commitments.callers_due(database):
            self._threads.start(calling_ae, lambda name: self._serve(name, config))

    def stop(self) -> None:
        """Let what is under way end."""
        self._threads.stop()

    def _serve(self, calling_ae: str, config: Config) -> None:
        with Database(self._layout.database) as database:
            while not self._threads.stopping.is_set():
                commitment = commitments.claim(database, calling_ae)
                if commitment is None:
                    return
                self._settle(database, config, commitment)

    def _settle(self, database: Database, config: Config, commitment: Commitment) -> None:
        if commitment.failures is None:
            failures = self._verify(database, commitment)
            may_change = any(failure.reason in _MAY_CHANGE for failure in failures)
            if may_change and time.time() < commitment.asked_at + config.commitment.patience_s:
                words = f"{len(failures)} instances are not here yet"
                commitments.again(database, commitment, words, wait_s=LOOK_AGAIN_S, counts=False)
                return
            commitments.verified(database, commitment, failures)
            commitment = commitments.get(database, commitment.id)
        answer = self._report(config, commitment, Report.of(commitment))
        bound = self._log.bind(
            association=commitment.association,
            calling_ae=commitment.calling_ae,
            attempt=commitment.attempt,
            status=answer.status,
            instances=len(commitment.references),
            failures=len(commitment.failures or ()),
        )
        if answer.status == 0:
            commitments.reported(database, commitment, answer.why)
            bound.info("commitment reported")
            return
        why = answer.why or f"the peer answered {answer.status:04X}"
        if time.time() > commitment.asked_at + GIVE_UP_S:
            commitments.given_up(database, commitment, why)
            bound.error("commitment report given up", reason=why)
            return
        settings = config.delivery
        wait_s = retry_after_s(commitment.attempt, first_s=settings.first_retry_s, longest_s=settings.max_retry_s)
        commitments.again(database, commitment, why, wait_s=wait_s * (1.0 + random.uniform(0.0, JITTER)))
        bound.warning("commitment not reported", reason=why)

    def _verify(self, database: Database, commitment: Commitment) -> tuple[Failure, ...]:
        looked = ((reference, verify(database, self._layout, reference)) for reference in commitment.references)
        return tuple(Failure(reference, reason) for reference, reason in looked if reason != HELD)

    def _report(self, config: Config, commitment: Commitment, report: Report) -> Answer:
        """Report where the peer asked if that association lives, else by calling the peer."""
        timeout_s = config.delivery.timeout_s
        here = report_where_it_is_open(self._layout.run, commitment.association, report, timeout_s)
        if here is not None and here.status is not None:
            return Answer(here.status, "on the association of the request")
        callee = callee_of(config, commitment)
        if callee is None:
            return Answer(None, "the peer has no port in [[peers]], and its association is over")
        anew = report_anew(callee, config.node.ae_title, report, timeout_s)
        return Answer(anew.status, anew.why or "on an association of our own")


def callee_of(config: Config, commitment: Commitment) -> Callee | None:
    """Return where the caller of a transaction is called back; None if nothing says its port."""
    peer = next((peer for peer in config.peers if peer.name == commitment.peer), None)
    if peer is None or peer.port is None:
        return None
    return Callee(peer.ae_title, _host(peer, commitment), peer.port)


def _host(peer: Peer, commitment: Commitment) -> str:
    # A peer may be a network; then it is called where it called from.
    return commitment.peer_address.rpartition(":")[0].strip("[]") if "/" in peer.host else peer.host
