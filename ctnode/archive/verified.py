"""What the last ``ctnode verify`` found, kept in ``run/`` for ``doctor``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from ctnode.archive.layout import Layout
from ctnode.archive.scrub import Scrubbed
from ctnode.ops.durable import write_durable

KINDS: Final = ("originals", "results")
SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Verified:
    """One verification: when it ended, what it read, how much of it differs and the first of those."""

    at: float
    files: int
    bytes: int
    differ: int
    faults: tuple[str, ...]


def note(layout: Layout, kind: str, at: float, files: int, size: int, faults: Sequence[Scrubbed]) -> None:
    """Keep what a verification found.

    Raises
    ------
    OSError
        If it cannot be written, as by a user who may only look.
    """
    shown = tuple(f"{one.path}: {one.fault}" for one in faults[:SHOWN])
    found = Verified(at, files, size, len(faults), shown)
    write_durable(layout.run / f"verified-{kind}.json", json.dumps(asdict(found)).encode())


def last(layout: Layout, kind: str) -> Verified | None:
    """Return what the last verification of a kind found; None if there was none."""
    try:
        record = json.loads((layout.run / f"verified-{kind}.json").read_bytes())
        return Verified(**{**record, "faults": tuple(record["faults"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget(layout: Layout) -> None:
    """Remove it: it names files."""
    for kind in KINDS:
        (layout.run / f"verified-{kind}.json").unlink(missing_ok=True)
