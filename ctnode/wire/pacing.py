"""Addresses that keep connecting and ask for nothing are let in a moment later than others.

A scanner that comes back as soon as it is cut would otherwise cost a thread and an abort hundreds of times a second,
which the senders beside it pay for. Waiting costs nothing but a descriptor, and the place that was counted already.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from ctnode.wire.places import Place

# So many connections without an association within so many seconds; a health check comes ten times less often.
KNOCKS: Final = 20
WITHIN_S: Final = 10.0
DELAY_S: Final = 1.0
# Who comes from more addresses than this is not slowed down by any of them.
ADDRESS_LIMIT: Final = 1024


@dataclass(frozen=True, slots=True)
class Held:
    """A connection that has its place and waits to be served."""

    due_s: float
    connection: socket.socket
    place: Place
    is_tls: bool


class Pacing:
    """Knows which addresses knock without coming in, and holds the next connections from there.

    Parameters
    ----------
    clock
        Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._knocks: dict[str, deque[float]] = {}
        # All are held equally long: the first is due first.
        self._held: deque[Held] = deque()

    def count(self, address: str) -> None:
        """Count a connection that ended without having asked for an association."""
        knocks = self._knocks.pop(address, None)
        if knocks is None:
            knocks = deque(maxlen=KNOCKS)
            if len(self._knocks) >= ADDRESS_LIMIT:
                # The one that knocked longest ago is forgotten.
                del self._knocks[next(iter(self._knocks))]
        knocks.append(self._clock())
        self._knocks[address] = knocks

    def is_knocking(self, address: str) -> bool:
        """Return whether the next connection from ``address`` has to wait."""
        knocks = self._knocks.get(address)
        return knocks is not None and len(knocks) == KNOCKS and self._clock() - knocks[0] <= WITHIN_S

    def hold(self, connection: socket.socket, place: Place, *, is_tls: bool) -> None:
        """Keep a connection until it is due."""
        self._held.append(Held(self._clock() + DELAY_S, connection, place, is_tls))

    def until_due_s(self, longest_s: float) -> float:
        """Return the seconds until a connection gets due, at most ``longest_s``; what is overdue is not waited for."""
        if not self._held or self._held[0].due_s <= self._clock():
            return longest_s
        return min(longest_s, self._held[0].due_s - self._clock())

    def due(self, *, all_of_them: bool = False) -> Iterator[Held]:
        """Give back what has waited long enough."""
        while self._held and (all_of_them or self._held[0].due_s <= self._clock()):
            yield self._held.popleft()
