"""What the associations of one receiver process share: the configuration as it stands, the front door, the counters."""

from __future__ import annotations

import ssl
import threading
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from ctnode.archive.doorbell import Doorbell
from ctnode.archive.ledger import Ledger
from ctnode.archive.spool import Spool
from ctnode.config import Config
from ctnode.wire.knocks import Knocks
from ctnode.wire.peers import CachedResolver
from ctnode.wire.places import Slots

_MEGABYTE: Final = 1 << 20
# Upper bounds in seconds of the time from the first fragment of an instance to its answer.
STORE_BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass
class Tally:
    """What a receiver process counted; added to from the threads of its associations."""

    instances: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    bytes_kept: int = 0
    # By peer: how many took up to each bound, how many longer, and the sum of all in seconds.
    seconds: dict[str, list[float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count_instance(self, status: int, kept_bytes: int, peer: str, seconds: float) -> None:
        """Count one answer to a peer, and how long it took."""
        with self._lock:
            self.instances[f"{status:04X}"] += 1
            self.bytes_kept += kept_bytes
            spent = self.seconds.setdefault(peer, [0.0] * (len(STORE_BOUNDS_S) + 2))
            spent[bisect_left(STORE_BOUNDS_S, seconds)] += 1
            spent[-1] += seconds

    def count_end(self, how: str, cause: str = "") -> None:
        """Count one connection by how it ended, and by what its peer was cut for."""
        with self._lock:
            self.ended[how] += 1
            if cause:
                self.cut[cause] += 1

    def as_json(self) -> dict[str, object]:
        """Return the counters as they stand."""
        with self._lock:
            return {
                "instances": dict(self.instances),
                "ended": dict(self.ended),
                "cut": dict(self.cut),
                "bytes": self.bytes_kept,
                "seconds": {peer: [*spent[:-1], round(spent[-1], 4)] for peer, spent in self.seconds.items()},
            }


@dataclass
class Shared:
    """What all associations of one process share; ``config`` and ``storage_fault`` change while it runs."""

    config: Config
    listening_address: str
    spool: Spool
    doorbell: Doorbell
    tally: Tally = field(default_factory=Tally)
    knocks: Knocks = field(default_factory=Knocks)
    resolver: CachedResolver = field(default_factory=CachedResolver)
    storage_fault: str = ""
    tls_listening_address: str = ""
    # Built anew on each reload; connections keep the one that they began with.
    tls_context: ssl.SSLContext | None = None
    # Without a folder no peer has a limit of its own.
    slots: Slots | None = None

    @property
    def ledger(self) -> Ledger:
        """Return what all receivers know of procedure steps and transactions."""
        return Ledger(self.spool)

    def apply(self, config: Config) -> None:
        """Take over a configuration; associations that are open keep their time-outs."""
        self.config = config
        self.spool.reserve_bytes = config.storage.reserve_mb * _MEGABYTE
        self.spool.reserve_inodes = config.storage.reserve_inodes
