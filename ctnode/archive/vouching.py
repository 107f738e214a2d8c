"""Whether the node holds an instance, found out by reading it: nothing is vouched for on the word of the index."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from ctnode.archive import keys
from ctnode.archive.database import Database
from ctnode.archive.header import read_meta
from ctnode.archive.layout import Layout
from ctnode.archive.notices import Reference
from ctnode.words import BadInstance

# Failure reasons of PS3.3 C.14.1.1.
HELD: Final = 0x0000
PROCESSING_FAILURE: Final = 0x0110
NO_SUCH_INSTANCE: Final = 0x0112
CLASS_CONFLICT: Final = 0x0119

_META_BYTES: Final = 1 << 16
_PIECE_BYTES: Final = 1 << 20


def verify(database: Database, layout: Layout, reference: Reference) -> int:
    """Return ``HELD``, or why the instance cannot be vouched for (PS3.4 J.3.3, PS3.3 C.14.1.1).

    Where the node keeps several objects of one SOP Instance UID, each of the class in question has to be whole.
    """
    rows = keys.objects_of(database, reference.sop_instance)
    if not rows:
        return NO_SUCH_INSTANCE
    same = [(digest, path) for sop_class, digest, path in rows if sop_class == reference.sop_class]
    if not same:
        return CLASS_CONFLICT
    # A row whose file is still on its way out of the journal is whole once it has got there.
    return HELD if all(_is_whole(layout.store / path, digest) for digest, path in same) else PROCESSING_FAILURE


def _is_whole(path: Path, digest: str) -> bool:
    try:
        return data_set_digest(path) == digest
    except (OSError, BadInstance):
        return False


def data_set_digest(path: Path) -> str:
    """Return the SHA-256 of the data set of a Part 10 file in hex.

    Raises
    ------
    OSError
        If it cannot be read.
    BadInstance
        If it has no file meta information.
    """
    with path.open("rb") as file:
        meta = read_meta(file.read(_META_BYTES))
        if meta is None:
            raise BadInstance("no DICOM file with file meta information")
        file.seek(meta.dataset_start)
        found = hashlib.sha256()
        while piece := file.read(_PIECE_BYTES):
            found.update(piece)
    return found.hexdigest()
