"""A node's root on disk without its processes: instances as bytes, arrivals through the front door, a keeper's hands.

The encoder here is the tests' own, so that what the node reads was not written by the node.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ctnode.archive import invariants, revisions
from ctnode.archive.database import Database
from ctnode.archive.elements import EXPLICIT_LITTLE
from ctnode.archive.incoming import Kept
from ctnode.archive.index import Arrival, Index, QuietPolicy
from ctnode.archive.layout import Layout
from ctnode.archive.part10 import Opened
from ctnode.archive.settle import Scan, Settler
from ctnode.archive.spool import Journal, Spool
from ctnode.words import Verdict

CT = "1.2.840.10008.5.1.4.1.1.2"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
STUDY = "1.2.3"
SERIES = "1.2.3.1"
LONG = {"OB", "OW", "SQ", "UN", "UT"}


def element(group: int, number: int, vr: str, value: bytes | str) -> bytes:
    """Encode one element in explicit little endian."""
    raw = value.encode("latin-1") if isinstance(value, str) else value
    if len(raw) % 2:
        raw += b"\0" if vr in {"UI", "OB", "UN"} else b" "
    if vr in LONG:
        return struct.pack("<HH2sHL", group, number, vr.encode(), 0, len(raw)) + raw
    return struct.pack("<HH2sH", group, number, vr.encode(), len(raw)) + raw


@dataclass(frozen=True, slots=True)
class Image:
    """One instance; as few elements as the index looks at."""

    sop: str
    study: str = STUDY
    series: str = SERIES
    sop_class: str = CT
    patient: str = "P1"
    frame: str = "1.2.9"
    rows: int = 4
    number: str = "1"
    position: float | None = 0.0
    manufacturer: str = "MAKER"
    model: str = "SCANNER 64"
    software: str = "1.0"
    modality: str = "CT"
    image_type: str = "ORIGINAL\\PRIMARY\\AXIAL"
    pixels: bytes = b"\1\2\3\4"
    # Further elements as group, element, VR and value.
    more: tuple[tuple[int, int, str, bytes | str], ...] = ()

    def encode(self) -> bytes:
        """Return the data set in explicit little endian."""
        elements: list[tuple[int, int, str, bytes | str]] = [
            (0x08, 0x08, "CS", self.image_type),
            (0x08, 0x16, "UI", self.sop_class),
            (0x08, 0x18, "UI", self.sop),
            (0x08, 0x60, "CS", self.modality),
            (0x08, 0x70, "LO", self.manufacturer),
            (0x08, 0x1090, "LO", self.model),
            (0x10, 0x10, "PN", "NOBODY"),
            (0x10, 0x20, "LO", self.patient),
            (0x18, 0x1020, "LO", self.software),
            (0x20, 0x0D, "UI", self.study),
            (0x20, 0x0E, "UI", self.series),
            (0x20, 0x13, "IS", self.number),
            *self._place(),
            (0x20, 0x52, "UI", self.frame),
            (0x28, 0x10, "US", struct.pack("<H", self.rows)),
            (0x28, 0x11, "US", struct.pack("<H", self.rows)),
            (0x7FE0, 0x10, "OW", self.pixels),
            *self.more,
        ]
        return b"".join(element(*one) for one in sorted(elements, key=lambda one: one[:2]))

    def _place(self) -> list[tuple[int, int, str, bytes | str]]:
        if self.position is None:
            return []
        return [(0x20, 0x32, "DS", f"0\\0\\{self.position:g}"), (0x20, 0x37, "DS", "1\\0\\0\\0\\1\\0")]


def stack(count: int, **changes: object) -> list[Image]:
    """Return a series of ``count`` slices."""
    series = str(changes.get("series", SERIES))
    return [
        Image(f"{series}.{k + 1}", number=str(k + 1), position=2.5 * k, **changes)  # type: ignore[arg-type]
        for k in range(count)
    ]


def opened(calling: str = "SENDER", address: str = "10.0.0.1:4711") -> Opened:
    """Return how an association of the network begins."""
    return Opened("network", calling, "CTNODE", address, "10.0.0.2:11112")


def put(journal: Journal, image: Image, transfer_syntax: str = EXPLICIT_LITTLE) -> Kept:
    """Bring one instance through the front door."""
    incoming = journal.receive(transfer_syntax=transfer_syntax, sop_class=image.sop_class, sop_instance=image.sop)
    incoming.write(image.encode())
    return incoming.commit()


def five_seconds(_arrival: Arrival, revision: int) -> float:
    """Return a quiet time that doubles with each revision."""
    return 5.0 * 2 ** (revision - 1)


class Root:
    """One root, as the keeper sees it; ``restart()`` is what a new process would see."""

    def __init__(self, place: Path, quiet: QuietPolicy = five_seconds) -> None:
        self.layout = Layout(place, place / "results")
        self.layout.create()
        self.spool = Spool(self.layout.incoming)
        self.quiet = quiet
        self._open()

    def _open(self) -> None:
        self.database = Database(self.layout.database)
        self.database.migrate()
        self.index = Index(self.database, self.layout, self.quiet)
        self.settler = Settler(self.index)

    def restart(self) -> None:
        """Forget all that only a process knows."""
        self.database.close()
        self._open()

    def close(self) -> None:
        """Close the index."""
        self.database.close()

    def push(self, images: Iterable[Image], **who: str) -> list[Kept]:
        """Send images over one association that is released."""
        with self.spool.open_association(opened(**who)) as journal:
            return [put(journal, image) for image in images]

    def settle(self) -> Scan:
        """Settle all that waits and close what ended."""
        scan = self.settler.scan()
        while not scan.is_whole or scan.settled:
            scan = self.settler.scan()
        return self.settler.scan()

    def hold(self, *images: Image, **who: str) -> list[Kept]:
        """Send and settle images."""
        kept = self.push(images, **who)
        self.settle()
        return kept

    def rows(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """Return the rows of a statement."""
        return self.database.execute(statement, values).fetchall()

    def one(self, statement: str, *values: object) -> object:
        """Return the only value of a statement."""
        ((value,),) = self.rows(statement, *values)
        return value

    def complete(self, series_id: int = 1) -> revisions.Revision:
        """Give the open revision of a series its verdict."""
        newest = revisions.newest(self.database, series_id)
        with self.database.immediate():
            revisions.complete(self.database, newest, Verdict.LIKELY, ["quiet"])
        return revisions.get(self.database, newest.id)

    def queued(self, *images: Image) -> revisions.Revision:
        """Bring a series as far as the queue."""
        self.hold(*images)
        series_id = max(int(str(row[0])) for row in self.rows("SELECT series_id FROM revisions"))
        revision = self.complete(series_id)
        with self.database.immediate():
            revisions.queue(self.database, revision)
        return revisions.get(self.database, revision.id)

    def breaches(self) -> list[str]:
        """Return what must never be."""
        return [
            *invariants.check_store(self.database, self.layout),
            *invariants.check_states(self.database),
            *invariants.check_removals(self.database, self.layout),
            *invariants.check_integrity(self.database),
        ]

    def files(self, folder: str) -> list[str]:
        """Return the files below a folder of the root, sorted."""
        place = self.layout.root / folder
        return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
