"""What is said of revisions, volumes and lungs, and the records that carry it between rooms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self


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

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Return the report that ``as_json`` made ``record`` of; ``outputs`` may stand beside it."""
        issues = (
            Issue(issue["code"], Severity(issue["severity"]), issue["action"], tuple(issue["frames"]))
            for issue in record["issues"]
        )
        return cls(
            study=record["study"],
            series=record["series"],
            volume=record["volume"],
            status=VolumeStatus(record["status"]),
            issues=tuple(issues),
            lungs=LungStatus(record["lungs"]),
            reasons=tuple(record["reasons"]),
            directory=record["dir"],
            seconds=record["seconds"],
            peak_rss_bytes=record["peak_rss_bytes"],
            outputs=tuple(record.get("outputs", ())),
        )
