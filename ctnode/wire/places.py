"""Who gets a place: counted by the acceptor over all receivers and for each address, so that nobody takes them all."""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

# Connections over the limit are told so by an A-ASSOCIATE-RJ, up to here; beyond, closing costs less than an answer.
REJECTED_AT_ONCE: Final = 64
REJECTED_AT_ONCE_PER_ADDRESS: Final = 16


@dataclass(frozen=True, slots=True)
class Place:
    """One connection; ``over_limit`` ones are served nothing but a rejection."""

    number: int
    address: str
    over_limit: bool


class Places:
    """The connections that receivers hold."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._taken: dict[int, Place] = {}
        self._serving: Counter[str] = Counter()
        self._rejecting: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, address: str, *, limit: int, per_address: int) -> Place | None:
        """Return a place for a connection from ``address``; None if it is to be closed without an answer."""
        over_limit = self._serving.total() >= limit or self._serving[address] >= per_address
        if over_limit and (
            self._rejecting.total() >= REJECTED_AT_ONCE or self._rejecting[address] >= REJECTED_AT_ONCE_PER_ADDRESS
        ):
            return None
        place = Place(next(self._numbers), address, over_limit)
        self._taken[place.number] = place
        self._counter(place)[address] += 1
        return place

    def give_back(self, number: int) -> Place | None:
        """End a place and return it; one that has ended already is passed over."""
        place = self._taken.pop(number, None)
        if place is None:
            return None
        counter = self._counter(place)
        counter[place.address] -= 1
        if not counter[place.address]:
            del counter[place.address]
        return place

    def _counter(self, place: Place) -> Counter[str]:
        return self._rejecting if place.over_limit else self._serving


class Slots:
    """The associations of each peer that has a limit of its own, counted over all receiver processes.

    A slot is a locked file: whatever ends a process, the kernel gives its slots back.
    """

    def __init__(self, run_directory: Path) -> None:
        self._folder = run_directory / "slots"

    def take(self, peer: str, limit: int) -> int | None:
        """Return the descriptor that holds a slot until it is closed; None if all are taken.

        Raises
        ------
        OSError
            If the folder cannot be written.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for number in range(limit):
            descriptor = os.open(self._folder / f"{peer}.{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
            else:
                return descriptor
        return None
