"""Asking a peer what it holds of a series, and fetching what is missing: C-FIND, C-MOVE, C-GET (PS3.4 C)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import build_context, build_role

from ctnode.wire.calling import Callee, associated, status_of
from ctnode.wire.contexts import SERVICE_SYNTAXES, STORAGE_SYNTAXES
from ctnode.words import CtnodeError, DimseStatus

FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
MOVE: Final = "1.2.840.10008.5.1.4.1.2.2.2"
GET: Final = "1.2.840.10008.5.1.4.1.2.2.3"
_PENDING: Final = frozenset({0xFF00, 0xFF01})
# No series of one acquisition is larger; who answers more than this answers another question.
ANSWERS_LIMIT: Final = 100_000
# PS3.5 6.2: a value of UIDs may be long, but not every archive takes thousands of them.
UIDS_AT_ONCE: Final = 256
# PS3.8 9.3.2.2: 128 contexts, one of them for the request.
CLASSES_LIMIT: Final = 127


class QueryFault(Exception):
    """The peer gave no answer to the question."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for: a series, or instances of it where ``instances`` names some."""

    study: str
    series: str
    instances: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """What the peer holds of a series.

    ``instances`` is None where only the number was asked for; ``classes`` are the SOP classes that it named.
    """

    count: int
    instances: frozenset[str] | None
    classes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Retrieved:
    """The final response of a C-MOVE or C-GET (PS3.4 C.4.2.1.6): its status, and sub-operations by outcome."""

    status: int
    completed: int
    failed: int
    warning: int

    @property
    def is_whole(self) -> bool:
        """Return whether everything was sent."""
        return self.status == 0 and not self.failed


class Keep(Protocol):
    """Keeps one instance that a C-GET brings; raises CtnodeError where it cannot."""

    def __call__(self, sop_class: str, sop_instance: str, transfer_syntax: str, data_set: bytes) -> None:
        """Return once it is durable."""


def find(callee: Callee, calling_ae: str, wanted: Wanted, *, is_exact: bool, timeout_s: float) -> Found:
    """Ask for the instances of a series (C-FIND, Study Root).

    Parameters
    ----------
    is_exact
        Whether to ask for each instance (IMAGE level), or for their number (SERIES level).
    timeout_s
        Seconds for each answer.

    Raises
    ------
    QueryFault
        If there is no answer, or one that says that it failed.
    """
    identifier = _identifier(wanted, "IMAGE" if is_exact else "SERIES")
    if is_exact:
        identifier.SOPInstanceUID = ""
        identifier.SOPClassUID = ""
    else:
        identifier.NumberOfSeriesRelatedInstances = ""
    answers: list[Dataset] = []
    with associated(callee, calling_ae, [build_context(FIND, list(SERVICE_SYNTAXES))], timeout_s) as association:
        for status, answer in _established(association).send_c_find(identifier, FIND):
            code = status_of(status)
            if code is None:
                raise QueryFault("no answer to C-FIND")
            if code in _PENDING and answer is not None:
                answers.append(answer)
                if len(answers) > ANSWERS_LIMIT:
                    raise QueryFault(f"more than {ANSWERS_LIMIT} answers to C-FIND")
            elif code not in _PENDING and code != 0:
                raise QueryFault(f"C-FIND ended with {code:04X}")
    # Some archives answer with more than was asked for.
    ours = [answer for answer in answers if str(answer.get("SeriesInstanceUID", wanted.series)) == wanted.series]
    if is_exact:
        instances = frozenset(str(answer.SOPInstanceUID) for answer in ours if answer.get("SOPInstanceUID"))
        classes = frozenset(str(answer.SOPClassUID) for answer in ours if answer.get("SOPClassUID"))
        return Found(len(instances), instances, classes)
    counts = [int(answer.NumberOfSeriesRelatedInstances) for answer in ours if _has_count(answer)]
    if ours and not counts:
        raise QueryFault("the answer does not say how many instances there are")
    return Found(max(counts, default=0), None, frozenset())


def move(callee: Callee, calling_ae: str, wanted: Wanted, timeout_s: float) -> Retrieved:
    """Let the peer send to us what is missing (C-MOVE); it comes by our own port.

    Raises
    ------
    QueryFault
        If there is no answer.
    """
    with associated(callee, calling_ae, [build_context(MOVE, list(SERVICE_SYNTAXES))], timeout_s) as association:
        established = _established(association)
        return _in_parts(established.send_c_move(_selected(part), calling_ae, MOVE) for part in _parts(wanted))


def get(
    callee: Callee, calling_ae: str, wanted: Wanted, classes: Collection[str], keep: Keep, timeout_s: float
) -> Retrieved:
    """Fetch what is missing on our own association (C-GET), each instance kept before it is answered.

    Raises
    ------
    QueryFault
        If there is no answer.
    """
    chosen = sorted(classes)[:CLASSES_LIMIT]
    contexts = [
        build_context(GET, list(SERVICE_SYNTAXES)),
        *(build_context(sop_class, list(STORAGE_SYNTAXES)) for sop_class in chosen),
    ]

    def on_store(event: evt.Event) -> int:
        request = event.request
        assert isinstance(request, C_STORE)
        try:
            data = request.DataSet.getvalue() if request.DataSet is not None else b""
            names = (str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
            keep(*names, str(event.context.transfer_syntax), data)
        except CtnodeError as error:
            return int(error.dimse_status)
        except Exception:  # noqa: BLE001 - one instance that breaks our own code costs itself only
            return int(DimseStatus.PROCESSING_FAILURE)
        return int(DimseStatus.SUCCESS)

    with associated(
        callee,
        calling_ae,
        contexts,
        timeout_s,
        roles=[build_role(sop_class, scp_role=True) for sop_class in chosen],
        handlers=[(evt.EVT_C_STORE, on_store)],
    ) as association:
        established = _established(association)
        return _in_parts(established.send_c_get(_selected(part), GET) for part in _parts(wanted))


def _established(association: Association | str) -> Association:
    if isinstance(association, str):
        raise QueryFault(association)
    if not association.accepted_contexts:
        raise QueryFault("the peer has no query and retrieve service")
    return association


def _identifier(wanted: Wanted, level: str) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    identifier.StudyInstanceUID = wanted.study
    identifier.SeriesInstanceUID = wanted.series
    return identifier


def _selected(wanted: Wanted) -> Dataset:
    identifier = _identifier(wanted, "IMAGE" if wanted.instances else "SERIES")
    if wanted.instances:
        identifier.SOPInstanceUID = list(wanted.instances)
    return identifier


def _parts(wanted: Wanted) -> Iterable[Wanted]:
    if not wanted.instances:
        return (wanted,)
    return (
        Wanted(wanted.study, wanted.series, wanted.instances[start : start + UIDS_AT_ONCE])
        for start in range(0, len(wanted.instances), UIDS_AT_ONCE)
    )


def _in_parts(parts: Iterable[Iterable[tuple[Dataset, Dataset | None]]]) -> Retrieved:
    """Add up the final responses; the first that fails ends it."""
    total = Retrieved(0, 0, 0, 0)
    for responses in parts:
        last = Dataset()
        for status, _ in responses:
            last = status
            if status_of(status) is None:
                raise QueryFault("no answer to the request for instances")
        total = Retrieved(
            status_of(last) or 0,
            total.completed + int(last.get("NumberOfCompletedSuboperations", 0) or 0),
            total.failed + int(last.get("NumberOfFailedSuboperations", 0) or 0),
            total.warning + int(last.get("NumberOfWarningSuboperations", 0) or 0),
        )
        if total.status != 0:
            return total
    return total


def _has_count(answer: Dataset) -> bool:
    return str(answer.get("NumberOfSeriesRelatedInstances", "") or "").isdigit()
