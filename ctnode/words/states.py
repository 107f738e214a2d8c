"""The states of revisions, studies, jobs and deliveries, and the tables that move them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, TypeVar

from ctnode.words.errors import WrongState


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
    RELEASE = "release"
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
        (_D.PENDING, _DE.DIE): _D.DEAD,  # its destination has failed for too long
        (_D.SENDING, _DE.RELEASE): _D.PENDING,  # not its turn yet: the destination failed before it
        (_D.SENDING, _DE.SEND): _D.SENT,
        (_D.SENDING, _DE.FAIL): _D.RETRY,
        (_D.SENDING, _DE.DIE): _D.DEAD,
        (_D.SENDING, _DE.CANCEL): _D.CANCELLED,
        (_D.SENT, _DE.CONFIRM): _D.CONFIRMED,
        (_D.SENT, _DE.REQUEUE): _D.PENDING,
        (_D.SENT, _DE.DIE): _D.DEAD,  # taken again and again, and never there
        (_D.CONFIRMED, _DE.REQUEUE): _D.PENDING,
        (_D.RETRY, _DE.COME_DUE): _D.PENDING,
        (_D.RETRY, _DE.CANCEL): _D.CANCELLED,
        (_D.RETRY, _DE.DIE): _D.DEAD,
        (_D.RETRY, _DE.REQUEUE): _D.PENDING,
        (_D.DEAD, _DE.REQUEUE): _D.PENDING,
        (_D.DEAD, _DE.CANCEL): _D.CANCELLED,  # somebody has seen it and lets it be
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
