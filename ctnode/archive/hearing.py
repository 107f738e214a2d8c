"""What journals say beside their instances, heard in the right order.

A request to vouch for instances, or a list of them, speaks of what came before it. So lines are read before the scan
lists the files of any journal, and count only once that scan has settled all that it found.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ctnode.archive.associations import Association
from ctnode.archive.database import Database
from ctnode.archive.notices import Notice, from_journal
from ctnode.archive.spool import JOURNAL_NAME

# Called inside a transaction for each notice, once.
Take = Callable[[Database, Association, Notice], None]


@dataclass(frozen=True, slots=True)
class _Heard:
    """A notice and where its line ends in the journal of an association."""

    journal: str
    end: int
    notice: Notice


class Hearing:
    """Reads the journals of open and ended associations, each line once.

    Parameters
    ----------
    database
        Where it stands how far a journal was heard, so that a restart hears nothing twice.
    take
        What becomes of a notice.
    """

    def __init__(self, database: Database, take: Take) -> None:
        self._database = database
        self._take = take
        self._read: dict[str, int] = {}
        self._waiting: list[_Heard] = []

    def listen(self, journals: Iterable[Path]) -> None:
        """Read what journals have gained; to be called before their files are listed."""
        for directory in journals:
            self._waiting += self._gained(directory)

    def settle(self, associations: Mapping[str, Association]) -> None:
        """Hand on what was heard before the scan that has just settled everything."""
        known = [heard for heard in self._waiting if heard.journal in associations]
        if not known:
            return
        with self._database.immediate():
            for heard in known:
                association = associations[heard.journal]
                changed = self._database.execute(
                    "UPDATE associations SET noticed_bytes = ? WHERE id = ? AND noticed_bytes < ?",
                    (heard.end, association.id, heard.end),
                )
                if changed.rowcount:
                    self._take(self._database, association, heard.notice)
        self._waiting = [heard for heard in self._waiting if heard.journal not in associations]

    def is_done(self, directory: Path) -> bool:
        """Return whether nothing of a journal whose association has ended is still to be handed on."""
        self._waiting += self._gained(directory)
        return all(heard.journal != directory.name for heard in self._waiting)

    def forget(self, journal: str) -> None:
        """Forget a journal that is gone."""
        self._read.pop(journal, None)

    def _gained(self, directory: Path) -> list[_Heard]:
        start = self._read.get(directory.name, 0)
        try:
            with (directory / JOURNAL_NAME).open("rb") as file:
                file.seek(start)
                content = file.read()
        except FileNotFoundError:
            return []
        found, position = [], 0
        # A line without an end is being written, or was cut by a crash and never answered.
        while (end := content.find(b"\n", position)) >= 0:
            notice = _notice(content[position:end])
            position = end + 1
            if notice is not None:
                found.append(_Heard(directory.name, start + position, notice))
        self._read[directory.name] = start + position
        return found


def _notice(line: bytes) -> Notice | None:
    if b'"data_set"' not in line:
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return from_journal(record) if isinstance(record, dict) else None
