"""What the roles write into the audit trail, and the trail's way to an audit repository by syslog over TLS."""

from __future__ import annotations

import json
import os
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from ctnode.archive.associations import Association, Ending
from ctnode.archive.database import Database
from ctnode.archive.jobs import retry_after_s
from ctnode.archive.layout import Layout
from ctnode.archive.outbox import Delivery
from ctnode.archive.rejections import Rejection
from ctnode.config import Config, Target
from ctnode.flow.perpeer import PerPeer
from ctnode.ops import audit, log
from ctnode.ops.audit import Action, Event, Outcome, Record
from ctnode.ops.audit_message import frame
from ctnode.ops.durable import write_durable

CURSOR_NAME: Final = ".forwarded.json"
# Between two notes of how far the repository has got; after a crash so much may go there twice.
PIECE_BYTES: Final = 1 << 16
TIMEOUT_S: Final = 20.0
LOOK_S: Final = 2.0
FIRST_RETRY_S: Final = 5.0
LONGEST_RETRY_S: Final = 600.0
_NETWORK: Final = "network"


def of_associations(database: Database, ended: Sequence[tuple[Association, Ending]]) -> Iterator[Record]:
    """Yield who sent what, for associations that stored or tried to."""
    for association, ending in ended:
        rows = database.execute(
            "SELECT studies.uid, series.uid, fed.instances FROM association_series AS fed"
            " JOIN series ON series.id = fed.series_id JOIN studies ON studies.id = series.study_id"
            " WHERE fed.association_id = ? ORDER BY series.id",
            (association.id,),
        ).fetchall()
        if not rows and not ending.statuses:
            continue
        refused = sum(count for status, count in ending.statuses.items() if status != "0000")
        is_whole = ending.how != "aborted" and not refused
        yield Record(
            Event.INSTANCES_TRANSFERRED if association.door == _NETWORK else Event.IMPORT,
            Action.CREATE,
            association.calling_ae or association.door,
            f"association {ending.how}" + (f", {refused} refused" if refused else ""),
            Outcome.SUCCESS if is_whole else Outcome.MINOR_FAILURE,
            source=association.peer_address if association.door == _NETWORK else "",
            studies=tuple(dict.fromkeys(row[0] for row in rows)),
            series=tuple(dict.fromkeys(row[1] for row in rows)),
            instances=sum(row[2] for row in rows),
            reference=association.name,
        )


def of_deliveries(
    database: Database, node: str, target: Target, outcomes: Sequence[tuple[Delivery, Outcome]]
) -> Iterator[Record]:
    """Yield what was sent to a destination and what was given up, for each series one entry."""
    counted = Counter((delivery.series_id, outcome) for delivery, outcome in outcomes)
    for (series_id, outcome), count in counted.items():
        study, series = database.execute(
            "SELECT studies.uid, series.uid FROM series JOIN studies ON studies.id = series.study_id"
            " WHERE series.id = ?",
            (series_id,),
        ).fetchone()
        yield Record(
            Event.EXPORT if target.external or target.kind == "folder" else Event.INSTANCES_TRANSFERRED,
            Action.READ if outcome is Outcome.SUCCESS else Action.EXECUTE,
            node,
            "delivery" if outcome is Outcome.SUCCESS else "delivery given up",
            outcome,
            target=target.name,
            studies=(study,),
            series=(series,),
            instances=count,
        )


def of_rejection(rejection: Rejection) -> Record:
    """Return the entry of somebody who was turned away."""
    return Record(
        Event.SECURITY_ALERT,
        Action.EXECUTE,
        rejection.calling_ae or "unknown",
        f"refused: {rejection.reason}" + (f", {rejection.count} times" if rejection.count > 1 else ""),
        Outcome.SERIOUS_FAILURE,
        source=rejection.address,
    )


class AuditSender:
    """A part of the ``deliver`` role: sends the lines of the trail on, in their order, each at least once."""

    def __init__(self, layout: Layout) -> None:
        self._root = layout.root
        self._threads = PerPeer("audit")
        self._due_s = 0.0
        self._failures = 0
        self._log: structlog.typing.FilteringBoundLogger = log.get()

    def begin(self, database: Database) -> None:
        """Nothing is to be taken over: how far it got stands in a file."""

    def start_due(self, database: Database, config: Config) -> None:  # noqa: ARG002 - what all parts are asked
        """Start a thread if there is somebody to send to and something new."""
        if config.audit.syslog_host and time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + LOOK_S
            if next(self._waiting(), None) is not None:
                self._threads.start("syslog", lambda _: self._send(config))

    def stop(self) -> None:
        """Let what is under way end."""
        self._threads.stop()

    def _waiting(self) -> Iterator[tuple[Path, int]]:
        """Yield the files with something to send, and where it begins."""
        name, offset = self._cursor()
        for file in audit.files(self._root):
            start = offset if file.name == name else 0
            if file.name >= name and file.stat().st_size > start:
                yield file, start

    def _cursor(self) -> tuple[str, int]:
        try:
            content = json.loads((self._root / audit.FOLDER / CURSOR_NAME).read_bytes())
            return str(content["file"]), int(content["offset"])
        except (OSError, ValueError, KeyError):
            return "", 0

    def _send(self, config: Config) -> None:
        settings = config.audit
        try:
            with (
                socket.create_connection((settings.syslog_host, settings.syslog_port), TIMEOUT_S) as plain,
                _context(config).wrap_socket(plain, server_hostname=settings.syslog_host) as connection,
            ):
                for file, start in self._waiting():
                    self._send_file(connection, config.node.ae_title, file, start)
                with suppress(OSError):
                    # RFC 5425 4.4: says that all was sent, and hears whether it was read.
                    connection.unwrap()
        except OSError as error:
            self._failures += 1
            wait_s = retry_after_s(self._failures, first_s=FIRST_RETRY_S, longest_s=LONGEST_RETRY_S)
            self._due_s = time.monotonic() + wait_s
            words = error.strerror or type(error).__name__
            self._log.warning("audit trail not sent", host=settings.syslog_host, reason=words, attempt=self._failures)
        else:
            self._failures = 0

    def _send_file(self, connection: ssl.SSLSocket, node: str, file: Path, start: int) -> None:
        with file.open("rb") as lines:
            lines.seek(start)
            while not self._threads.stopping.is_set():
                frames, end = _frames(lines.readlines(PIECE_BYTES), node)
                if not end:
                    return
                connection.sendall(b"".join(frames))
                start += end
                cursor = json.dumps({"file": file.name, "offset": start})
                write_durable(self._root / audit.FOLDER / CURSOR_NAME, cursor.encode())


def _frames(lines: Sequence[bytes], node: str) -> tuple[list[bytes], int]:
    """Return the frames of whole lines, and how many bytes these take in the file."""
    frames, end = [], 0
    for line in lines:
        if not line.endswith(b"\n"):
            break
        end += len(line)
        with suppress(ValueError, KeyError):
            entry: Mapping[str, object] = json.loads(line)
            frames.append(frame(entry, node=node, host=socket.gethostname(), process=os.getpid()))
    return frames, end


def _context(config: Config) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=config.audit.ca or None)
    if config.audit.certificate:
        context.load_cert_chain(config.audit.certificate, config.audit.key or None)
    return context
