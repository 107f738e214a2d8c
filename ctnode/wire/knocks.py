"""Connections that ask for no association: health checks, scanners, the silent; one log line per address and minute."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ctnode.ops import log

INTERVAL_S: Final = 60.0
# Whoever comes from more addresses than this within a minute is counted together.
ADDRESS_LIMIT: Final = 1024
_OTHERS: Final = "others"


@dataclass
class _Visits:
    began_s: float
    causes: Counter[str] = field(default_factory=Counter)


class Knocks:
    """Counts such connections until their minute is over; safe from any thread.

    Parameters
    ----------
    clock
        Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._visits: dict[str, _Visits] = {}
        self._lock = threading.Lock()

    def count(self, address: str, cause: str) -> None:
        """Count one connection from ``address``, without its port."""
        with self._lock:
            if address not in self._visits and len(self._visits) >= ADDRESS_LIMIT:
                address = _OTHERS
            self._visits.setdefault(address, _Visits(self._clock())).causes[cause] += 1

    def tell(self, *, all_of_them: bool = False) -> None:
        """Log those whose minute is over, one line for each address."""
        due_s = self._clock() - INTERVAL_S
        with self._lock:
            due = {at: visits for at, visits in self._visits.items() if all_of_them or visits.began_s <= due_s}
            for address in due:
                del self._visits[address]
        for address, visits in due.items():
            causes = ", ".join(f"{cause} {count}" for cause, count in visits.causes.most_common())
            log.get().info(
                "connections without an association", address=address, count=visits.causes.total(), reason=causes
            )
