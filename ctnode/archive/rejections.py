"""Who was turned away, and why: two files of bounded size, so that nobody fills the disk or the index by knocking.

A rejection has no journal and no row. One line tells of the first of its kind within a minute at once, and another of
how many more there were when the minute is over.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

INTERVAL_S: Final = 60.0
LIMIT_BYTES: Final = 1 << 20
# Kinds in a minute, in all and of one address; whoever varies AE titles beyond is counted without them.
KINDS_LIMIT: Final = 200
KINDS_OF_ADDRESS_LIMIT: Final = 20


@dataclass(frozen=True, slots=True)
class Rejection:
    """One kind of rejection, and how many there were of it."""

    address: str
    calling_ae: str
    called_ae: str
    reason: str
    at: float = 0.0
    count: int = 1


class Rejections:
    """Writes down rejections; used by the acceptor alone.

    Parameters
    ----------
    path
        The newer file; the older is beside it, with ``.1`` behind its name.
    clock
        Seconds since 1970.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._began_s = clock()
        self._known: Counter[Rejection] = Counter()
        self._kinds: Counter[str] = Counter()
        self._fresh: list[Rejection] = []

    def add(self, rejected: Mapping[str, str]) -> None:
        """Count one."""
        kind = Rejection(rejected["address"], rejected["calling_ae"], rejected["called_ae"], rejected["reason"])
        if kind not in self._known and self._is_varied(kind.address):
            kind = Rejection(kind.address, "", "", kind.reason)
            if kind not in self._known and len(self._known) >= KINDS_LIMIT:
                kind = Rejection("", "", "", "others")
        if kind in self._known:
            self._known[kind] += 1
        else:
            self._known[kind] = 0
            self._kinds[kind.address] += 1
            self._fresh.append(kind)

    def _is_varied(self, address: str) -> bool:
        return len(self._known) >= KINDS_LIMIT or self._kinds[address] >= KINDS_OF_ADDRESS_LIMIT

    def flush(self, *, is_last: bool = False) -> None:
        """Write what is due; a disk that does not take it costs the entries, not the receiver."""
        now = self._clock()
        lines = [_line(kind, now, 1) for kind in self._fresh]
        self._fresh.clear()
        if is_last or not 0.0 <= now - self._began_s < INTERVAL_S:
            lines += [_line(kind, now, count) for kind, count in self._known.items() if count]
            self._known.clear()
            self._kinds.clear()
            self._began_s = now
        if lines:
            with suppress(OSError):
                self._write("".join(lines))

    def _write(self, text: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text)
            is_full = file.tell() > LIMIT_BYTES
        if is_full:
            self._path.replace(older(self._path))


def older(path: Path) -> Path:
    """Return the file that is written no more."""
    return path.with_name(f"{path.name}.1")


def read(path: Path) -> Iterator[Rejection]:
    """Yield what is written down, oldest first."""
    for file in (older(path), path):
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            continue
        for line in lines:
            with suppress(ValueError, TypeError):
                yield Rejection(**json.loads(line))


def _line(kind: Rejection, at: float, count: int) -> str:
    return json.dumps({**asdict(kind), "at": at, "count": count}) + "\n"
