"""Where things lie below the root, and how a UID becomes a name that no peer can misuse."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from ctnode.words import BadInstance

UID_LIMIT_BYTES: Final = 64
_SPLIT: Final = re.compile(r"(.*)~([1-9][0-9]{0,8})", re.DOTALL)
_FORBIDDEN: Final = re.compile(r"[/\\\0]")
# PS3.5 9.1: components of digits without leading zeros.
_STRICT_UID: Final = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))*")


def is_strict_uid(uid: str) -> bool:
    """Return whether ``uid`` follows PS3.5 9.1 to the letter."""
    return len(uid) <= UID_LIMIT_BYTES and _STRICT_UID.fullmatch(uid) is not None


@lru_cache(maxsize=1024)
def path_part(uid: str) -> str:
    """Return the path name of ``uid``: itself if strictly valid, else ``x-`` + 32 hex of its SHA-256."""
    if is_strict_uid(uid):
        return uid
    return "x-" + hashlib.sha256(uid.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@lru_cache(maxsize=1024)
def require_keepable(uid: str, what: str) -> None:
    """Check that ``uid`` can name an object.

    Raises
    ------
    BadInstance
        If it is empty, longer than 64 bytes, or holds a path separator, a NUL, or nothing but dots.
    """
    if not uid:
        raise BadInstance(f"no {what}")
    if len(uid.encode("latin-1", "replace")) > UID_LIMIT_BYTES:
        raise BadInstance(f"{what} is longer than 64 bytes")
    if _FORBIDDEN.search(uid) or not uid.strip("."):
        raise BadInstance(f"{what} holds what no UID may hold")


def series_name(uid: str, split: int) -> str:
    """Return the name of a split of a series: ``UID`` for the first, ``UID~n`` for the others."""
    return uid if split == 1 else f"{uid}~{split}"


def series_part(uid: str, split: int) -> str:
    """Return the folder name of a split of a series."""
    return series_name(path_part(uid), split)


def parse_series_name(name: str) -> tuple[str, int]:
    """Return UID and split of a series name."""
    split = _SPLIT.fullmatch(name)
    if split is not None and int(split[2]) > 1:
        return split[1], int(split[2])
    return name, 1


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders of one node."""

    root: Path
    results: Path

    @property
    def incoming(self) -> Path:
        """Return the journal of arrivals."""
        return self.root / "incoming"

    @property
    def store(self) -> Path:
        """Return the folder of settled instances."""
        return self.root / "store"

    @property
    def quarantine(self) -> Path:
        """Return the folder of files that could not be settled."""
        return self.root / "quarantine"

    @property
    def tombstones(self) -> Path:
        """Return the folder of the records of what retention deleted; it is made when something is."""
        return self.root / "tombstones"

    @property
    def run(self) -> Path:
        """Return the folder of locks, sockets and counters."""
        return self.root / "run"

    @property
    def rejections(self) -> Path:
        """Return the file that tells who was turned away."""
        return self.run / "rejections.jsonl"

    @property
    def database(self) -> Path:
        """Return the index."""
        return self.root / "ctnode.db"

    def create(self) -> None:
        """Create what is missing; only the roles and writing commands do this."""
        for folder in (self.root, self.incoming, self.store, self.quarantine, self.run, self.results):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def store_path(self, study: str, series: str, split: int, sop_instance: str, *, suffix: str = "") -> Path:
        """Return where an instance lies, relative to ``store``; ``suffix`` tells apart other bytes of the same UID."""
        return Path(path_part(study), series_part(series, split), f"{path_part(sop_instance)}{suffix}.dcm")

    def tombstone_file(self, study: str, series: str, split: int) -> Path:
        """Return the file that tells what retention deleted of a series."""
        return self.tombstones / path_part(study) / f"{series_part(series, split)}.jsonl"

    def result_directory(self, study: str, series: str, split: int, revision: int) -> Path:
        """Return where the results of a revision are published."""
        return self.results / path_part(study) / series_part(series, split) / f"r{revision}"
