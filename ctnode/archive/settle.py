"""From journal to store: scan, read, commit the row, then rename; nothing is lost in between.

A file is noted before it is touched (``archive.trial``). What failed twice goes to quarantine with a FAILED row; every
other file is settled in the order of its arrival. A batch that ended with its keeper is tried again one file at a time,
so that the file that did it becomes known and its neighbours go on.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog

from ctnode.archive import associations, timeline
from ctnode.archive.associations import Association, Ending
from ctnode.archive.header import read_header, read_meta
from ctnode.archive.hearing import Hearing, Take
from ctnode.archive.incoming import HEAD_BYTES
from ctnode.archive.index import Arrival, Index, Placement
from ctnode.archive.noticing import take_notice
from ctnode.archive.rooms import KEPT_SUFFIX, OURS, PART_SUFFIX, is_begun, recover
from ctnode.archive.spool import JOURNAL_NAME
from ctnode.archive.trial import Trial
from ctnode.ops import log
from ctnode.ops.durable import crash_point, fsync_directory, make_directories
from ctnode.words import BadInstance

Ended = tuple[Association, Ending]

BATCH: Final = 500
MAX_ATTEMPTS: Final = 2
# So long a receiver may take from making a journal's folder to its first record.
UNBORN_S: Final = 60.0

# The names that the spool gives; whatever else lies in incoming/ belongs to somebody else and is left alone.
_JOURNAL: Final = re.compile(r"[0-9]{19}-[0-9a-f]{8}")
_ARRIVAL: Final = re.compile(r"[0-9]{19}-[0-9]{6,}" + re.escape(KEPT_SUFFIX))


@dataclass(frozen=True, slots=True)
class Open:
    """An association that is still open, and whether it is in the middle of a C-STORE."""

    association_id: int
    last_arrival: float
    is_storing: bool


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over the journal found.

    ``is_whole`` is false when the batch was full and more waits: such a scan proves nothing about quiet.
    """

    settled: tuple[Placement, ...]
    open_associations: tuple[Open, ...]
    is_whole: bool


@dataclass(slots=True)
class _Known:
    association: Association
    last_arrival: float


@dataclass(frozen=True, slots=True)
class _Look:
    """A journal as it was found: the lock was looked at before the files.

    So an association that ends in between leaves its files for the next scan.
    """

    directory: Path
    is_open: bool
    names: tuple[str, ...]
    is_storing: bool
    doubtful: tuple[str, ...]


class Settler:
    """Moves what the journal holds into the store; one in the node, inside the keeper."""

    def __init__(
        self, index: Index, take: Take = take_notice, on_ended: Callable[[Sequence[Ended]], None] | None = None
    ) -> None:
        self.index = index
        self._on_ended = on_ended
        self._hearing = Hearing(index.database, take)
        self.layout = index.layout
        self._trial = Trial(index.layout.run)
        self._is_started = False
        self._known: dict[str, _Known] = {}
        self._left: set[str] = set()
        self._alone: set[str] = set()
        self._log: structlog.typing.FilteringBoundLogger = log.get()

    def scan(self) -> Scan:
        """Settle up to one batch and tell what is still open."""
        if not self._is_started:
            self._blame_left_over()
            self._is_started = True
        journals = tuple(self._journals())
        self._hearing.listen(journals)
        looks = tuple(map(_look, journals))
        self._learn(look for look in looks if look.directory.name not in self._known)
        files: list[tuple[Path, _Known]] = []
        opened: list[Open] = []
        ended: list[tuple[Path, _Known]] = []
        whole = True
        for look in looks:
            known = self._known.get(look.directory.name)
            if known is None:
                continue
            for name in look.doubtful:
                self._quarantine(look.directory / name, known, "its receiver ended, and its digest does not agree")
            room = BATCH - len(files)
            whole = whole and len(look.names) <= room
            files += [(look.directory / name, known) for name in look.names[:room]]
            if look.names:
                # Less than before where somebody has set the clock back.
                known.last_arrival = _arrival_s(look.names[-1])
            if look.is_open:
                opened.append(Open(known.association.id, known.last_arrival, look.is_storing))
            elif not look.names:
                ended.append((look.directory, known))
        placements = self._settle(files) if files else ()
        if whole:
            self._hearing.settle({name: known.association for name, known in self._known.items()})
        self._close([one for one in ended if self._hearing.is_done(one[0])])
        return Scan(placements, tuple(opened), whole)

    def _blame_left_over(self) -> None:
        """Count an attempt at each file that an earlier keeper died with and that is still there."""
        names = [name for name in self._trial.left_over() if (self.layout.incoming / name).exists()]
        if names:
            self.index.note_attempts(names)
        self._trial.note(())

    def _journals(self) -> Iterator[Path]:
        with os.scandir(self.layout.incoming) as entries:
            names = [
                entry.name
                for entry in entries
                if _JOURNAL.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            ]
        return (self.layout.incoming / name for name in sorted(names) if name not in self._left)

    def _learn(self, looks: Iterable[_Look]) -> None:
        """Give each new association its row, all in one transaction."""
        born = [(look.directory, *opening) for look in looks if (opening := self._opening(look)) is not None]
        if not born:
            return
        database = self.index.database
        with database.immediate():
            for directory, record, at in born:
                association = associations.begin(database, directory.name, record, at)
                # An earlier keeper may have settled what it brought so far.
                last_arrival = associations.last_arrival(database, association.id, at)
                self._known[directory.name] = _Known(association, last_arrival)

    def _opening(self, look: _Look) -> tuple[dict[str, object], float] | None:
        """Return the first record of a journal and its time; None while there is nothing to begin with."""
        opened, at = _first_record(look.directory)
        if opened is not None:
            return opened, at
        if look.is_open or _is_open(look.directory):
            return None
        # It may have begun and ended since the first look.
        opened, at = _first_record(look.directory)
        if opened is not None:
            return opened, at
        if not look.names:
            self._drop_unborn(look.directory)
            return None
        return {}, _arrival_s(look.directory.name)

    def _drop_unborn(self, directory: Path) -> None:
        """Remove a journal whose first record never reached the disk; it cannot hold an acknowledged instance."""
        if time.time() - _arrival_s(directory.name) > UNBORN_S:
            self._remove(directory)

    def _settle(self, files: Sequence[tuple[Path, _Known]]) -> tuple[Placement, ...]:
        tried = self.index.attempts()
        if not tried:
            return self._settle_together(files)
        fresh = [(path, known) for path, known in files if _name(path) not in tried]
        placements = self._settle_together(fresh)
        for path, known in files:
            if _name(path) in tried:
                placements += self._settle_alone(path, known)
        return placements

    def _settle_alone(self, path: Path, known: _Known) -> tuple[Placement, ...]:
        """Settle one file of a batch that did not end well; one that ended its keeper twice is not touched again."""
        name = _alone(path)
        if name not in self._alone:
            # Once in each process: what counts is how many of them did not survive it.
            self._alone.add(name)
            deaths = self.index.note_attempts([name])[name] - 1
            if deaths >= MAX_ATTEMPTS:
                self._quarantine(path, known, f"reading it ended the keeper {deaths} times")
                return ()
        return self._settle_together([(path, known)], tried=[_name(path), name])

    def _settle_together(
        self, files: Sequence[tuple[Path, _Known]], *, tried: Sequence[str] = ()
    ) -> tuple[Placement, ...]:
        # Once the rows are committed nobody's death is the fault of these files any more.
        with self._trial.of([] if tried else [_name(path) for path, _ in files]):
            arrivals = self._read(files)
            placements = self.index.take(arrivals, tried) if arrivals else ()
        if not placements:
            return ()
        crash_point("keeper.between-commit-and-rename")
        self._move(placements)
        self._alone.difference_update(tried)
        return placements

    def _read(self, files: Sequence[tuple[Path, _Known]]) -> list[Arrival]:
        arrivals: list[Arrival] = []
        for path, known in files:
            try:
                header = read_header(path)
            except FileNotFoundError:
                continue
            except (BadInstance, OSError) as error:
                if isinstance(error, BadInstance) or error.errno not in OURS:
                    self._failed(path, known, error)
                continue
            arrivals.append(Arrival(path, _arrival_s(path.name), known.association, header))
        return arrivals

    def _failed(self, path: Path, known: _Known, error: Exception) -> None:
        name = _name(path)
        attempts = self.index.note_attempts([name])[name]
        reason = str(error) if isinstance(error, BadInstance) else f"cannot be read: {type(error).__name__}"
        self._log.warning(
            "instance not settled", association=path.parent.name, path=path.name, attempt=attempts, reason=reason
        )
        if attempts >= MAX_ATTEMPTS:
            self._quarantine(path, known, reason)

    def _quarantine(self, path: Path, known: _Known, reason: str) -> None:
        quarantined = self.layout.quarantine / f"{path.parent.name}-{path.name}"
        self.index.quarantine(quarantined, known.association.name, reason)
        path.rename(quarantined)
        fsync_directory(self.layout.quarantine)
        fsync_directory(path.parent)
        self.index.forget_attempts([_name(path), _alone(path)])

    def _move(self, placements: Sequence[Placement]) -> None:
        """Rename each settled file to its row's path; drop what the store has already."""
        touched: set[Path] = set()
        for placement in placements:
            if placement.is_dropped:
                placement.source.unlink(missing_ok=True)
            elif placement.final.exists():
                self._drop(placement)
            else:
                make_directories(placement.final.parent, below=self.layout.store)
                placement.source.rename(placement.final)
                touched.add(placement.final.parent)
                crash_point("keeper.after-rename")
        for directory in sorted(touched):
            fsync_directory(directory)
        for directory in sorted({placement.source.parent for placement in placements}):
            fsync_directory(directory)

    def _drop(self, placement: Placement) -> None:
        """Remove an arrival that the store holds already; should it hold other bytes there, keep both."""
        arrived = _identity(placement.source)
        if arrived is not None and arrived == _identity(placement.final):
            placement.source.unlink(missing_ok=True)
            return
        quarantined = self.layout.quarantine / f"{placement.source.parent.name}-{placement.source.name}"
        reason = "the store holds other bytes under this name"
        self.index.quarantine(quarantined, placement.source.parent.name, reason)
        placement.source.rename(quarantined)
        fsync_directory(self.layout.quarantine)
        name = placement.source.parent.name
        self._log.error("instance not settled", association=name, path=placement.source.name, reason=reason)

    def _close(self, ended: Sequence[tuple[Path, _Known]]) -> None:
        """Write down how associations ended, all in one transaction, and remove their empty journals."""
        if not ended:
            return
        database = self.index.database
        told: list[Ended] = []
        with database.immediate():
            for directory, known in ended:
                ending = associations.ending_of(_records(directory))
                told.append((known.association, ending if ending.at else replace(ending, at=known.last_arrival)))
                associations.end(database, *told[-1])
        if self._on_ended is not None:
            # Before the journals go: after a crash it is told again rather than not at all.
            self._on_ended(told)
        for directory, _ in ended:
            self._remove(directory)
            self._hearing.forget(directory.name)
            del self._known[directory.name]

    def _remove(self, directory: Path) -> None:
        """Remove an ended journal; one with foreign files in it is left where it is and not looked at again."""
        try:
            _remove_journal(directory)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.EPERM}:
                raise
            self._left.add(directory.name)
            self._log.warning(
                "journal not removed", association=directory.name, reason="it holds files that are not ours"
            )


def _name(path: Path) -> str:
    """Return how attempts at a file are counted."""
    return f"{path.parent.name}/{path.name}"


def _alone(path: Path) -> str:
    """Return how attempts at a file by itself are counted."""
    return f"{_name(path)} alone"


def _identity(path: Path) -> tuple[bytes, str] | None:
    try:
        with path.open("rb") as file:
            meta = read_meta(file.read(HEAD_BYTES))
    except BadInstance:
        return None
    return (meta.own_digest, meta.transfer_syntax) if meta is not None else None


def _look(directory: Path) -> _Look:
    is_open = _is_open(directory)
    names = os.listdir(directory)
    kept = sorted(name for name in names if _ARRIVAL.fullmatch(name))
    parts = [name for name in names if name.endswith(PART_SUFFIX)]
    if is_open:
        return _Look(directory, True, tuple(kept), any(is_begun(directory, part) for part in parts), ())
    complete, doubtful = recover(directory, parts)
    return _Look(directory, False, tuple(sorted(kept + complete)), False, tuple(doubtful))


def _is_open(directory: Path) -> bool:
    try:
        descriptor = os.open(directory / JOURNAL_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _records(directory: Path) -> list[dict[str, object]]:
    try:
        lines = (directory / JOURNAL_NAME).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            # A line cut by a crash; what was acknowledged does not rest on it.
            continue
    return records


def _first_record(directory: Path) -> tuple[dict[str, object] | None, float]:
    records = _records(directory)
    if not records or records[0].get("what") != "opened":
        return None, 0.0
    return records[0], timeline.seconds(str(records[0]["at"]))


def _arrival_s(name: str) -> float:
    """Return the time in a file or journal name: nanoseconds since 1970 before the first hyphen."""
    return int(name.partition("-")[0]) / 1e9


def _remove_journal(directory: Path) -> None:
    (directory / JOURNAL_NAME).unlink(missing_ok=True)
    directory.rmdir()
