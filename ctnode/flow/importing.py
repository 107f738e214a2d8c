"""Files through the front door: Part 10 files, bare data sets and zips become journal entries like any C-STORE.

Runs in the process of ``ctnode import`` or in a child of the keeper, never in the keeper itself: a foreign file is
untrusted. The data set is untouched; only file meta is ours.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from ctnode.archive.doorbell import Doorbell
from ctnode.archive.elements import EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE, ShortBuffer
from ctnode.archive.header import Uids, read_meta, read_uids
from ctnode.archive.incoming import HEAD_BYTES
from ctnode.archive.layout import Layout
from ctnode.archive.part10 import Opened
from ctnode.archive.spool import Journal, Spool
from ctnode.archive.suspect import mark, marked
from ctnode.flow.unpack import is_part10
from ctnode.ops.durable import fsync_directory
from ctnode.words import BadInstance, StorageError

PIECE_BYTES: Final = 1 << 20
REASON_LIMIT: Final = 20
ZIP_ENTRY_LIMIT: Final = 100_000
ZIP_TOTAL_LIMIT_BYTES: Final = 64 << 30
# A member may become so large anyway, and beyond it so many times its packed size.
ZIP_FREE_BYTES: Final = 10 << 20
ZIP_RATIO: Final = 200
_DAMAGED: Final = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError,
    zlib.error, lzma.LZMAError, struct.error,
)  # fmt: skip
_DICOMDIR_CLASS: Final = "1.2.840.10008.1.3.10"


class Outcome(StrEnum):
    """What became of one file."""

    IMPORTED = "imported"
    PASSED_OVER = "passed over"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Imported:
    """One file (``zip`` members as ``archive.zip!member``) and what became of it."""

    name: str
    outcome: Outcome
    reason: str = ""


def import_paths(layout: Layout, paths: Iterable[Path], *, door: str) -> Iterator[Imported]:
    """Import files, folders and zips; each file is durable in the journal when its record is yielded.

    Raises
    ------
    StorageError
        If the storage takes no more; what was yielded before is kept.
    """
    address = f"file:{door}"
    spool = Spool(layout.incoming, on_suspect=lambda reason: mark(layout.run, reason))
    # What one process has met holds for all: only a restart of the receiver tries the disk anew.
    spool.suspect = marked(layout.run)
    with (
        closing(Doorbell(layout.run)) as bell,
        spool.open_association(Opened(door, "", "", address, address)) as journal,
    ):
        for path in paths:
            for file in _walk(path):
                yield from _import_file(journal, file)
                bell.ring()


def _walk(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        yield from (Path(folder) / name for name in sorted(names))


def _import_file(journal: Journal, path: Path) -> Iterator[Imported]:
    try:
        if not path.is_file():
            yield Imported(str(path), Outcome.PASSED_OVER, "no regular file")
            return
        # What begins as DICOM is DICOM, even if the end of a zip hangs on it.
        if not is_part10(path) and zipfile.is_zipfile(path):
            yield from _import_zip(journal, path)
            return
        yield _import_one(journal, path, str(path))
    except OSError as error:
        yield Imported(str(path), Outcome.REFUSED, f"cannot be read: {error.strerror}")


def _import_zip(journal: Journal, path: Path) -> Iterator[Imported]:
    """Unpack one member at a time into a temporary file; neither names nor announced sizes are trusted."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) > ZIP_ENTRY_LIMIT:
                yield Imported(str(path), Outcome.REFUSED, f"more than {ZIP_ENTRY_LIMIT} members")
                return
            left = ZIP_TOTAL_LIMIT_BYTES
            for member in members:
                with tempfile.TemporaryDirectory(dir=journal.directory.parent.parent / "run") as folder:
                    unpacked = Path(folder) / "member"
                    name = f"{path}!{member.filename}"
                    try:
                        left -= _unpack(archive, member, unpacked, left)
                    except _DAMAGED as error:
                        yield Imported(name, Outcome.REFUSED, f"the member cannot be unpacked: {error}")
                        continue
                    yield _import_one(journal, unpacked, name)
    except _DAMAGED as error:
        yield Imported(str(path), Outcome.REFUSED, f"the zip cannot be read: {type(error).__name__}")


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, left: int) -> int:
    """Write a member to a file and return its size, as counted."""
    limit = min(left, max(ZIP_FREE_BYTES, member.compress_size * ZIP_RATIO))
    count = 0
    with archive.open(member) as source, target.open("wb") as file:
        while piece := source.read(PIECE_BYTES):
            count += len(piece)
            if count > limit:
                raise zipfile.BadZipFile("it becomes larger than a member may become")
            try:
                file.write(piece)
            except OSError as error:
                raise StorageError(f"storage failed: {error.strerror}", hint="see `ctnode doctor`") from error
    return count


def _import_one(journal: Journal, path: Path, name: str) -> Imported:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        try:
            transfer_syntax, start = _encoding(head)
            uids = _uids(path, head, transfer_syntax, start)
        except BadInstance as error:
            return Imported(name, Outcome.PASSED_OVER if _is_foreign(head) else Outcome.REFUSED, error.message)
        if uids.sop_class == _DICOMDIR_CLASS or not (uids.sop_instance or uids.study):
            return Imported(name, Outcome.PASSED_OVER, "a directory of media, or no DICOM object")
        try:
            incoming = journal.receive(
                transfer_syntax=transfer_syntax, sop_class=uids.sop_class, sop_instance=uids.sop_instance
            )
            try:
                file.seek(start)
                while piece := file.read(PIECE_BYTES):
                    incoming.write(piece)
            except OSError:
                incoming.discard()
                raise
            incoming.commit()
        except BadInstance as error:
            return Imported(name, Outcome.REFUSED, f"{error.message}; `ctnode process` takes files without UIDs")
    return Imported(name, Outcome.IMPORTED)


def _is_foreign(head: bytes) -> bool:
    return head[128:132] != b"DICM"


def _encoding(head: bytes) -> tuple[str, int]:
    """Return transfer syntax and start of the data set; without file meta, what its first element looks like."""
    meta = read_meta(head)
    if meta is not None:
        return meta.transfer_syntax, meta.dataset_start
    if len(head) < 8:
        raise BadInstance("too short to be DICOM")
    group = int.from_bytes(head[:2], "little")
    if group == 0x0800:
        return EXPLICIT_BIG, 0
    if group != 0x0008:
        raise BadInstance("neither a preamble nor group 0008 at the beginning")
    return (EXPLICIT_LITTLE if head[4:6].isalpha() and head[4:6].isupper() else IMPLICIT_LITTLE), 0


def _uids(path: Path, head: bytes, transfer_syntax: str, start: int) -> Uids:
    try:
        return read_uids(head[start:], transfer_syntax, whole=len(head) < HEAD_BYTES)
    except ShortBuffer:
        with path.open("rb") as file:
            file.seek(start)
            return read_uids(file.read(64 << 20), transfer_syntax, whole=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Import the settled files named on standard input; one JSON line says what became of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--door", default="inbox")
    parsed = parser.parse_args(arguments)
    root = parsed.root
    paths = [Path(line) for line in json.load(sys.stdin)]
    layout = Layout(root, root / "results")
    for path in paths:
        try:
            answer = _import_and_remove(layout, path, parsed.door)
        except StorageError as error:
            sys.stdout.write(json.dumps({"retry": error.message}) + "\n")
            return 1
        sys.stdout.write(json.dumps({"path": str(path), **answer}) + "\n")
        sys.stdout.flush()
    return 0


def _import_and_remove(layout: Layout, path: Path, door: str) -> dict[str, object]:
    """Import one file; it is removed when something of it was imported and nothing refused."""
    counts = dict.fromkeys(Outcome, 0)
    reasons: list[str] = []
    for imported in import_paths(layout, [path], door=door):
        counts[imported.outcome] += 1
        if imported.reason and len(reasons) < REASON_LIMIT:
            reasons.append(f"{imported.name}: {imported.reason}")
    if counts[Outcome.IMPORTED] and not counts[Outcome.REFUSED]:
        path.unlink(missing_ok=True)
        fsync_directory(path.parent)
    return {"imported": counts[Outcome.IMPORTED], "reasons": reasons}


if __name__ == "__main__":
    raise SystemExit(main())
