"""What a peer told beside its images: performed procedure steps, commitment requests, availability (PS3.4 F, J, R)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from ctnode.archive import timeline
from ctnode.archive.tree import Item, read_tree
from ctnode.words import BadInstance

STEP_STATUS: Final = 0x00400252
TRANSACTION: Final = 0x00081195
_MODALITY: Final = 0x00080060
_STUDY: Final = 0x0020000D
_SERIES: Final = 0x0020000E
_AVAILABILITY: Final = 0x00080056
_REFERENCED_CLASS: Final = 0x00081150
_REFERENCED_INSTANCE: Final = 0x00081155
_SCHEDULED_STEPS: Final = 0x00400270
_PERFORMED_SERIES: Final = 0x00400340
_REFERENCED_IMAGES: Final = 0x00081140
_REFERENCED_OTHERS: Final = 0x00400220
_REFERENCED_SERIES: Final = 0x00081115
_REFERENCED_SOPS: Final = 0x00081199

_VALUES: Final = frozenset(
    {STEP_STATUS, TRANSACTION, _MODALITY, _STUDY, _SERIES, _AVAILABILITY, _REFERENCED_CLASS, _REFERENCED_INSTANCE}
)
_SEQUENCES: Final = frozenset(
    {_SCHEDULED_STEPS, _PERFORMED_SERIES, _REFERENCED_IMAGES, _REFERENCED_OTHERS, _REFERENCED_SERIES, _REFERENCED_SOPS}
)


class NoticeKind(StrEnum):
    """Which service a request belongs to; the words of the journal."""

    STEP = "mpps"
    COMMITMENT = "commitment"
    # What we asked for, answered (PS3.4 J.3.3).
    REPORT = "commitment report"
    AVAILABILITY = "availability"


@dataclass(frozen=True, slots=True)
class Reference:
    """One instance that a request names."""

    sop_class: str
    sop_instance: str


@dataclass(frozen=True, slots=True)
class ListedSeries:
    """The instances that a request names of one series; ``series`` is empty where it does not say."""

    series: str
    references: tuple[Reference, ...]


@dataclass(frozen=True, slots=True)
class Notice:
    """A request other than C-STORE, as the journal has it.

    Parameters
    ----------
    kind
        The service.
    uid
        Of the procedure step or notification, or the transaction UID.
    status
        That of the procedure step: ``IN PROGRESS``, ``COMPLETED``, ``DISCONTINUED``; empty for the others.
    study
        Its study, where it says so.
    listed
        What it names.
    at
        Seconds since 1970.
    modality
        That of the procedure step, which only its beginning tells.
    """

    kind: NoticeKind
    uid: str
    status: str
    study: str
    listed: tuple[ListedSeries, ...]
    at: float
    modality: str = ""

    @property
    def references(self) -> tuple[Reference, ...]:
        """Return all that is named, each once, in its order."""
        return tuple(dict.fromkeys(reference for series in self.listed for reference in series.references))


def journal_fields(uid: str, operation: str, transfer_syntax: str, data_set: bytes) -> dict[str, object]:
    """Return what the journal keeps of a request."""
    return {
        "uid": uid,
        "operation": operation,
        "transfer_syntax": transfer_syntax,
        "data_set": base64.b64encode(data_set).decode(),
    }


def from_journal(record: Mapping[str, Any]) -> Notice | None:
    """Return the notice of a line of the journal; None for lines of another kind or that cannot be read."""
    try:
        kind = NoticeKind(str(record.get("what")))
        item = parse(base64.b64decode(str(record["data_set"]), validate=True), str(record["transfer_syntax"]))
        return Notice(
            kind=kind,
            uid=str(record["uid"]),
            status=item.text(STEP_STATUS) if kind is NoticeKind.STEP else "",
            study=study_of(item),
            listed=listed_in(item, kind),
            at=timeline.seconds(str(record["at"])),
            modality=item.text(_MODALITY)[:16] if kind is NoticeKind.STEP else "",
        )
    except (KeyError, ValueError, binascii.Error, BadInstance):
        return None


def parse(data_set: bytes, transfer_syntax: str) -> Item:
    """Read the parts of a request that the node acts on.

    Raises
    ------
    BadInstance
        If it is no data set.
    """
    return read_tree(data_set, transfer_syntax, _VALUES, _SEQUENCES)


def study_of(item: Item) -> str:
    """Return the study that a request names first."""
    steps = item.items(_SCHEDULED_STEPS)
    return item.text(_STUDY) or (steps[0].text(_STUDY) if steps else "")


def listed_in(item: Item, kind: NoticeKind) -> tuple[ListedSeries, ...]:
    """Return what a request lists, by series."""
    if kind in {NoticeKind.COMMITMENT, NoticeKind.REPORT}:
        return (ListedSeries("", _references(item.items(_REFERENCED_SOPS))),)
    outer = _PERFORMED_SERIES if kind is NoticeKind.STEP else _REFERENCED_SERIES
    inner = (_REFERENCED_IMAGES, _REFERENCED_OTHERS) if kind is NoticeKind.STEP else (_REFERENCED_SOPS,)
    return tuple(
        ListedSeries(series.text(_SERIES), _references(reference for tag in inner for reference in series.items(tag)))
        for series in item.items(outer)
    )


def _references(items: Iterable[Item]) -> tuple[Reference, ...]:
    return tuple(
        Reference(item.text(_REFERENCED_CLASS), item.text(_REFERENCED_INSTANCE))
        for item in items
        if item.text(_REFERENCED_INSTANCE)
    )
