"""The vocabulary of the node: states, transition tables, frozen records, DIMSE statuses, the error tree.

The error tree::

    CtnodeError
    ├── ConfigError          exit 78: a key, its meaning, the nearest known key
    ├── Unavailable          exit 69: no root, another node holds it, a port is taken
    ├── StorageError         A700: disk full, read-only, failing
    ├── BadInstance          C000: unreadable, without UIDs, a UID that cannot be kept
    │   └── Mismatch         A900: command and data set name different objects
    ├── Refusal              a series that cannot become a volume, and why
    ├── NotFound             exit 1: no such series, job, destination
    ├── WrongState           exit 1: the object is in a state that does not allow this
    └── LostLease            somebody else owns the job now
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Final, TypeVar


class ExitCode(IntEnum):
    """What the commands return (``sysexits.h`` where a name exists there)."""

    OK = 0
    FINDINGS = 1
    USAGE = 2
    UNAVAILABLE = 69
    BAD_CONFIG = 78


class DimseStatus(IntEnum):
    """C-STORE response statuses that the node uses (PS3.4 B.2.3, PS3.7 C)."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    OUT_OF_RESOURCES = 0xA700
    DATA_SET_MISMATCH = 0xA900
    CANNOT_UNDERSTAND = 0xC000


# ---------------------------------------------------------------------------------------------- errors


class CtnodeError(Exception):
    """Something went wrong that a person has to know: what, which object, what to do.

    Parameters
    ----------
    message
        What happened and to which object; never a name, an ID or a date of a patient.
    hint
        What the reader can do about it.
    """

    retryable: bool = False
    dimse_status: DimseStatus = DimseStatus.PROCESSING_FAILURE
    exit_code: ExitCode = ExitCode.FINDINGS

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(CtnodeError):
    """The configuration names an unknown key, a wrong type or an impossible value."""

    exit_code = ExitCode.BAD_CONFIG


class Unavailable(CtnodeError):
    """What the command needs is not there: a root, a port, a lock."""

    retryable = True
    exit_code = ExitCode.UNAVAILABLE


class StorageError(CtnodeError):
    """The storage did not take the bytes; nothing was acknowledged."""

    retryable = True
    dimse_status = DimseStatus.OUT_OF_RESOURCES


class BadInstance(CtnodeError):
    """One data set that cannot be kept under a name; the association goes on."""

    dimse_status = DimseStatus.CANNOT_UNDERSTAND


class Mismatch(BadInstance):
    """The command set and the data set name different objects (PS3.4 B.2.3)."""

    dimse_status = DimseStatus.DATA_SET_MISMATCH


class Refusal(CtnodeError):
    """A series that cannot become a volume without guessing."""

    def __init__(self, message: str, *, code: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class NotFound(CtnodeError):
    """No object of this name in the index."""


class WrongState(CtnodeError):
    """The object's state does not allow what was asked."""


class LostLease(CtnodeError):
    """The job was given to another worker meanwhile; this one's result is not published."""


# ---------------------------------------------------------------------------------------------- states


class RevisionState(StrEnum):
    """Where a revision of a series stands."""

    RECEIVING = "RECEIVING"
    COMPLETE = "COMPLETE"
    QUEUED = "QUEUED"
    PROCESSING = "PROCESSING"
    DONE = "DONE"
    FAILED = "FAILED"
    KEPT = "KEPT"
    SUPERSEDED = "SUPERSEDED"


class RevisionEvent(StrEnum):
    """What moves a revision."""

    COMPLETE = "complete"
    QUEUE = "queue"
    KEEP = "keep"
    CLAIM = "claim"
    RELEASE = "release"
    FINISH = "finish"
    DIE = "die"
    REQUEUE = "requeue"
    SUPERSEDE = "supersede"


class StudyState(StrEnum):
    """Whether all series of a study have settled."""

    OPEN = "OPEN"
    COMPLETE = "COMPLETE"


class StudyEvent(StrEnum):
    """What moves a study."""

    ARRIVE = "arrive"
    SETTLE = "settle"


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    RETRY = "RETRY"
    DEAD = "DEAD"
    SUPERSEDED = "SUPERSEDED"
    CANCELLED = "CANCELLED"


class JobEvent(StrEnum):
    """What moves a job."""

    CLAIM = "claim"
    FINISH = "finish"
    FAIL = "fail"
    DIE = "die"
    DRAIN = "drain"
    COME_DUE = "come_due"
    SUPERSEDE = "supersede"
    CANCEL = "cancel"
    REQUEUE = "requeue"


class DeliveryState(StrEnum):
    """Where one object stands on its way to one destination."""

    PENDING = "PENDING"
    SENDING = "SENDING"
    SENT = "SENT"
    CONFIRMED = "CONFIRMED"
    RETRY = "RETRY"
    DEAD = "DEAD"
    CANCELLED = "CANCELLED"


class DeliveryEvent(StrEnum):
    """What moves a delivery."""

    CLAIM = "claim"
    SEND = "send"
    CONFIRM = "confirm"
    FAIL = "fail"
    DIE = "die"
    COME_DUE = "come_due"
    CANCEL = "cancel"
    REQUEUE = "requeue"


_R, _RE = RevisionState, RevisionEvent
REVISION_TRANSITIONS: Final[Mapping[tuple[RevisionState, RevisionEvent], RevisionState]] = MappingProxyType(
    {
        (_R.RECEIVING, _RE.COMPLETE): _R.COMPLETE,
        (_R.COMPLETE, _RE.QUEUE): _R.QUEUED,
        (_R.COMPLETE, _RE.KEEP): _R.KEPT,
        (_R.COMPLETE, _RE.SUPERSEDE): _R.SUPERSEDED,
        (_R.QUEUED, _RE.CLAIM): _R.PROCESSING,
        (_R.QUEUED, _RE.KEEP): _R.KEPT,  # the operator cancelled the job
        (_R.QUEUED, _RE.SUPERSEDE): _R.SUPERSEDED,
        (_R.PROCESSING, _RE.RELEASE): _R.QUEUED,  # drained, or to be tried again
        (_R.PROCESSING, _RE.FINISH): _R.DONE,
        (_R.PROCESSING, _RE.DIE): _R.FAILED,
        (_R.PROCESSING, _RE.KEEP): _R.KEPT,
        (_R.PROCESSING, _RE.SUPERSEDE): _R.SUPERSEDED,
        (_R.DONE, _RE.REQUEUE): _R.QUEUED,
        (_R.DONE, _RE.SUPERSEDE): _R.SUPERSEDED,
        (_R.FAILED, _RE.REQUEUE): _R.QUEUED,
        (_R.FAILED, _RE.SUPERSEDE): _R.SUPERSEDED,
        (_R.KEPT, _RE.REQUEUE): _R.QUEUED,
        (_R.KEPT, _RE.SUPERSEDE): _R.SUPERSEDED,
    }
)

STUDY_TRANSITIONS: Final[Mapping[tuple[StudyState, StudyEvent], StudyState]] = MappingProxyType(
    {
        (StudyState.OPEN, StudyEvent.ARRIVE): StudyState.OPEN,
        (StudyState.OPEN, StudyEvent.SETTLE): StudyState.COMPLETE,
        (StudyState.COMPLETE, StudyEvent.ARRIVE): StudyState.OPEN,
        (StudyState.COMPLETE, StudyEvent.SETTLE): StudyState.COMPLETE,
    }
)

_J, _JE = JobState, JobEvent
JOB_TRANSITIONS: Final[Mapping[tuple[JobState, JobEvent], JobState]] = MappingProxyType(
    {
        (_J.QUEUED, _JE.CLAIM): _J.RUNNING,
        (_J.QUEUED, _JE.SUPERSEDE): _J.SUPERSEDED,
        (_J.QUEUED, _JE.CANCEL): _J.CANCELLED,
        (_J.RUNNING, _JE.FINISH): _J.DONE,
        (_J.RUNNING, _JE.FAIL): _J.RETRY,
        (_J.RUNNING, _JE.DIE): _J.DEAD,
        (_J.RUNNING, _JE.DRAIN): _J.QUEUED,
        (_J.RUNNING, _JE.SUPERSEDE): _J.SUPERSEDED,
        (_J.RUNNING, _JE.CANCEL): _J.CANCELLED,
        (_J.RETRY, _JE.COME_DUE): _J.QUEUED,
        (_J.RETRY, _JE.SUPERSEDE): _J.SUPERSEDED,
        (_J.RETRY, _JE.CANCEL): _J.CANCELLED,
        (_J.RETRY, _JE.REQUEUE): _J.QUEUED,
        (_J.DONE, _JE.REQUEUE): _J.QUEUED,
        (_J.DEAD, _JE.REQUEUE): _J.QUEUED,
        (_J.CANCELLED, _JE.REQUEUE): _J.QUEUED,
    }
)

_D, _DE = DeliveryState, DeliveryEvent
DELIVERY_TRANSITIONS: Final[Mapping[tuple[DeliveryState, DeliveryEvent], DeliveryState]] = MappingProxyType(
    {
        (_D.PENDING, _DE.CLAIM): _D.SENDING,
        (_D.PENDING, _DE.CANCEL): _D.CANCELLED,
        (_D.SENDING, _DE.SEND): _D.SENT,
        (_D.SENDING, _DE.FAIL): _D.RETRY,
        (_D.SENDING, _DE.DIE): _D.DEAD,
        (_D.SENDING, _DE.CANCEL): _D.CANCELLED,
        (_D.SENT, _DE.CONFIRM): _D.CONFIRMED,
        (_D.SENT, _DE.REQUEUE): _D.PENDING,
        (_D.CONFIRMED, _DE.REQUEUE): _D.PENDING,
        (_D.RETRY, _DE.COME_DUE): _D.PENDING,
        (_D.RETRY, _DE.CANCEL): _D.CANCELLED,
        (_D.RETRY, _DE.REQUEUE): _D.PENDING,
        (_D.DEAD, _DE.REQUEUE): _D.PENDING,
        (_D.CANCELLED, _DE.REQUEUE): _D.PENDING,
    }
)

_State = TypeVar("_State", bound=StrEnum)
_Event = TypeVar("_Event", bound=StrEnum)


def next_state(table: Mapping[tuple[_State, _Event], _State], state: _State, event: _Event) -> _State:
    """Return the state after ``event``.

    Raises
    ------
    WrongState
        If the table has no such pair: the caller asked for something that makes no sense here.
    """
    try:
        return table[state, event]
    except KeyError:
        raise WrongState(f"cannot {event.replace('_', ' ')} what is {state}") from None


class Verdict(StrEnum):
    """How sure the node is that a revision is whole."""

    COMPLETE = "COMPLETE"
    LIKELY = "LIKELY"
    SUSPECT = "SUSPECT"


class VolumeStatus(StrEnum):
    """What a volume is worth."""

    EXACT = "EXACT"
    REPAIRED = "REPAIRED"
    REFUSED = "REFUSED"


class LungStatus(StrEnum):
    """What a lung mask is worth; ordered from best to worst but for NOT_RUN."""

    OK = "OK"
    SUSPECT = "SUSPECT"
    TRUNCATED = "TRUNCATED"
    NO_LUNGS = "NO_LUNGS"
    NOT_RUN = "NOT_RUN"


class Severity(StrEnum):
    """How much an issue of a volume matters."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Issue:
    """One deviation from the ideal, and what was done about it.

    Parameters
    ----------
    code
        An upper-case word that scripts can match, such as ``MISSING_SLICES``.
    severity
        ``info`` changes nothing, ``warning`` changed the volume, ``error`` refused it.
    frames
        Indices of the slices concerned, in the order of the volume (empty: all of them).
    action
        What was done, in words.
    """

    code: str
    severity: Severity
    action: str
    frames: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class VolumeReport:
    """What became of one volume of a series: the line that ``process --json`` prints.

    ``volume`` counts from 1; 0 stands for a series without any volume.
    """

    study: str
    series: str
    volume: int
    status: VolumeStatus
    issues: tuple[Issue, ...]
    lungs: LungStatus
    reasons: tuple[str, ...]
    directory: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_rss_bytes: int = 0
    outputs: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """Return the record in the field names of the command line contract."""
        return {
            "study": self.study,
            "series": self.series,
            "volume": self.volume,
            "status": str(self.status),
            "issues": [
                {
                    "code": issue.code,
                    "severity": str(issue.severity),
                    "frames": list(issue.frames),
                    "action": issue.action,
                }
                for issue in self.issues
            ],
            "lungs": str(self.lungs),
            "reasons": list(self.reasons),
            "dir": self.directory,
            "seconds": dict(self.seconds),
            "peak_rss_bytes": self.peak_rss_bytes,
        }
