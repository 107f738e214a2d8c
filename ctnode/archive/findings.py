"""What the pipeline said of each volume of a revision: one row for a volume, one for each of its issues.

The same stands in the ``ct.json`` of the results folder, from which the rows can be made again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from ctnode.archive.database import Database
from ctnode.archive.layout import Layout
from ctnode.words import Issue, LungStatus, Severity, VolumeStatus

SIDECARS: Final = re.compile(r"ct(_[0-9]+)?\.json")


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one volume; ``volume`` counts from 1, 0 stands for a series without any."""

    volume: int
    status: VolumeStatus
    lungs: LungStatus
    reasons: tuple[str, ...]
    issues: tuple[Issue, ...]

    @classmethod
    def of_report(cls, report: Mapping[str, Any]) -> Self:
        """Return what a report (``VolumeReport.as_json``) says.

        Raises
        ------
        KeyError, TypeError, ValueError
            If it is no report.
        """
        return cls(
            volume=int(report["volume"]),
            status=VolumeStatus(report["status"]),
            lungs=LungStatus(report["lungs"]),
            reasons=tuple(map(str, report["reasons"])),
            issues=tuple(
                Issue(issue["code"], Severity(issue["severity"]), issue["action"], tuple(map(int, issue["frames"])))
                for issue in report["issues"]
            ),
        )

    @classmethod
    def of_sidecar(cls, path: Path) -> Self:
        """Return what a ``ct.json`` says; raises what ``of_report`` raises, and OSError."""
        own = json.loads(path.read_bytes())["ctnode"]
        lungs = own.get("lungs", {"status": LungStatus.NOT_RUN, "reasons": []})
        return cls.of_report({**own, "lungs": lungs["status"], "reasons": lungs["reasons"]})


def record(database: Database, revision_id: int, found: Sequence[Finding]) -> None:
    """Put ``found`` in place of what was known of a revision, inside the current transaction."""
    for table in ("issues", "volumes"):
        database.execute(f"DELETE FROM {table} WHERE revision_id = ?", (revision_id,))
    for finding in found:
        database.execute(
            "INSERT INTO volumes (revision_id, volume, status, lungs, reasons) VALUES (?, ?, ?, ?, ?)",
            (revision_id, finding.volume, finding.status, finding.lungs, json.dumps(finding.reasons)),
        )
        for place, issue in enumerate(finding.issues):
            database.execute(
                "INSERT INTO issues (revision_id, volume, place, code, severity, frames, action)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    revision_id, finding.volume, place, issue.code, issue.severity, json.dumps(issue.frames),
                    issue.action,
                ),
            )  # fmt: skip


def of_revision(database: Database, revision_id: int) -> tuple[Finding, ...]:
    """Return what is known of a revision, volume by volume."""
    volumes = database.rows(
        "SELECT volume, status, lungs, reasons FROM volumes WHERE revision_id = ? ORDER BY volume", (revision_id,)
    )
    return tuple(
        Finding(
            volume=row["volume"],
            status=VolumeStatus(row["status"]),
            lungs=LungStatus(row["lungs"]),
            reasons=tuple(json.loads(row["reasons"])),
            issues=_issues(database, revision_id, row["volume"]),
        )
        for row in volumes
    )


def _issues(database: Database, revision_id: int, volume: int) -> tuple[Issue, ...]:
    rows = database.rows(
        "SELECT code, severity, frames, action FROM issues WHERE revision_id = ? AND volume = ? ORDER BY place",
        (revision_id, volume),
    )
    return tuple(
        Issue(row["code"], Severity(row["severity"]), row["action"], tuple(json.loads(row["frames"]))) for row in rows
    )


def rebuild(database: Database, layout: Layout) -> tuple[str, ...]:
    """Give each revision that has a results folder and no rows the rows that its ``ct.json`` tells.

    Returns
    -------
    tuple of str
        The folders whose ``ct.json`` cannot be read.
    """
    unreadable = []
    for revision_id, n, study, uid, split in database.execute(
        "SELECT revisions.id, revisions.n, studies.uid, series.uid, series.split FROM revisions"
        " JOIN series ON series.id = revisions.series_id JOIN studies ON studies.id = series.study_id"
        " WHERE NOT EXISTS (SELECT 1 FROM volumes WHERE volumes.revision_id = revisions.id)"
    ).fetchall():
        folder = layout.result_directory(study, uid, split, n)
        sidecars = [path for path in folder.glob("ct*.json") if SIDECARS.fullmatch(path.name)]
        try:
            found = [Finding.of_sidecar(path) for path in sidecars]
        except (OSError, KeyError, TypeError, ValueError, AttributeError):
            unreadable.append(str(folder))
            continue
        with database.immediate():
            record(database, revision_id, found)
    return tuple(unreadable)
