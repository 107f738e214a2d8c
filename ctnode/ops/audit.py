"""The audit trail: who did, sent, exported or erased what, one JSON line each, appended and synced (PS3.15 A.5).

``audit/audit-DATE.jsonl`` below the root, one file for each day in UTC. No process of the node removes what stands
there, and none changes it but ``ctnode forget``, which makes UIDs illegible. A line names UIDs, AE titles, addresses
and users; nothing of a patient.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pwd
import re
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Any, Final

from ctnode.ops import log
from ctnode.ops.durable import fsync_directory, sync

FOLDER: Final = "audit"
_UID: Final = re.compile(r"[0-9.]{1,64}(~[0-9]+)?")


class Event(Enum):
    """What happened, by the codes of DCM (PS3.16 CID 400)."""

    APPLICATION_ACTIVITY = ("110100", "Application Activity")
    INSTANCES_ACCESSED = ("110103", "DICOM Instances Accessed")
    INSTANCES_TRANSFERRED = ("110104", "DICOM Instances Transferred")
    STUDY_DELETED = ("110105", "DICOM Study Deleted")
    EXPORT = ("110106", "Export")
    IMPORT = ("110107", "Import")
    QUERY = ("110112", "Query")
    SECURITY_ALERT = ("110113", "Security Alert")
    USER_AUTHENTICATION = ("110114", "User Authentication")

    @property
    def code(self) -> str:
        """Return the code value."""
        return self.value[0]

    @property
    def meaning(self) -> str:
        """Return the code meaning."""
        return self.value[1]


class Action(StrEnum):
    """What was done to it (PS3.15 Table A.5.2-1)."""

    CREATE = "C"
    READ = "R"
    UPDATE = "U"
    DELETE = "D"
    EXECUTE = "E"


class Outcome(IntEnum):
    """How it ended (PS3.15 Table A.5.2-1)."""

    SUCCESS = 0
    MINOR_FAILURE = 4
    SERIOUS_FAILURE = 8
    MAJOR_FAILURE = 12


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of the trail.

    Parameters
    ----------
    event, action, outcome
        What happened.
    who
        The user, or the AE title that asked.
    what
        In a word or two what it was, such as ``requeue`` or ``association``.
    source
        Address that it came from, where there is one.
    target
        Who got it, where somebody did.
    studies, series
        UIDs of what it was about.
    instances
        How many instances, where that is known.
    reference
        Name of the association or number of the job or delivery in the index.
    """

    event: Event
    action: Action
    who: str
    what: str
    outcome: Outcome = Outcome.SUCCESS
    source: str = ""
    target: str = ""
    studies: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    instances: int | None = None
    reference: str = ""

    def as_json(self, at: float) -> dict[str, Any]:
        """Return the line of a record; what is empty is left out."""
        rest = {
            "source": self.source,
            "target": self.target,
            "studies": [_uid(uid) for uid in self.studies],
            "series": [_uid(uid) for uid in self.series],
            "instances": self.instances,
            "reference": self.reference,
        }
        return {
            "at": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "event": self.event.meaning,
            "code": self.event.code,
            "action": str(self.action),
            "outcome": int(self.outcome),
            "who": self.who,
            "what": self.what,
            **{name: value for name, value in rest.items() if value not in ("", [], None)},
        }


def _uid(uid: str) -> str:
    """Return a UID as it is; what is none may be a name and is said by its digest, as in ``store/``."""
    if _UID.fullmatch(uid):
        return uid
    return "x-" + hashlib.sha256(uid.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def write(root: Path, *records: Record, enabled: bool = True, at: float | None = None) -> None:
    """Append records and make them durable before returning.

    Parameters
    ----------
    root
        The root of the node.
    records
        What is written, in one piece.
    enabled
        ``audit.enabled`` of the configuration.
    at
        Seconds since 1970 (default: the clock).

    Raises
    ------
    OSError
        If the disk does not take them.
    """
    if not enabled or not records:
        return
    now = time.time() if at is None else at
    folder = root / FOLDER
    if not folder.is_dir():
        folder.mkdir(mode=0o700, exist_ok=True)
        fsync_directory(root)
    file = folder / f"audit-{datetime.fromtimestamp(now, UTC):%Y-%m-%d}.jsonl"
    text = "".join(json.dumps(record.as_json(now)) + "\n" for record in records)
    _append(file, text.encode())


def _append(file: Path, content: bytes) -> None:
    is_new = not file.exists()
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Several processes write; the lock keeps the lines of each whole.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        end = os.fstat(descriptor).st_size
        if end and os.pread(descriptor, 1, end - 1) != b"\n":
            # A line that a crash or a full disk cut: it stays as it is, by itself.
            content = b"\n" + content
        while content:
            content = content[os.write(descriptor, content) :]
        sync(descriptor)
    finally:
        os.close(descriptor)
    if is_new:
        fsync_directory(file.parent)


def note(root: Path, *records: Record, enabled: bool = True) -> None:
    """Write records; a disk that does not take them is said in the log and stops nobody's work."""
    try:
        write(root, *records, enabled=enabled)
    except OSError as error:
        log.get().error("audit trail not written", count=len(records), error=error.strerror or type(error).__name__)


def blot(root: Path, uids: Collection[str]) -> None:
    """Make UIDs that are to be forgotten illegible in the whole trail: who did what, and when, stays.

    Each is written over in its place by as many dashes, so that no line moves and a crash in between only leaves
    something to do again.

    Raises
    ------
    OSError
        If the disk does not take it.
    """
    for file in files(root):
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            for uid in uids:
                for found in re.finditer(re.escape(json.dumps(_uid(uid)).encode()), content):
                    os.pwrite(descriptor, b"-" * (len(found[0]) - 2), found.start() + 1)
            sync(descriptor)
        finally:
            os.close(descriptor)


def files(root: Path) -> tuple[Path, ...]:
    """Return the files of the trail, oldest first."""
    return tuple(sorted((root / FOLDER).glob("audit-????-??-??.jsonl")))


def read(root: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of the trail, oldest first; a line that was cut is passed over."""
    for file in files(root):
        for line in file.read_bytes().splitlines():
            with suppress(ValueError):
                yield json.loads(line)


def operator() -> str:
    """Return the user at the command line: who became root by sudo is said by name."""
    number = os.getuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:
        name = str(number)
    behind = os.environ.get("SUDO_USER", "") if number == 0 else ""
    return f"{behind} as {name}" if behind else name
