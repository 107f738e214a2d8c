"""What speaks for or against a series being whole: one frozen record for each signal, with its time and source."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class EvidenceKind(StrEnum):
    """The signals; what each is worth is decided in ``flow.completion``."""

    QUIET = "quiet"
    ASSOCIATION_OPEN = "association_open"
    ASSOCIATION_RELEASED = "association_released"
    ASSOCIATION_ABORTED = "association_aborted"
    IMAGES_IN_ACQUISITION = "images_in_acquisition"
    CONCATENATION_TOTAL = "concatenation_total"
    NUMBER_OF_FRAMES = "number_of_frames"
    INSTANCE_NUMBER_GAP = "instance_number_gap"
    GEOMETRY_GAP = "geometry_gap"
    MPPS_IN_PROGRESS = "mpps_in_progress"
    MPPS_COMPLETED = "mpps_completed"
    MPPS_DISCONTINUED = "mpps_discontinued"
    COMMITMENT_REQUEST = "commitment_request"
    AVAILABILITY_NOTICE = "availability_notice"
    QUERY_RESULT = "query_result"
    RETRIEVE_FINAL = "retrieve_final"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One signal about a series or a study.

    Parameters
    ----------
    kind
        Which signal.
    at
        When it came, seconds since 1970 in UTC.
    source
        Who gave it: the name of a peer, else an AE title.
    study, series
        UIDs; an empty series speaks of the whole study, both are empty where only instances are named (commitment).
    name
        What tells signals of one kind and source apart: MPPS or transaction UID; the same again replaces.
    count
        How many instances there are by it, None where it does not say.
    instances
        SOP Instance UIDs that it names, sorted; empty where it names none.
    failed
        Of a retrieve: how many sub-operations failed.
    modality
        Of an MPPS: its modality, else empty.
    """

    kind: EvidenceKind
    at: float
    source: str
    study: str = ""
    series: str = ""
    name: str = ""
    count: int | None = None
    instances: tuple[str, ...] = ()
    failed: int = 0
    modality: str = ""
